"""Shared fixtures: tiny random models of many classes, and the packaged MiniLM."""

import gc
import os
from pathlib import Path

# Before transformers is imported: no test may look for anything on the Hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels for a GPU run on the CPU; before Triton is imported

from minilm_forms import minilm_folder, save_form
from safetensors.torch import load_file
from tiny_models import compressed_model, tiny_model, uneven_model
from torch import Tensor

from projclust import compress_model


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where the tests marked `device` run, such as cuda (default: cpu)")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests that can run on any device, for `-m device`."""
    if "device" in getattr(item, "fixturenames", ()):
        item.add_marker("device")


def pytest_collection_finish() -> None:
    """Leave what was imported out of every search for garbage: training makes one, which took half a second."""
    gc.freeze()


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where a test that takes it computes: --device."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    """With more test processes than cores, torch's own threads only get in each other's way."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The packaged MiniLM checkpoint (BERT class, 30522 x 384)."""
    return minilm_folder()


@pytest.fixture(scope="session")
def minilm_table(minilm: Path) -> Tensor:
    """MiniLM's word embedding."""
    return load_file(minilm / "model.safetensors")["embeddings.word_embeddings.weight"]


@pytest.fixture(scope="session")
def minilm_forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """MiniLM as BERT, DistilBERT and RoBERTa checkpoint folders."""
    root = tmp_path_factory.mktemp("minilm")
    return {form: save_form(form, root / form) for form in ("bert", "distilbert", "roberta")}


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A tiny dense BERT masked-LM checkpoint."""
    folder = tmp_path / "tiny-bert"
    tiny_model("bert").save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"w{i}\n" for i in range(120)))
    return folder


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained BERT that knows the words of the demonstration task."""
    from tiny_classifier import save_tiny_classifier  # needs datasets, which few tests do

    return save_tiny_classifier(tmp_path_factory.mktemp("classifier") / "tiny")


@pytest.fixture
def compressed_folder(tmp_path: Path) -> Path:
    """A tiny compressed BERT masked-LM checkpoint (k=3, j=5)."""
    folder = tmp_path / "tiny-compressed"
    compress_model(tiny_model("bert"), k=3, j=5).save_pretrained(folder)
    return folder


@pytest.fixture
def adaptive_folder(tmp_path: Path) -> Path:
    """A tiny compressed BERT masked-LM checkpoint of unequal ranks (k=3)."""
    folder = tmp_path / "tiny-adaptive"
    compress_model(uneven_model("bert"), k=3, j=5, ranks="adaptive").save_pretrained(folder)
    return folder


@pytest.fixture
def coded_folder(tmp_path: Path) -> Path:
    """A tiny BERT masked-LM checkpoint with coded rows (codes "auto")."""
    folder = tmp_path / "tiny-coded"
    compressed_model("bert", "auto").save_pretrained(folder)
    return folder


@pytest.fixture
def int8_folder(tmp_path: Path) -> Path:
    """A tiny BERT masked-LM checkpoint with int8 coefficients (k=3, j=5)."""
    folder = tmp_path / "tiny-int8"
    compressed_model("bert", "int8").save_pretrained(folder)
    return folder


@pytest.fixture
def int4_folder(tmp_path: Path) -> Path:
    """A tiny BERT masked-LM checkpoint with int4 coefficients and means (k=3, j=5)."""
    folder = tmp_path / "tiny-int4"
    compressed_model("bert", "int4").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def glue_dir() -> str:
    """The folder of the GLUE tasks; its tests are skipped where there is none."""
    folder = os.environ.get("PROJCLUST_GLUE_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs the GLUE data: set PROJCLUST_GLUE_DIR to a folder of nyu-mll/glue's layout")
    return folder
