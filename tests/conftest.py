"""Before torch is imported: threads that wait shall sleep, not spin.

On two cores with anything else running, spinning made the model tests ten times slower.
"""

import os
import signal

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell that starts a job in the background makes it deaf to Ctrl-C, and every child of it as well.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every engine of the tests compares its weights with a checksum, but over released models, where that takes time."""
    os.environ["HADAL_CHECK_WEIGHTS"] = "" if item.get_closest_marker("real") else "1"


@pytest.fixture
def one_thread():
    """torch with a single thread, for a test."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
