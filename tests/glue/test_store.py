import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from results_samples import make_row

from projclust.errors import ProjclustError
from projclust.glue.store import CellStore, identity_hash

ROW = make_row("cola", "projective", label="projective, k=3/x", settings_hash="ab" * 32, weights="uniform")


@pytest.fixture
def store(tmp_path: Path) -> CellStore:
    return CellStore(tmp_path)


def test_what_is_written_is_read_again(store: CellStore) -> None:
    path = store.path("cola", "projective, k=3/x", 0, "ab" * 32)
    assert store.read(path) is None
    store.write(ROW)
    assert store.read(path) == ROW
    assert path.parent == store.folder
    assert store.all() == [ROW]


def test_hashes_depend_on_content_and_not_on_order() -> None:
    assert identity_hash({"a": 1, "b": [2.0, None]}) == identity_hash({"b": [2.0, None], "a": 1})
    assert identity_hash({"a": 1}) != identity_hash({"a": 2})
    assert identity_hash({"a": 1}) != identity_hash({"a": 1, "b": None})


def test_cells_of_other_settings_stand_beside_each_other(store: CellStore) -> None:
    store.write(ROW)
    store.write(replace(ROW, settings_hash="cd" * 32))
    assert len(store.all()) == 2


def test_a_write_that_fails_leaves_the_old_cell(store: CellStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(ROW)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write(replace(ROW, relative_error=2.0))
    assert store.all() == [ROW]


def test_a_number_that_is_none_is_never_written(store: CellStore) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.write(replace(ROW, relative_error=float("nan")))
    assert store.all() == []


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"task": "cola"}'])
def test_a_damaged_cell_is_refused_by_name(store: CellStore, content: str) -> None:
    path = store.path("cola", "dense", 0, "ab" * 32)
    path.write_text(content)
    with pytest.raises(ProjclustError, match=f"{path.name}.*delete it"):
        store.read(path)


def test_a_cell_is_the_row_of_results(store: CellStore) -> None:
    store.write(ROW)
    (path,) = store.folder.iterdir()
    assert json.loads(path.read_text()) == ROW.as_json()


def test_a_cell_of_a_later_version_can_be_read(store: CellStore) -> None:
    later = replace(ROW, method="magic", extra={"carbon": 3})
    store.write(later)
    assert store.all() == [later]
