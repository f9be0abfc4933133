"""What every test and every process that it starts has: the environment of hadal's commands, and a working Ctrl-C."""

import os
import signal

import pytest

from hadal.machine.environment import prepare

prepare()  # before torch is imported
os.environ["GOMP_SPINCOUNT"] = "0"  # two processes of tests share the cores: a thread that spins keeps the other's

# A shell that starts a job in the background makes it deaf to Ctrl-C, and every child of it as well.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every engine of the tests compares its weights with a checksum; over released models that takes too long."""
    os.environ["HADAL_CHECK_WEIGHTS"] = "" if item.get_closest_marker("real") else "1"


@pytest.fixture
def one_thread():
    """torch with a single thread, for a test."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
