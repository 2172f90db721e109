"""For all tests: Ctrl-C counts, and property tests have no time limit an example.

A shell that runs the tests in the background has SIGINT ignored, and every process that a test starts would inherit that.
These machines are sometimes several times slower than at other times.
"""

import signal

from hypothesis import settings

signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
