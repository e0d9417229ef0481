"""The tables that codes are looked up in are part of the stored format."""

import math

import pytest
import torch
from safetensors.torch import load_file

from projclust.coding.codebooks import (
    CODEBOOKS_FILE,
    FIRST_TABLE,
    KINDS,
    NONE,
    NUMBER_OF,
    SCALAR,
    TRELLIS,
    decode_tables,
    is_integer,
    needs_search,
)
from projclust.coding.trellis import search

INT4, INT8 = NUMBER_OF["int4"], NUMBER_OF["int8"]


def test_numbers_of_kinds_are_the_stored_format() -> None:
    # A checkpoint holds these numbers: what follows may be appended to, never changed.
    assert [(kind.name, kind.bits, kind.values) for kind in KINDS[:13]] == [
        ("none", 0, 1),
        ("trellis-1/4", 1, 4),
        ("trellis-1/2", 1, 2),
        ("trellis-1", 1, 1),
        ("trellis-2", 2, 1),
        ("trellis-3", 3, 1),
        ("trellis-4", 4, 1),
        ("int4", 4, 1),
        ("int8", 8, 1),
        ("scalar-1", 1, 1),
        ("scalar-2", 2, 1),
        ("scalar-3", 3, 1),
        ("scalar-4", 4, 1),
    ]
    assert len(KINDS) <= 16  # they are stored in four bits
    assert FIRST_TABLE == (0, 1, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)
    assert (NONE, INT4, INT8) == (0, 7, 8)


# Sums of value * (state + 1), exact in float64, of the tables as they are: another table decodes other rows.
GOLDEN = {
    "none": [0.0],
    "trellis-1/4": [188.1876220703125, 198.56950855255127, 79.10206604003906, -352.150443315506],
    "trellis-1/2": [48.04328918457031, -178.135009765625],
    "trellis-1": [8.902236938476562],
    "trellis-2": [214.5029239654541],
    "trellis-3": [259.1068534851074],
    "trellis-4": [72.24603652954102],
    "int4": [-11008.0],
    "int8": [1381632.0],
    "scalar-1": [102.125],
    "scalar-2": [321.046875],
    "scalar-3": [778.02734375],
    "scalar-4": [1733.51953125],
}


def test_values_of_tables_are_the_stored_format() -> None:
    tables = decode_tables().double()
    place = torch.arange(1, 257, dtype=torch.float64)
    found = {
        kind.name: [float(row @ place) for row in tables[first : first + kind.values]]
        for kind, first in zip(KINDS, FIRST_TABLE, strict=True)
    }
    assert found == GOLDEN


def test_tables_are_those_of_the_file() -> None:
    tables, stored = decode_tables(), load_file(CODEBOOKS_FILE)
    assert tables.shape == (17, 256)
    named = {kind.name for kind in KINDS if kind.name.startswith(("trellis", "scalar"))}
    assert set(stored) == named
    for kind, first in zip(KINDS, FIRST_TABLE, strict=True):
        if kind.name in stored:
            own = stored[kind.name].float()
            assert own.shape == (kind.values, 256 if kind.name.startswith("trellis") else 1 << kind.bits)
            assert torch.equal(tables[first : first + kind.values, : own.shape[1]], own)


@pytest.mark.parametrize("kind", [*SCALAR, INT4, INT8])
def test_scalars_and_integers_look_at_their_own_bits_only(kind: int) -> None:
    table = decode_tables()[FIRST_TABLE[kind]]
    own = 1 << KINDS[kind].bits
    assert torch.equal(table, table[:own].repeat(256 // own))
    assert not needs_search(kind)


def test_integers_by_hand() -> None:
    tables = decode_tables()
    assert tables[FIRST_TABLE[INT8], [0, 128, 255]].tolist() == [-128.0, 0.0, 127.0]
    assert tables[FIRST_TABLE[INT4], [0, 8, 15, 0xF8]].tolist() == [-8.0, 0.0, 7.0, 0.0]
    assert [kind for kind in range(len(KINDS)) if is_integer(kind)] == [INT4, INT8]
    assert not decode_tables()[FIRST_TABLE[NONE]].any()


@pytest.mark.parametrize("kind", [kind for kind in SCALAR if kind != INT8])
def test_scalar_levels_are_fixed_points_of_lloyd_and_max(kind: int) -> None:
    levels = decode_tables()[FIRST_TABLE[kind], : 1 << KINDS[kind].bits].double()
    edges = torch.cat([levels.new_tensor([-math.inf]), (levels[1:] + levels[:-1]) / 2, levels.new_tensor([math.inf])])
    density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
    mass = torch.special.ndtr(edges).diff()
    centroids = -density.diff() / mass
    assert torch.allclose(levels, centroids, atol=2e-3)  # the file holds half precision
    assert torch.equal(levels, levels.sort().values)
    assert torch.allclose(levels, -levels.flip(0), atol=1e-3)
    # E(x - q)^2 = 1 - E q^2 of centroids.
    assert 1 - float(mass @ centroids.square()) == pytest.approx(KINDS[kind].distortion, abs=1e-4)


def test_more_bits_are_less_distortion_and_none_beats_the_bound() -> None:
    for kinds in (TRELLIS, SCALAR):
        rates, distortions = [KINDS[kind].rate for kind in kinds], [KINDS[kind].distortion for kind in kinds]
        assert rates == sorted(rates)
        assert distortions == sorted(distortions, reverse=True)
        assert all(error > 4.0**-rate for rate, error in zip(rates, distortions, strict=True))
    for rate in (1, 2, 3, 4):
        by_name = {kind.name: kind.distortion for kind in KINDS}
        assert by_name[f"trellis-{rate}"] < by_name[f"scalar-{rate}"]


@pytest.mark.parametrize("kind", [kind for kind in TRELLIS if kind != INT8])
def test_a_trellis_value_is_near_the_mean_of_what_it_codes(kind: int) -> None:
    values = KINDS[kind].values
    rows = torch.randn(1500, 40 * values, generator=torch.Generator().manual_seed(5))
    states = search(rows, [kind] * rows.shape[1], torch.ones(rows.shape[1]))[:, 8:].long().flatten()
    coded = rows.view(1500, 40, values)[:, 8:].reshape(-1, values)
    counts = torch.bincount(states, minlength=256).unsqueeze(1)
    means = torch.zeros(256, values).index_add_(0, states, coded) / counts.clamp(min=1)
    book = decode_tables()[FIRST_TABLE[kind] : FIRST_TABLE[kind] + values].T
    gap = ((means - book).square() * counts).sum() / (counts.sum() * values)
    assert gap < 0.01
