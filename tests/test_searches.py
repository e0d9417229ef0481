"""The searches that show what compression costs: benchmarks/search_verses.py, the quickstart's, and search_docs.py."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import search_docs
import search_verses
import torch
from search_verses import Found, found_first, sample, verse_pairs, verses

from projclust.cli.app import run


def bible(shift: int = 0) -> SimpleNamespace:
    """Fifty verses, said to begin and end so many characters later than they do."""
    texts = [f" And verse {'so' * number} was read." for number in range(50)]
    ends = [len("".join(texts[: number + 1])) for number in range(50)]
    starts = [0, *ends[:-1]]
    return SimpleNamespace(
        scripture_content="".join(texts),
        verse_start_indices={number: start + shift for number, start in enumerate(starts)},
        verse_end_indices={number: end + shift for number, end in enumerate(ends)},
    )


def test_verses_are_cut_where_they_end() -> None:
    assert verses(bible())[3] == "And verse sososo was read."
    with pytest.raises(ValueError, match="not cut where they end"):
        verses(bible(shift=4))


def test_translations_hold_the_same_verses() -> None:
    pairs = verse_pairs()
    assert len(pairs) > 30_000
    assert ("Jesus wept.", "Jesus wept.") in pairs
    first = "In the beginning God created the heavens and the earth."
    assert dict(pairs)[first] == "In the beginning of God`s preparing the heavens and the earth --"

    def alike(second: int) -> int:
        """How many of the verses share a name with those so many verses on in the other translation."""
        names = [[{word for word in text.split()[1:] if word[0].isupper()} for text in pair] for pair in pairs]
        return sum(bool(one & other) for (one, _), (_, other) in zip(names, names[second:], strict=False))

    assert alike(0) > 2 * alike(1)


def test_no_query_has_two_right_answers() -> None:
    pairs = [("a", "1"), ("b", "2"), ("b", "3"), ("c", "1"), ("d", "4"), ("e", "5")]
    assert sorted(sample(pairs, 9)) == [("d", "4"), ("e", "5")]
    many = [(f"q{number}", f"a{number}") for number in range(100)]
    assert sample(many, 10) == sample(many, 10) != sample(many, 10, seed=1)


def test_a_pair_counts_by_half_where_one_way_leads_back() -> None:
    first = torch.eye(3)
    second = torch.tensor([[1.0, 0, 0], [0, 0.6, 0.8], [0, 0, 1]])
    assert found_first(first, second).tolist() == [1, 0.5, 1]


def test_points_lost_are_paired() -> None:
    dense = Found("dense", 8, torch.tensor([1.0, 1, 0, 1]))
    coded = Found("coded", 1, torch.tensor([1.0, 0.5, 0, 1]))
    assert dense.percent == 75
    assert dense.error == pytest.approx(25)
    lost, error = coded.loss_against(dense)
    assert lost == pytest.approx(12.5)
    assert error == pytest.approx(25 / math.sqrt(4))


def test_a_search_prints_every_model(tiny_classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, size in (("bits", ["--bits", "4"]), ("svd", ["--method", "svd", "--j", "6"])):
        assert run(["compress", str(tiny_classifier), *size, "-o", str(tmp_path / name)]) == 0
    capsys.readouterr()
    pairs = [(f"the film was {word}", f"a {word} film") for word in ("good", "bad", "long", "short", "dull", "funny")]
    search_verses.print_found(pairs, tiny_classifier, [tmp_path / "bits", tmp_path / "svd"])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[2:]] == ["dense", "auto, 4.00 bits", "svd, j=6"]
    assert [row[4] == "-" for row in rows[2:]] == [True, False, False]
    assert float(rows[3][2].rstrip("x")) == pytest.approx(8, rel=0.1)


SOURCE = '''
def scale(x):
    r"""Scale every row of `x` to unit length.

    Rows of zeros *stay* as they are. {words}
    """

def short():
    """Scale every row to unit length."""

def long():
    """{words}

    {words}
    """
'''


def test_docstrings_are_cut_into_summary_and_rest() -> None:
    found = [search_docs.pair_of(text) for text in search_docs.docstrings(SOURCE.format(words="more " * 70))]
    assert found[1:] == [None, None]
    assert found[0] is not None
    summary, rest = found[0]
    assert summary == "Scale every row of `x` to unit length."
    assert rest.startswith("Rows of zeros stay as they are. more")
    assert len(rest.split()) == 60
