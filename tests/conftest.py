"""What every test shares: devices, dtypes, seeded draws and the hypothesis profile."""

import os

THREADS = int(os.environ.setdefault("OMP_NUM_THREADS", "1"))  # a worker's, and those of the processes that tests start

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from tests.examples import ORDINARY, SOAKED  # noqa: E402
from tests.tensors import draw  # noqa: E402

torch.set_num_threads(THREADS)

hypothesis.settings.register_profile("thalweg", deadline=None, max_examples=ORDINARY, derandomize=True)
hypothesis.settings.register_profile(
    "soak", deadline=None, max_examples=SOAKED, derandomize=False, print_blob=True
)  # other examples each time, and what reproduces a failure
hypothesis.settings.load_profile(os.environ.get("THALWEG_HYPOTHESIS", "thalweg"))

DEVICES = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]


@pytest.fixture(scope="session", params=DEVICES)
def device(request):
    """Every device present."""
    return torch.device(request.param)


@pytest.fixture(scope="session", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    """Both real precisions."""
    return request.param


@pytest.fixture(scope="session")
def normal():
    """``normal(seed, *shape, dtype=float64)``: ``tests.tensors.draw`` for tests that take it as a fixture."""
    return draw
