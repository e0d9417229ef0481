"""Run the notebooks of docs/notebooks, and keep what they print and draw in them.

python scripts/run_notebooks.py

Needs the extras `notebooks` and `demo`. The tests run them as well, and keep nothing.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def ran(path: Path, folder: Path) -> Any:
    """The notebook with the outputs of its cells, run in a folder; progress bars and warnings are left out.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=120, resources=where)
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = _without_warnings(cell.outputs)
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec}
    return notebook


def _without_warnings(outputs: list[Any]) -> list[Any]:
    """The outputs but what went to stderr, which may have cut what was printed in two."""
    kept: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].output_type == "stream" and output.name == "stdout":
            kept[-1].text += output.text
        elif output.get("name") != "stderr":
            kept.append(output)
    return kept


def main() -> None:
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(ran(path, Path(folder)), path)
        print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
