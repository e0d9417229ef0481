"""The package as it is installed from a wheel, in an environment that does not see the source tree."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from tiny_models import tiny_model

ROOT = Path(__file__).parents[1]

# `compress` ran as a command; this is what a user does next.
LOAD = """
import sys, torch, projclust
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1])
assert type(model.get_input_embeddings()).__name__ == "CodedEmbedding"
assert model(input_ids=torch.tensor([[3, 4, 5]])).last_hidden_state.isfinite().all()
print(projclust.__file__)
"""

# And what a program does that knows nothing of projclust.
LOAD_UNAWARE = LOAD.replace(", projclust\n", "\n").replace("projclust.__file__", "sys.modules['projclust'].__file__")


def files_of_the_tree() -> list[str]:
    """What git tracks, or would on the next commit, of the package."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "projclust"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs git and its work tree to say what belongs to the package")
    return sorted(name for name in set(listed.stdout.splitlines()) if (ROOT / name).is_file())


def run(*command: str | Path, cwd: Path) -> str:
    """What the command prints, run where no variable leads back to the source tree."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no earlier build adds files to it, and with the setuptools that is installed."""
    work = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", *files_of_the_tree()):
        (work / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, work / "tree" / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "built", "./tree", cwd=work)
    (built,) = (work / "built").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a virtual environment with the wheel, and with our own for everything else.

    Folders that a .pth file names are searched, but .pth files in them, such as that of an editable install, are not
    read.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    inside = {"base": str(folder), "platbase": str(folder)}
    programs, packages = (Path(sysconfig.get_path(name, "venv", inside)) for name in ("scripts", "purelib"))
    ours = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "ours.pth").write_text("\n".join(ours), encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", programs / "python")
    run(*pip, "install", "--no-deps", "--no-index", "--force-reinstall", wheel, cwd=folder)
    return programs


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = set(files_of_the_tree())
    assert ours - packed == set()
    assert packed - ours == set()


def test_the_installed_command_compresses_and_automodel_reads_it(environment: Path, tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path / "dense")
    command = (environment / "projclust", "compress", "dense", "--bits", "6", "--weights", "uniform")
    run(*command, "-o", "small", cwd=tmp_path)
    for program in (LOAD, LOAD_UNAWARE):
        home = run(environment / "python", "-c", program, "small", cwd=tmp_path)
        assert Path(home).is_relative_to(environment.parent)
