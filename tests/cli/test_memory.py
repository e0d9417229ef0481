"""What compress and plan hold at their peak, in tables; benchmarks/memory.py measures larger ones."""

import sys
from pathlib import Path

import pytest
from memory import measured, save_model
from process_memory import RETURN_MEMORY

ROWS, WIDTH = 80_000, 128

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model that is nearly all table, of 41 MB, and a tiny one."""
    root = tmp_path_factory.mktemp("memory")
    return save_model(root / "model", ROWS, WIDTH), save_model(root / "tiny", 2000, 64)


# The table itself, mapped, is one; beyond it a table of this size leaves room for blocks of a few megabytes, but not
# for a copy of it.
@pytest.mark.parametrize(("command", "most"), [("compress --bits 0.5", 2.2), ("plan --bits 0.5", 2.75)])
def test_no_copy_of_the_table_is_made(folders: tuple[Path, Path], command: str, most: float) -> None:
    environment = {**RETURN_MEMORY, "OMP_NUM_THREADS": "2"}
    peak = measured(command, *folders, 4 * ROWS * WIDTH, environment=environment)
    assert peak.resident < most, peak
