"""Settings and fixtures of all tests: each test process uses one thread.

The variable must be set before torch is imported. Generated examples are the same in each run, so
that a change is not blamed for a rare one; `--hypothesis-profile default` draws new ones.
"""
import os
import sys

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
hypothesis.settings.register_profile("fixed", derandomize=True, database=None)
hypothesis.settings.load_profile("fixed")


def pytest_addoption(parser):
    parser.addoption("--device", default="cuda", help="the device of the tests marked gpu")


@pytest.fixture(scope="session", autouse=True)
def quick_networks():
    """Networks without values are built without drawing any: five times as fast."""
    if "torch" in sys.modules:
        from tests.support.start_values import skip_where_there_are_no_values
        skip_where_there_are_no_values()


@pytest.fixture(scope="session")
def warm():
    """A WarmStart, which starts trainings from a process that has already imported everything."""
    from tests.support.warm_start import WarmStart
    server = WarmStart()
    yield server
    server.close()
