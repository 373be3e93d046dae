"""Settings of every test: the same random numbers in each run, no wall-clock limits inside hypothesis.

``WINO_TEST_DEVICE=cuda`` puts every tensor on a GPU, where the kernels then run as they are: meant for tests/kernels.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import cuda_emulation
import hypothesis
import pytest
import torch

DEVICE = os.environ.get("WINO_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    # Read when Triton is imported: its kernels then run on the CPU.
    os.environ["TRITON_INTERPRET"] = "1"
    # The CUDA kernels are compiled for the CPU, as the module that the backend loads.
    cuda_emulation.install()
else:
    torch.set_default_device(DEVICE)

# A shell's background job ignores Ctrl-C, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The same random state for every test, on one thread: small models lose more than they gain from a second one."""
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
