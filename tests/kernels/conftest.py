from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from kernel_paths import on_path


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    """``torch.empty`` hands out NaN and the largest integer, so that an element nobody wrote is noticed."""
    # On a GPU some operations that tests compare with have no deterministic form.
    torch.use_deterministic_algorithms(True, warn_only=torch.get_default_device().type != "cpu")
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on one backend (and instruction set); parametrised by ``kernel_paths.over_paths``."""
    with on_path(request.param):
        yield request.param
