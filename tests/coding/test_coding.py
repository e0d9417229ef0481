import itertools

import pytest
import torch
from coded_tables import embedding_of, falling_weights, gaussian, rebuilt, relative_error, skewed_table
from torch import Tensor

from projclust import ProjclustError
from projclust.coding.codebooks import KINDS, NONE, NUMBER_OF, SCALAR, TRELLIS
from projclust.coding.fit import Coder, code_clusters, fit_coded
from projclust.coding.packing import unpack_nibbles
from projclust.options import Codes
from projclust.shapes import MOST_CLASSES


def same_bytes(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def table() -> Tensor:
    return skewed_table(3000, 48)


def test_sizes_are_met_from_below_and_errors_fall(table: Tensor) -> None:
    errors = []
    for bits in (0.5, 1.0, 2.5, 6.0):
        budget = int(3000 * 48 * bits / 8)
        coded = fit_coded(table, budget, falling_weights(3000))
        assert {name: tuple(tensor.shape) for name, tensor in coded.stored.items()} == coded.shape.stored
        assert {tensor.dtype for tensor in coded.stored.values()} == {torch.uint8}
        taken = sum(tensor.numel() for tensor in coded.stored.values())
        assert taken == coded.shape.bytes
        assert 0.99 * budget <= taken <= budget
        rows = torch.bincount(coded.classes, minlength=coded.shape.classes)
        assert int(rows @ torch.tensor(coded.row_bytes)) == coded.shape.code_bytes
        assert sum(coded.ranks) == coded.shape.coded
        errors.append(relative_error(table, rebuilt(coded)))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.8
    assert errors[-1] < 0.003


@pytest.mark.parametrize("coder", list(Coder))
def test_the_coder_decides_among_which_codes(table: Tensor, coder: Coder) -> None:
    coded = fit_coded(table[:1000], 1000 * 48 * 3 // 8, falling_weights(1000), coder=coder)
    kinds = set(unpack_nibbles(coded.stored["kinds"], coded.shape.rank).unique().tolist())
    assert len(kinds) > 3
    assert kinds <= {NONE, *(TRELLIS if coder is Coder.TRELLIS else SCALAR)}


def test_trellis_codes_beat_scalar_ones_and_float_rounding_at_equal_bytes(table: Tensor) -> None:
    trellis, scalar = (
        relative_error(table[:1000], rebuilt(fit_coded(table[:1000], 9000, coder=coder))) for coder in Coder
    )
    assert trellis < 0.95 * scalar


def test_row_weights_say_whose_error_counts(table: Tensor) -> None:
    table = table[:1000]
    first = torch.arange(1000) < 500
    errors = []
    for weights in (torch.where(first, 50.0, 1.0), torch.where(first, 1.0, 50.0)):
        found = rebuilt(fit_coded(table, 6000, weights))
        errors.append((relative_error(table[first], found[first]), relative_error(table[~first], found[~first])))
    assert errors[0][0] < 0.8 * errors[0][1]
    assert errors[1][1] < 0.8 * errors[1][0]
    # A scale common to all weights says nothing.
    scaled = fit_coded(table, 6000, torch.where(first, 50.0, 1.0) * 2**10)
    assert same_bytes(scaled.stored, fit_coded(table, 6000, torch.where(first, 50.0, 1.0)).stored)


def test_rows_that_weigh_nothing_are_not_read_as_zeros(table: Tensor) -> None:
    weights = (torch.arange(len(table)) < len(table) // 3).double()
    found = rebuilt(fit_coded(table, table.numel(), weights))
    assert relative_error(table[weights == 0], found[weights == 0]) < 0.3
    assert relative_error(table[weights == 1], found[weights == 1]) < 0.001


def test_rows_are_classed_by_weight_and_heavy_ones_get_longer_codes(table: Tensor) -> None:
    weights = falling_weights(1000)[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    coded = fit_coded(table[:1000], 6000, weights, classes=5)
    sizes = torch.bincount(coded.classes).tolist()
    assert sizes == sorted(sizes)
    assert len(sizes) == 5
    lightest = [float(weights[coded.classes == number].min()) for number in range(5)]
    heaviest = [float(weights[coded.classes == number].max()) for number in range(5)]
    assert all(light >= heavy for light, heavy in zip(lightest, heaviest[1:], strict=False))
    # The first of a handful of rows are near their own mean.
    assert coded.row_bytes[2] > coded.row_bytes[4]


def test_rows_of_equal_weight_are_classed_by_length(table: Tensor) -> None:
    coded = fit_coded(table[:1000], 6000, classes=4)
    lengths = table[:1000].norm(dim=1)
    for number in range(3):
        assert lengths[coded.classes == number].min() >= lengths[coded.classes == number + 1].max()


def test_the_sensitivity_is_honoured(table: Tensor) -> None:
    table = table[:1500]
    rotation = torch.linalg.qr(gaussian(48, 48, seed=9).double())[0]
    sensitivity = rotation * torch.logspace(1, -1, 48, dtype=torch.float64) @ rotation.T
    plain, measured = fit_coded(table, 9000), fit_coded(table, 9000, sensitivity=sensitivity)
    assert measured.shape.bytes <= 9000
    own, other = rebuilt(measured), rebuilt(plain)
    exact = table.double() @ sensitivity
    assert relative_error(exact, own.double() @ sensitivity) < 0.7 * relative_error(exact, other.double() @ sensitivity)
    assert relative_error(table, own) > relative_error(table, other)
    assert same_bytes(fit_coded(table, 9000, sensitivity=torch.eye(48)).stored, plain.stored)


def low_rank_classes(n: int) -> tuple[Tensor, Tensor]:
    """Heavy rows, those of the first two of three classes, and light ones, in subspaces of their own of 6 of 32 dimensions."""
    weights = falling_weights(n)
    heavy = fit_coded(gaussian(n, 1), 10 * n, weights, classes=3).classes < 2
    weights[heavy] = float((~heavy).sum() / heavy.sum())
    parts = [gaussian(n, 6, seed=2 * number) @ gaussian(6, 32, seed=2 * number + 1) for number in range(2)]
    return torch.where(heavy.unsqueeze(1), parts[0], parts[1]), weights


def test_own_decoders_are_chosen_where_they_pay() -> None:
    table, weights = low_rank_classes(3000)
    large = fit_coded(table, 3000 * 32 // 8, weights, classes=3)
    assert large.shape.decoders == 2
    shared = fit_coded(table, 3000 * 32 // 8, weights, classes=3, decoders=1)
    assert shared.shape.decoders == 1
    assert relative_error(table, rebuilt(large)) < 0.8 * relative_error(table, rebuilt(shared))
    table, weights = low_rank_classes(150)
    assert fit_coded(table, 150 * 32 // 8, weights, classes=3).shape.decoders == 1


@pytest.mark.parametrize(("classes", "decoders"), [(1, 1), (2, 2), (5, 2), (5, 3), (6, 6), (20, 1), (120, 4)])
def test_classes_and_decoders_can_be_given(table: Tensor, classes: int, decoders: int) -> None:
    coded = fit_coded(table[:400, :12], 400 * 12, falling_weights(400), classes=classes, decoders=decoders)
    assert (coded.shape.classes, coded.shape.decoders) == (classes, decoders)
    assert int(coded.classes.max()) == classes - 1
    assert ("classes" in coded.stored) == (classes > 1)
    assert coded.shape.bytes <= 4800
    assert relative_error(table[:400, :12], rebuilt(coded)) < 0.2


def test_more_classes_than_rows_leave_some_empty() -> None:
    coded = fit_coded(gaussian(30, 6), 1000, classes=40)
    assert relative_error(gaussian(30, 6), rebuilt(coded)) < 0.01


def test_the_same_input_gives_the_same_bytes(table: Tensor) -> None:
    first, again = (fit_coded(table[:500].clone(), 3000, falling_weights(500)) for _ in range(2))
    assert same_bytes(first.stored, again.stored)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_float_types(table: Tensor, dtype: torch.dtype) -> None:
    narrow = table[:500].to(dtype)
    coded = fit_coded(narrow, 12000)
    assert relative_error(narrow, rebuilt(coded)) < 0.02
    if dtype.itemsize == 2:  # the same numbers in float32
        assert same_bytes(coded.stored, fit_coded(narrow.float(), 12000).stored)
    assert same_bytes(coded.stored, fit_coded(narrow, 12000).stored)


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e4, 1e12])
def test_a_tables_scale_does_not_matter(table: Tensor, scale: float) -> None:
    error = relative_error(table[:300] * scale, rebuilt(fit_coded(table[:300] * scale, 3000)))
    assert error == pytest.approx(relative_error(table[:300], rebuilt(fit_coded(table[:300], 3000))), rel=0.1)


def test_zeros_identical_rows_and_tiny_tables() -> None:
    zeros = rebuilt(fit_coded(torch.zeros(40, 6), 150))
    assert not zeros.any()
    row = gaussian(1, 6)
    assert relative_error(row.expand(300, 6), rebuilt(fit_coded(row.repeat(300, 1), 1500))) < 1e-3
    half = torch.cat([gaussian(200, 6), torch.zeros(200, 6)])
    found = rebuilt(fit_coded(half, 1500))
    assert torch.isfinite(found).all()
    assert float(found[200:].norm()) < 0.2 * float(found[:200].norm())
    for n, d in ((1, 4), (2, 3), (3, 1), (1, 1), (7, 40)):
        table = gaussian(n, d, seed=n)
        found = rebuilt(fit_coded(table, 100 * n * d))
        assert found.shape == (n, d)
        assert relative_error(table, found) < 0.01
    weights = torch.zeros(30)
    weights[3] = 1  # all others may be anything
    table = gaussian(30, 6)
    assert relative_error(table[3], rebuilt(fit_coded(table, 300, weights, classes=3))[3]) < 0.05


def test_classes_without_any_code_have_rows_of_no_bytes(table: Tensor) -> None:
    weights = torch.where(torch.arange(1000) < 100, 1000.0, 1e-6)
    coded = fit_coded(table[:1000], 4000, weights, classes=6)
    assert 0 in coded.row_bytes
    embedding = embedding_of(coded)
    empty = (coded.classes == coded.row_bytes.index(0)).nonzero().squeeze(1)
    means = embedding.side_tables().means
    assert means is not None
    assert torch.allclose(embedding(empty), means[coded.row_bytes.index(0)].expand(len(empty), -1))


def test_progress_counts_the_rows() -> None:
    calls: list[tuple[int, int]] = []
    fit_coded(gaussian(2500, 6), 2500 * 3, progress=lambda done, rows: calls.append((done, rows)))
    assert calls[-1] == (2500, 2500)
    assert all(before[0] < after[0] for before, after in itertools.pairwise(calls))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": torch.full((30, 6), torch.nan)}, "NaN or infinite entries, the first in row 0"),
        ({"table": torch.zeros(30)}, "must have two dimensions"),
        ({"budget": 10}, "10 bytes are too few: beside any codes 16 are stored"),
        ({"budget": 0}, "0 bytes are too few"),
        ({"budget": -1}, "-1 bytes are too few"),
        ({"sample_weight": torch.ones(3)}, r"shape \(30,\), not \(3,\)"),
        ({"sample_weight": -torch.ones(30)}, "not negative"),
        ({"sample_weight": torch.zeros(30)}, "positive, finite sum"),
        ({"sample_weight": torch.full((30,), torch.nan)}, "must be finite"),
        ({"sensitivity": torch.eye(5)}, r"positive definite matrix of shape \(6, 6\)"),
        ({"sensitivity": torch.zeros(6, 6)}, "positive definite"),
        ({"sensitivity": torch.full((6, 6), torch.nan)}, "positive definite"),
        ({"sensitivity": torch.eye(6) + torch.eye(6).roll(1, 0).triu()}, "symmetric"),
        ({"classes": 0}, "have 1 to 256 classes, not 0"),
        ({"classes": 257}, "have 1 to 256 classes, not 257"),
        ({"classes": 4, "decoders": 5}, "4 classes have 1 to 4 decoders, not 5"),
        ({"classes": 4, "decoders": 0}, "have 1 to 4 decoders, not 0"),
    ],
)
def test_what_cannot_be_coded_is_one_clear_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ProjclustError, match=message) as caught:
        fit_coded(**{"table": gaussian(30, 6), "budget": 300, **changes})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_coded_clusters_by_hand() -> None:
    table = torch.tensor([[127.0, 0.0], [0.0, 7.0], [64.0, 0.0], [-3.0, 0.0], [0.0, -2.0]])
    labels, bases = torch.tensor([0, 1, 0, 0, 1]), torch.eye(2).unsqueeze(1)
    coded = code_clusters(table, labels, bases=bases, means=None, ranks=[1, 1], codes="int8")
    # A basis entry of 1 is 127 steps of 1 / 127 in half precision; a step of the coefficients is 1 / 127 of the largest,
    # half a sixteenth of an octave wider, in bfloat16.
    one = 127 * float(torch.tensor(1 / 127).half())
    steps = [float(torch.tensor(largest / one / 127 * 2 ** (1 / 32)).bfloat16()) for largest in (127, 7)]
    assert steps[0] == 1.0234375
    codes = [124, 63, -3, 124, -35]
    assert coded.stored["weight"].tolist() == [128 + code for code in codes]
    assert coded.stored["classes"].tolist() == [0x01, 0x00, 0x10]
    found = rebuilt(coded)
    places = [(0, 0), (2, 0), (3, 0), (1, 1), (4, 1)]
    for (row, column), code in zip(places, codes, strict=True):
        assert float(found[row, column]) == pytest.approx(code * steps[column] * one, rel=1e-6)
    assert float(found.abs().sum()) == pytest.approx(sum(float(found[place].abs()) for place in places))

    # Four bits: seven steps to either side, a nibble a coefficient.
    narrow = code_clusters(table, labels, bases=bases, means=None, ranks=[1, 1], codes="int4")
    assert narrow.stored["weight"].tolist() == [(8 + code) << 4 for code in (7, 3, 0, 7, -2)]


@pytest.mark.parametrize(("codes", "bound"), [("int8", 1e-4), ("int4", 0.03)])
@pytest.mark.parametrize("affine", [False, True])
def test_coded_clusters_are_near_the_projections(affine: bool, codes: str, bound: float) -> None:
    ranks, d = [5, 2, 4], 10
    table, labels = gaussian(300, d) + 0.5, torch.arange(300) % 3
    labels[labels == 2] = 2
    bases = torch.linalg.qr(gaussian(3, d, 5, seed=1))[0].mT.contiguous()
    means = torch.stack([table[labels == cluster].mean(0) for cluster in range(3)]) if affine else None
    coded = code_clusters(table, labels, bases=bases, means=means, ranks=ranks, codes=codes)
    exact = torch.empty(300, d)
    for cluster, rank in enumerate(ranks):
        rows, basis = table[labels == cluster], bases[cluster, :rank]
        centre = torch.zeros(d) if means is None else means[cluster]
        exact[labels == cluster] = (rows - centre) @ basis.T @ basis + centre
    assert relative_error(exact, rebuilt(coded)) < bound
    assert {name: tuple(tensor.shape) for name, tensor in coded.stored.items()} == coded.shape.stored
    assert coded.ranks == ranks
    assert coded.row_bytes == [rank if codes == "int8" else (rank + 1) // 2 for rank in ranks]
    assert coded.shape.affine == affine
    assert torch.equal(coded.classes, labels)
    kinds = unpack_nibbles(coded.stored["kinds"], 5)
    assert (kinds != NONE).sum(1).tolist() == ranks
    assert bool(kinds.max() == NUMBER_OF["int8"]) == (codes == "int8")


def test_an_empty_cluster_and_one_of_zeros_are_coded() -> None:
    table = torch.cat([gaussian(10, 4), torch.zeros(10, 4)])
    labels = torch.tensor([0] * 10 + [2] * 10)
    bases = torch.linalg.qr(gaussian(3, 4, 3, seed=1))[0].mT.contiguous()
    found = rebuilt(code_clusters(table, labels, bases=bases, means=None, ranks=[3, 3, 3], codes="int8"))
    assert not found[10:].any()
    exact = table[:10] @ bases[0].T @ bases[0]
    assert relative_error(exact, found[:10]) < 1e-3


def test_more_clusters_than_a_byte_can_number_are_refused() -> None:
    count = MOST_CLASSES + 1
    with pytest.raises(ProjclustError, match="at most 256 clusters, not 257"):
        code_clusters(
            gaussian(300, 3),
            torch.arange(300) % count,
            bases=torch.ones(count, 1, 3),
            means=None,
            ranks=[1] * count,
            codes="int8",
        )


@pytest.mark.parametrize("codes", [codes for codes in Codes if codes.bits])
def test_every_integer_of_the_options_is_a_kind_of_code(codes: Codes) -> None:
    kind = KINDS[NUMBER_OF[codes]]
    assert (kind.name, kind.bits, kind.values) == (codes, codes.bits, 1)
    table, bases = gaussian(50, 4), torch.eye(4).unsqueeze(0)
    coded = code_clusters(table, torch.zeros(50), bases=bases, means=None, ranks=[4], codes=codes)
    assert coded.row_bytes == [(4 * kind.bits + 7) // 8]
    # Uniform errors of a step of the largest entries.
    step = table.abs().amax(0) / (2 ** (kind.bits - 1) - 1)
    assert bool(((rebuilt(coded) - table).abs() <= 0.6 * step).all())


@pytest.mark.parametrize("codes", ["auto", "float16", "int7"])
def test_clusters_are_coded_in_integers(codes: str) -> None:
    with pytest.raises(ProjclustError, match=codes):
        code_clusters(gaussian(5, 2), torch.zeros(5), bases=torch.eye(2)[None], means=None, ranks=[2], codes=codes)


def test_bases_beyond_the_ranks_are_left_alone() -> None:
    bases = torch.eye(3).unsqueeze(0)
    code_clusters(gaussian(5, 3), torch.zeros(5), bases=bases, means=None, ranks=[2], codes="int8")
    assert torch.equal(bases[0], torch.eye(3))


def test_real_rows_in_two_bits(minilm_table: Tensor) -> None:
    rows = minilm_table[2000:3500]
    coded = fit_coded(rows, 1500 * 384 * 2 // 8, falling_weights(1500), classes=4)
    assert 0.99 * 144000 <= coded.shape.bytes <= 144000
    found = rebuilt(coded)
    # As the heavy rows come first, so do the small errors.
    assert relative_error(rows[:150], found[:150]) < relative_error(rows[500:], found[500:])
    assert relative_error(rows, found) < 0.4
