"""Checkpoints, engines and references that the engine's tests share."""

import pytest
import torch

from pipeline.engine import VideoLLM
from pipeline.engine.checkpoint import Checkpoint
from tests.engine.checkpoints import SHAPES, write_checkpoint
from tests.engine.reference import load_reference


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Checkpoint folders by the name of their shape."""
    return {name: write_checkpoint(tmp_path_factory.mktemp(name), shape) for name, shape in SHAPES.items()}


@pytest.fixture(scope="session")
def grouped_folder(folders):
    return folders["grouped"]


@pytest.fixture(scope="session")
def llm(grouped_folder):
    return VideoLLM.load(grouped_folder, device="cpu", dtype="float32")


@pytest.fixture(scope="session", params=[*SHAPES, "builtin:tiny"])
def pair(request, folders):
    """An engine and transformers' own model on the same checkpoint."""
    source = folders.get(request.param, request.param)
    return VideoLLM.load(source, device="cpu", dtype="float32"), load_reference(Checkpoint.open(source).folder)
