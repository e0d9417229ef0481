import pytest
import torch
from coded_tables import bits_of, decode_bits, row_bits

from projclust import ProjclustError
from projclust.coding.codebooks import FIRST_TABLE, KINDS
from projclust.coding.decode import unit_coordinates, windows_of
from projclust.coding.layout import class_layouts, row_starts


def test_a_mixed_row_by_hand() -> None:
    (layout,) = class_layouts(torch.tensor([[3, 0, 8, 1, 3, 1]], dtype=torch.uint8))
    # By kind, then by number: two coordinates share one bit, then one bit each, then eight.
    assert layout.coded.tolist() == [3, 5, 0, 4, 2]
    assert layout.kinds == [1, 1, 3, 3, 8]
    assert layout.byte.tolist() == [0, 0, 0, 0, 0]
    assert layout.shift.tolist() == [15, 15, 14, 13, 5]  # they end with the 1st, 1st, 2nd, 3rd and 11th bit of 16
    assert layout.entry.tolist() == [256 * table for table in (1, 2, FIRST_TABLE[3], FIRST_TABLE[3], FIRST_TABLE[8])]
    assert layout.row_bytes == 2


@pytest.mark.parametrize(
    ("kinds", "byte", "shift", "row_bytes"),
    [
        ([8, 8, 8], [0, 1, 2], [8, 8, 8], 3),
        ([5] * 6, [0, 0, 0, 0, 0, 1], [13, 10, 7, 4, 1, 6], 3),
        ([7, 7, 7], [0, 0, 0], [12, 8, 4], 2),
        ([2] * 5, [0] * 5, [15, 15, 14, 14, 13], 1),
        ([0, 0], [], [], 0),
        ([], [], [], 0),
    ],
)
def test_windows_by_hand(kinds: list[int], byte: list[int], shift: list[int], row_bytes: int) -> None:
    (layout,) = class_layouts(torch.tensor([kinds], dtype=torch.uint8))
    assert (layout.byte.tolist(), layout.shift.tolist(), layout.row_bytes) == (byte, shift, row_bytes)


def test_starts_by_hand() -> None:
    starts = row_starts(torch.tensor([1, 0, 1, 2, 0]), [2, 0, 3])
    assert starts.tolist() == [4, 0, 4, 4, 2]  # class after class; in vocabulary order inside each
    assert starts.dtype == torch.int32
    assert row_starts(torch.tensor([0, 0]), [2**30]).dtype == torch.int64
    assert row_starts(torch.tensor([0, 0]), [2**30]).tolist() == [0, 2**30]
    assert row_starts(torch.tensor([2, 2], dtype=torch.uint8), [5, 5, 1]).tolist() == [0, 1]  # empty classes


def test_a_kind_there_is_not_is_refused() -> None:
    with pytest.raises(ProjclustError, match="no code of kind 13"):
        class_layouts(torch.tensor([[1, len(KINDS)]], dtype=torch.uint8))


@pytest.mark.parametrize("seed", range(12))
def test_any_bytes_decode_as_bit_by_bit(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rank, classes = 11, 4
    kinds = torch.randint(0, len(KINDS), (classes, rank), generator=generator, dtype=torch.uint8)
    kinds[3] = 0  # rows without a byte
    kinds[:, seed % rank] = 0
    if seed == 0:
        kinds[:] = 0  # no row has one
    layouts = class_layouts(kinds)
    assert [layout.row_bytes for layout in layouts] == [-(-row_bits(row) // 8) for row in kinds]
    ids = torch.randint(0, classes, (30,), generator=generator)
    lengths = [layout.row_bytes for layout in layouts]
    codes = torch.randint(0, 256, (sum(lengths[number] for number in ids),), generator=generator, dtype=torch.uint8)
    starts = row_starts(ids, lengths)
    found = unit_coordinates(codes, windows_of(layouts, rank), starts, ids)
    for row in range(30):
        layout, start = layouts[int(ids[row])], int(starts[row])
        expected = torch.zeros(rank)
        bits = bits_of(codes[start : start + layout.row_bytes])
        expected[layout.coded] = torch.tensor(decode_bits(bits, layout.kinds))
        assert torch.equal(found[row], expected)


def test_rows_lie_side_by_side_and_fill_the_codes() -> None:
    ids, lengths = torch.tensor([0, 2, 1, 2, 0, 1, 1]), [3, 1, 4]
    taken = sorted((int(s), int(s) + lengths[c]) for s, c in zip(row_starts(ids, lengths), ids.tolist(), strict=True))
    assert [start for start, _ in taken] == [0, *(end for _, end in taken[:-1])]
    assert taken[-1][1] == sum(lengths[c] for c in ids.tolist())
