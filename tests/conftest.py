"""Two test processes of one thread each; told to torch before anything imports it."""
import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def warm():
    """Starts trainings from a process that has everything imported."""
    from tests.warm_start import WarmStart
    server = WarmStart()
    yield server
    server.close()
