"""For all tests: our environment variables, Ctrl-C counts, and property tests have no time limit an example.

A shell that runs the tests in the background has SIGINT ignored, and every process that a test starts would inherit that.
These machines are sometimes several times slower than at other times.
"""

import os
import signal

import pytest
from hypothesis import settings

from pipelines.__main__ import DEFAULTS

# several tests share the cores: a thread that waits should sleep, else it takes the core from the one it waits for
os.environ.update({**DEFAULTS, "GOMP_SPINCOUNT": "1000", **os.environ})
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

LONGEST = (
    "training/test_toy.py",
    "end_to_end/test_tiny.py",
    "serving/test_serve.py",
    "end_to_end/",
    "adapters/test_cluster.py",
    "registry/test_crashes.py",
    "diagnosis/test_faults.py",
    "training/test_sharding.py",
    "training/test_ppo_resume.py",
    "flows/test_train.py",
    "registry/test_promotion.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take a minute or more come first: else one process works on the last of them while the other is idle."""
    items.sort(key=lambda item: next((rank for rank, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST)))
