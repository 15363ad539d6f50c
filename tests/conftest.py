"""What every test stands on: offline, one thread, fixed seeds, and where the real data and the official numbers are."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
SEED = 20240229

# Set before anything imports torch, transformers or matplotlib; child processes of tests inherit them.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)

# A slow machine is no failure (deadline), and CI draws the same examples each time: a red there is red here.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_configure(config: pytest.Config) -> None:
    """Give the run its own caches, so that no test reads or fills those of the user."""
    if not hasattr(config, "workerinput"):  # pytest-xdist's workers inherit the folder of the process that starts them
        os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="stillhouse-tests-")
        os.environ["STILLHOUSE_CACHE"] = str(Path(os.environ["HF_HOME"]) / "stillhouse")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the caches of this run, and give the collector everything back, or compiled bindings call it leaked."""
    gc.unfreeze()
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def settled() -> None:
    """Have the garbage collector pass over what is imported: a Trainer calls it, and it was half the time of a run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed torch before each test, without importing it for those that do without; pytest-randomly does the rest."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(SEED)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real tokenizers and data sets: STILLHOUSE_SHARED, else ../shared beside the repository."""
    return _folder("STILLHOUSE_SHARED", ROOT.parent / "shared", "real data and tokenizers")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of the official implementations' numbers: STILLHOUSE_GOLDEN, else golden in the shared folder."""
    beside = Path(os.environ.get("STILLHOUSE_SHARED", ROOT.parent / "shared"))
    return _folder("STILLHOUSE_GOLDEN", beside / "golden", "numbers of the official implementations")


def _folder(variable: str, default: Path, what: str) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"{what}: no folder {folder}; set {variable}")
    return folder
