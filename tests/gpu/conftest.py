"""The tests of this folder compare a GPU with the CPU: python -m pytest -m gpu (3 minutes).

--device cpu runs them without a GPU, which checks the tests themselves; what only a GPU has (loss
scaling, synchronization, its memory) is skipped there.
"""
import pytest
import torch


@pytest.fixture(scope="session")
def device(request):
    device = torch.device(request.config.getoption("--device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return device


@pytest.fixture
def cuda(device):
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    return device


@pytest.fixture(autouse=True)
def exact_settings(device):
    """Products in full float32: TF32 keeps 10 bits, and would hide errors."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.use_deterministic_algorithms(False)       # a test's training may have set it
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
