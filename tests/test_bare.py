"""Beside torch, transformers and safetensors alone, as `pip install --no-deps projclust` leaves it, checkpoints load."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from commandline import snapshot
from transformers import AutoModelForMaskedLM

# All that pyproject.toml names but these three, and what transformers itself stands on.
HIDDEN = (
    *(
        "accelerate",
        "datasets",
        "evaluate",
        "joblib",
        "markdown_it",
        "matplotlib",
        "numba",
        "google",
        "pyarrow",
        "rich",
    ),
    *("sklearn", "scipy", "sentencepiece", "typer", "wordfreq"),
)
BEGIN = f"""
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
hidden = set({HIDDEN!r})
PathFinder.find_spec = staticmethod(
    lambda name, path=None, target=None: None if name.partition(".")[0] in hidden else find(name, path, target)
)
"""


def bare(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BEGIN + code, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    )


def test_checkpoints_load_answer_and_are_saved(
    compressed_folder: Path, coded_folder: Path, int8_folder: Path, tmp_path: Path
) -> None:
    code = """
import projclust, torch
from transformers import AutoModelForMaskedLM
for folder in sys.argv[2:]:
    model = AutoModelForMaskedLM.from_pretrained(folder)
    outputs = model(torch.arange(12).reshape(2, 6)).logits.detach()
    torch.save(outputs, sys.argv[1] + "/" + folder.rpartition("/")[2])
    model.save_pretrained(folder + "-again")
assert not hidden & set(sys.modules), hidden & set(sys.modules)
"""
    (tmp_path / "outputs").mkdir()
    folders = (compressed_folder, coded_folder, int8_folder)
    done = bare(code, tmp_path / "outputs", *folders)
    assert done.returncode == 0, done.stderr
    for folder in folders:
        model = AutoModelForMaskedLM.from_pretrained(folder)
        expected = model(torch.arange(12).reshape(2, 6)).logits
        assert torch.allclose(torch.load(tmp_path / "outputs" / folder.name), expected, atol=1e-5)
        again = snapshot(folder.with_name(f"{folder.name}-again"))
        assert again["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_what_needs_more_says_so(compressed_folder: Path) -> None:
    done = bare("import projclust; projclust.ProjectiveClustering")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: projclust.ProjectiveClustering needs the package sklearn: `pip install projclust` installs "
        "all that it needs"
    )
    program = "sys.argv = ['projclust', *sys.argv[1:]]\nfrom projclust.cli import main; main()"
    command = bare(program, "inspect", compressed_folder)
    assert (command.returncode, command.stdout) == (1, "")
    assert command.stderr == (
        "error: typer is not installed: `pip install projclust` installs all that commands need\n"
    )
    job = bare(f"hidden -= {{'typer', 'rich', 'joblib'}}\n{program}", "compress", compressed_folder, "--bits", 0.5)
    assert (job.returncode, job.stdout) == (1, "")
    assert job.stderr == "error: accelerate is not installed: `pip install projclust` installs all that commands need\n"
