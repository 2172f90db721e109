"""For all tests: our environment variables, Ctrl-C counts, and property tests have no time limit an example.

A shell that runs the tests in the background has SIGINT ignored, and every process that a test starts would inherit that.
These machines are sometimes several times slower than at other times.
"""

import os
import signal

from hypothesis import settings

from pipelines.__main__ import DEFAULTS

# several tests share the cores: a thread that waits should sleep, else it takes the core from the one it waits for
os.environ.update({**DEFAULTS, "GOMP_SPINCOUNT": "1000", **os.environ})
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
