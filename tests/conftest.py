"""Before torch is imported: threads that wait shall sleep, not spin.

On two cores with anything else running, spinning made the model tests ten times slower.
"""

import os
import signal

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell that starts a job in the background makes it deaf to Ctrl-C, and every child of it as well.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def one_thread():
    """torch with a single thread, for a test."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
