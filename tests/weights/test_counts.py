from pathlib import Path

import pytest

from projclust import ProjclustError
from projclust.weights.counts import read_counts

VOCABULARY = {"the": 0, "cat": 1, "\t": 2}


def read(path: Path, text: str | bytes) -> list[float]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_counts(path, 3, lambda: VOCABULARY).tolist()


def test_a_number_for_each_row(tmp_path: Path) -> None:
    assert read(tmp_path / "c", "3\n0\n1e2\n") == [0.03, 0.0, 1.0]
    assert read(tmp_path / "c", "\ufeff3\r\n0\r\n1.5") == [1.0, 0.0, 0.5]


def test_tokens_and_numbers(tmp_path: Path) -> None:
    assert read(tmp_path / "c", "cat\t2\nthe\t5\ncat\t1\n") == [1.0, 0.6, 0.0]
    assert read(tmp_path / "c", "\t\t4\n") == [0.0, 0.0, 1.0]  # the token is itself a tab


def test_tokens_with_line_breaks_in_them(tmp_path: Path) -> None:
    known = {"\n": 0, "\n\n": 1, "a\nb": 2, "\r": 3}
    (tmp_path / "c").write_bytes(b"\n\t1\n\r\t4\n\n\n\t2\na\nb\t3\n")
    assert read_counts(tmp_path / "c", 4, lambda: known).tolist() == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\n", "has 2 lines, but the table has 3 rows"),
        ("", "has 0 lines"),
        ("1\n-2\n3\n", "line 2: '-2' is not a number"),
        ("1\nnan\n3\n", "line 2"),
        ("1\ninf\n3\n", "line 2"),
        ("1\n2\nx\n", "line 3: 'x' is not a number"),
        ("0\n0\n0\n", "all zero"),
        ("dog\t3\n", "line 1: 'dog\\\\t3' is not a token"),
        ("the\t3\ncat\n", "line 2"),
        ("the\t3\ncat\nthe\t4\n", "line 2: 'cat\\\\nthe\\\\t4' is not a token"),
        ("the\tmany\n", "'many' is not a number"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_refuses_other_files(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ProjclustError, match=message):
        read(tmp_path / "c", text)


def test_refuses_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ProjclustError, match="cannot read"):
        read_counts(tmp_path, 3, dict)
    with pytest.raises(ProjclustError, match="cannot read"):
        read_counts(tmp_path / "absent", 3, dict)
