"""Rows as integers with scales: by hand, and again and again to the same bytes."""

import pytest
import torch

from projclust.coding.integers import (
    CLIPPING,
    codes_of,
    pack_rows,
    packed_row_bytes,
    round_to_levels,
    scales_of,
    unpack_rows,
)
from projclust.options import Codes


def test_a_row_of_eight_bits_by_hand() -> None:
    # The largest number becomes -128 levels, so the scale is -1/128 of it, and a power of two has no rounding.
    packed = pack_rows(torch.tensor([[1.0, -0.5, 0.0, 0.25]]), Codes.INT8)
    assert packed.tolist() == [[0, 192, 128, 96, 0, 188]]  # bfloat16 of -1/128 is 0xBC00
    assert scales_of(packed, 4).tolist() == [[-1 / 128]]
    assert unpack_rows(packed, 4, torch.float32).tolist() == [[1.0, -0.5, 0.0, 0.25]]


def test_groups_of_four_bits_by_hand() -> None:
    row = torch.zeros(1, 33)
    row[0, 0], row[0, 1], row[0, 32] = 8.0, -7.0, 3.0  # the last group is one number
    packed = pack_rows(row, Codes.INT4)
    assert packed.shape == (1, packed_row_bytes(33, Codes.INT4)) == (1, 17 + 2 * 2)
    assert packed[0, 0] == 0x0F  # levels -8 and 7, plus 8
    assert scales_of(packed, 33).tolist() == [[-1.0, -0.375]]
    assert torch.equal(unpack_rows(packed, 33, torch.float32), row)


@pytest.mark.parametrize("codes", [Codes.INT8, Codes.INT4])
@pytest.mark.parametrize("columns", [2, 7, 32, 33, 96, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_known_scales_give_the_same_bytes_again(codes: Codes, columns: int, dtype: torch.dtype, size: float) -> None:
    if dtype == torch.float16 and size != 1.0:
        size = 1e-2 if size < 1 else 1e3
    rows = size * torch.randn(600, columns, generator=torch.Generator().manual_seed(0))
    rows[3] = 0
    packed = pack_rows(rows, codes)
    assert codes_of(packed, columns) == codes
    assert packed.shape[1] == packed_row_bytes(columns, codes)
    kept = unpack_rows(packed, columns, dtype)
    assert torch.equal(pack_rows(kept, codes, scales_of(packed, columns)), packed)
    error = float((kept.double() - rows).square().sum() / rows.double().square().sum())
    assert error < (1e-3 if codes == Codes.INT8 else 1.5e-2)


def test_a_scale_is_searched_among_those_that_clip() -> None:
    values = torch.cat([torch.tensor([[10.0]]), torch.full((1, 31), 0.7)], 1)
    plain, scale = round_to_levels(values, 4, (1.0,), lambda scale: scale)
    clipped, own = round_to_levels(values, 4, CLIPPING, lambda scale: scale)
    errors = [float((levels * step - values).square().sum()) for levels, step in ((plain, scale), (clipped, own))]
    assert errors[1] < errors[0]


def test_rows_of_another_width_are_never_taken_for_packed_ones() -> None:
    with pytest.raises(ValueError, match="are never packed into"):
        codes_of(torch.zeros(3, 40, dtype=torch.uint8), 40)
