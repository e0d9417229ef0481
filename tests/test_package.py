"""What `import projclust` offers, and what it does not do yet."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import projclust


def test_every_name_is_that_of_its_home() -> None:
    assert {"CheckpointError", "OptionError", "ProjclustError", "ServiceError"} <= set(projclust.__all__)
    for name, home in projclust._HOMES.items():
        assert getattr(projclust, name) is getattr(importlib.import_module(home), name)
    assert set(projclust.__all__) <= set(dir(projclust))


def test_other_names_are_none() -> None:
    with pytest.raises(AttributeError, match="module 'projclust' has no attribute 'nothing'"):
        _ = projclust.nothing
    with pytest.raises(ImportError, match="nothing"):
        from projclust import nothing  # noqa: F401


TRANSFORMERS = ["transformers", "transformers.quantizers", "transformers.modeling_utils"]
PROJCLUST = ["hf.config", "hf.swap", "hf.compression", "hf.quantizer", "checkpoints.load", "weights.row_weights"]


@pytest.mark.parametrize("first", ["projclust", *TRANSFORMERS, *(f"projclust.{name}" for name in PROJCLUST)])
def test_the_quantizer_is_known_whatever_is_imported_first(first: str) -> None:
    code = f"""
import sys, {first}, projclust
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
print(AUTO_QUANTIZER_MAPPING["projclust"].__name__, AUTO_QUANTIZATION_CONFIG_MAPPING["projclust"].__name__)
print(*[finder for finder in sys.meta_path if type(finder).__module__ == "projclust._registration"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "ProjClustHfQuantizer ProjClustConfig\n\n", result.stderr


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which what pyproject.toml declares is installed, whatever the one of the tests has."""
    root = Path(projclust.__file__).parents[1]
    declared = (
        (root / "pyproject.toml").read_text(encoding="utf-8").split('[project.entry-points."torch.backends"]\n')[1]
    )
    info = tmp_path_factory.mktemp("installed") / "declared-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: declared\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\n" + declared.splitlines()[0].replace('"', "") + "\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(info.parent), str(root)])}


@pytest.mark.parametrize(
    "first", ["torch", *TRANSFORMERS, "transformers.models.bert.modeling_bert", "transformers.trainer"]
)
def test_a_program_that_never_imports_projclust_loads_what_it_wrote(
    first: str, installed: dict[str, str], compressed_folder: Path
) -> None:
    code = f"""
import sys, {first}
from transformers import AutoModel
print(type(AutoModel.from_pretrained(sys.argv[1]).get_input_embeddings()).__name__)
print(*[finder for finder in sys.meta_path if type(finder).__module__ == "projclust._registration"])
"""
    command = [sys.executable, "-c", code, str(compressed_folder)]
    result = subprocess.run(command, env=installed, capture_output=True, text=True, check=False)
    assert result.stdout == "ProjectiveEmbedding\n\n", result.stderr


def test_torch_alone_is_imported_as_ever(installed: dict[str, str]) -> None:
    code = "import sys, torch; print(sorted(name for name in sys.modules if name.startswith(('projclust', 'transformers'))))"
    result = subprocess.run([sys.executable, "-c", code], env=installed, capture_output=True, text=True, check=False)
    assert result.stdout == "['projclust', 'projclust._registration']\n", result.stderr
