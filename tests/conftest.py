"""What every test needs: no network, one thread, and where real data lie if somebody has them."""

import os

# Before any import below: these are read when the libraries load.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    GRADIO_ANALYTICS_ENABLED="False",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    MPLBACKEND="Agg",
)

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # two OpenMP threads on a shared core can be ten times slower than one


def find_real_data(name: str) -> Path:
    """The folder of a real corpus, which MER_<NAME>_DIR names; skips the test where it is not set."""
    variable = f"MER_{name.upper()}_DIR"
    if variable not in os.environ:
        pytest.skip(f"no copy of {name}: set {variable} to the folder of yours to run this test")
    path = Path(os.environ[variable])
    if not path.is_dir():
        pytest.fail(f"{variable} is set but does not name a directory")
    return path


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """`real_data("meld")`: the folder of a real corpus, or a skip that says how to supply it."""
    return find_real_data


@pytest.fixture(scope="session")
def ravdess_dir() -> Path:
    return find_real_data("ravdess")
