"""What every test may rely on: no network, few threads, tiny models, the shared data if it is there."""

from __future__ import annotations

import os

# Before anything imports huggingface_hub, which reads it once. A test must not depend on the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Of the commands that tests start too: the models are so tiny that a second thread costs more than it gains, and where
# several tests run at once, their threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from accelerate.state import AcceleratorState

from tests.tiny import build_tiny_model

ROOT = Path(__file__).parent.parent

torch.set_num_threads(1)

# Tests save thousands of times, and none can lose its machine's power: what makes sure of the disk may be left out.
os.fsync = lambda fd: None

LONGEST = (
    "test_verify",
    "test_sharding",
    "test_documentation",
    "test_processes",
    "test_kill",
    "test_run",
    "test_documentation_site",
    "test_export",
)
"""Files of tests that take the longest: begun first, so that no other has to wait for them in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


# A slow or busy machine is no failure. Examples are the same in every run, so that a failure is too.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("default")


@pytest.fixture(scope="module", autouse=True)
def _own_precision() -> None:
    """Accelerate keeps the precision of a process's first Accelerator: no module's is another's."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps the device and precision of a process's first Accelerator; a command expects its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Variant -> the folder of a tiny model, built when it is first asked for. Do not write into it."""

    @functools.cache
    def build(variant: str) -> Path:
        return build_tiny_model(tmp_path_factory.mktemp(variant) / "model", variant=variant)

    return build


@pytest.fixture(scope="session")
def tiny_model_dir(tiny_model: Callable[[str], Path]) -> Path:
    """The folder of the tiny Llama. Do not write into it."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data folder beside the repository; a checkout elsewhere has none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}")
    return folder
