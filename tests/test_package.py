"""What `import projclust` offers, and what it does not do yet."""

import importlib
import subprocess
import sys

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
