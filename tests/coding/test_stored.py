from math import prod

import pytest
import torch
from coded_tables import gaussian
from torch import Tensor

from projclust import ProjclustError
from projclust.coding.codebooks import KINDS
from projclust.coding.packing import float_bits
from projclust.coding.stored import (
    SideTables,
    read_classes,
    read_side_tables,
    store_classes,
    store_side_tables,
    stored_decoders,
    stored_means,
)
from projclust.shapes import CodedShape


def random_tables(classes: int, rank: int, d: int, decoders: int, affine: bool, seed: int, size: float) -> SideTables:
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(0, len(KINDS), (classes, rank), generator=generator, dtype=torch.uint8)
    deviations = size * torch.randn(classes, rank, generator=generator).mul(2).exp() * (kinds != 0)
    return SideTables(
        kinds,
        deviations,
        size * torch.randn(classes, d, generator=generator) if affine else None,
        torch.randn(decoders, rank, d, generator=generator),
    )


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("classes", "rank", "d", "decoders"), [(1, 1, 1, 1), (5, 7, 9, 1), (17, 6, 12, 17), (4, 3, 5, 2)]
)
def test_bytes_read_and_stored_again_are_the_same_bytes(
    classes: int, rank: int, d: int, decoders: int, bits: int, affine: bool, size: float
) -> None:
    for seed in range(4):
        stored, read = store_side_tables(random_tables(classes, rank, d, decoders, affine, seed, size), bits)
        again, reread = store_side_tables(read, bits)
        assert all(torch.equal(again[name], stored[name]) for name in stored)
        assert torch.equal(reread.deviations, read.deviations)
        assert torch.equal(reread.decoders, read.decoders)
        coded = int((read.kinds != 0).sum())
        shapes = CodedShape(50, d, classes, rank, decoders, bits, affine, coded, 123).stored
        assert set(stored) == set(shapes) - {"weight", "classes"}
        for name, tensor in stored.items():
            assert tensor.dtype == torch.uint8
            assert tuple(tensor.shape) == shapes[name], name


def test_numbers_by_hand() -> None:
    tables = SideTables(
        torch.tensor([[3, 0, 8]], dtype=torch.uint8),
        torch.tensor([[2.0, 0.0, 0.5]]),
        torch.tensor([[127.0, -63.5]]),
        torch.tensor([[[7.0, -3.5], [0.0, 0.0], [1.75, 0.0]]]),
    )
    stored, read = store_side_tables(tables, 4)
    assert stored["kinds"].tolist() == [[0x30, 0x80]]
    assert stored["gains"].tolist() == float_bits(torch.tensor([2.0]), torch.bfloat16).tolist()
    assert stored["deviations"].tolist() == [0, 32]  # sixteen steps an octave
    assert stored["means"].tolist() == [[255, 64]]  # -63.5 rounds to even
    assert stored["decoder"].tolist() == [[[0xF4], [0x88], [0xF8]]]
    assert stored["decoder_scales"].tolist() == float_bits(torch.tensor([[1.0, 0.0, 0.25]]), torch.float16).tolist()
    assert read.deviations.tolist() == [[2.0, 0.0, 0.5]]
    assert read.decoders.tolist() == [[[7.0, -4.0], [0.0, 0.0], [1.75, 0.0]]]
    assert read.means is not None
    assert read.means.tolist() == [[127.0, -64.0]]
    assert read.layouts()[0].coded.tolist() == [0, 2]


def test_rounding_errors_are_those_of_the_widths() -> None:
    rows = gaussian(1, 40, 64)
    largest = rows.abs().amax(-1, keepdim=True)
    assert bool(((stored_decoders(rows, 8) - rows).abs() <= 0.51 * largest / 127).all())
    clipped = stored_decoders(rows, 4)
    plain = (rows / largest * 7).round() * largest / 7
    # Cutting off serves most rows, and harms none.
    ours, theirs = ((read - rows).square().sum(-1) for read in (clipped, plain))
    assert bool((ours <= theirs * 1.001).all())
    assert float(ours.sum()) < 0.9 * float(theirs.sum())
    means = gaussian(5, 30)
    assert bool(((stored_means(means) - means).abs() <= 0.52 * means.abs().amax(1, keepdim=True) / 127 * 1.01).all())
    # What was chosen is stored as it is.
    tables = SideTables(torch.ones(1, 40, dtype=torch.uint8), torch.ones(1, 40), None, clipped)
    assert torch.equal(store_side_tables(tables, 4)[1].decoders, clipped)


@pytest.mark.parametrize(("classes", "count"), [(1, 0), (2, 13), (16, 13), (17, 25), (256, 25)])
def test_class_ids_come_back_in_the_documented_bytes(classes: int, count: int) -> None:
    ids = torch.randint(0, classes, (25,), generator=torch.Generator().manual_seed(0))
    ids[0] = classes - 1
    stored = store_classes(ids, classes)
    assert sum(tensor.numel() for tensor in stored.values()) == count
    shapes = CodedShape(25, 4, classes, 2, 1, 4, True, 3, 9).stored
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {
        name: shape for name, shape in shapes.items() if name == "classes"
    }
    stored["weight"] = torch.empty(0, dtype=torch.uint8)
    assert torch.equal(read_classes(stored, 25, classes), ids)


def test_bytes_of_a_shape_by_hand() -> None:
    shape = CodedShape(n=7, d=5, classes=3, rank=4, decoders=2, decoder_bits=4, affine=True, coded=6, code_bytes=30)
    assert shape.bytes == 30 + 4 + 3 * 2 + 6 + 3 * 2 + 3 * 5 + 3 * 2 + 2 * 4 * 3 + 2 * 4 * 2
    assert shape.bytes == sum(map(prod, shape.stored.values()))
    plain = CodedShape(n=7, d=5, classes=1, rank=4, decoders=1, decoder_bits=8, affine=False, coded=4, code_bytes=30)
    assert plain.bytes == 30 + 2 + 4 + 2 + 4 * 5 + 4 * 2
    assert set(plain.stored) == {"weight", "kinds", "deviations", "gains", "decoder", "decoder_scales"}


def test_bytes_that_contradict_each_other_are_refused() -> None:
    stored, _ = store_side_tables(random_tables(3, 5, 6, 1, True, 0, 1.0), 4)
    with pytest.raises(ProjclustError, match="not one deviation for each coordinate"):
        read_side_tables({**stored, "deviations": stored["deviations"][1:]}, 5, 6, 4)
    with pytest.raises(ProjclustError, match=r"class id lies outside 0 \.\. 2"):
        read_classes({"classes": torch.tensor([0x01, 0x23], dtype=torch.uint8)}, 4, 3)
    # What fills up the last byte is no id.
    assert read_classes({"classes": torch.tensor([0x01, 0x2F], dtype=torch.uint8)}, 3, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("values", [[0.0, 0.0], [-0.0, 0.0]])
def test_rows_of_zeros_stay_zeros(values: list[float]) -> None:
    zeros = Tensor(values)
    assert not stored_means(zeros.unsqueeze(0)).any()
    assert not stored_decoders(zeros.view(1, 1, 2), 4).any()
    tables = SideTables(torch.tensor([[1]], dtype=torch.uint8), torch.zeros(1, 1), None, zeros.view(1, 1, 2))
    stored, read = store_side_tables(tables, 4)
    assert not read.deviations.any()
    assert torch.equal(store_side_tables(read, 4)[0]["deviations"], stored["deviations"])
