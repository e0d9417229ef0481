"""Which rows should move, against what moving them really changes."""

import pytest
import torch
from torch import Tensor

from projclust import ProjectiveClustering
from projclust.clustering import rows as rows_module
from projclust.clustering.reassignment import GAP_LEVELS, Leverage, propose_moves, propose_moves_among
from projclust.clustering.rows import Rows
from projclust.clustering.scatter import ClusterScatter, fit_subspaces
from projclust.clustering.subspaces import Subspaces, assign_rows, orthonormal_rows


def axes(*numbers: int, d: int) -> Tensor:
    """Subspaces spanned by one coordinate axis each, (k, 1, d)."""
    return torch.eye(d)[list(numbers)].unsqueeze(1)


def tail_energy(rows: Tensor, rank: int, affine: bool) -> float:
    """The cost of the best subspace of these rows."""
    centred = rows - rows.mean(0) if affine else rows
    return float(torch.linalg.svdvals(centred)[rank:].square().sum())


def grouped_rows(n: int, d: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(n, d) rows of k groups, each with a decaying spectrum of its own, and labels most of which are right."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(k, (n,), generator=generator)
    turns = torch.linalg.qr(torch.randn(k, d, d, generator=generator, dtype=torch.float64))[0]
    scaled = torch.randn(n, d, generator=generator, dtype=torch.float64) * 0.8 ** torch.arange(d)
    table = torch.einsum("nd,nde->ne", scaled, turns[truth])
    wrong = torch.rand(n, generator=generator) < 0.2
    return table, torch.where(wrong, (truth + 1) % k, truth)


def test_without_leverage_it_is_the_distance_by_hand() -> None:
    table = torch.tensor([[3.0, 4.0], [5.0, 1.0], [0.0, -2.0], [0.0, 0.0]])
    subspaces = Subspaces.of(axes(0, 1, d=2))
    proposal, gaps = propose_moves(
        Rows.of(table), subspaces, torch.zeros(4, dtype=torch.int64), Leverage.none(subspaces)
    )
    assert proposal.labels.tolist() == [1, 0, 1, 0]
    # The axes leave 16 and 9 of 25, 1 and 25 of 26, 4 and 0 of 4. (Small integers: exact in bfloat16 too.)
    assert proposal.gains.tolist() == [7.0, 0.0, 4.0, 0.0]
    shares = torch.tensor([[7 / 25, 0.0], [0.0, 24 / 26], [1.0, 0.0], [0.0, 0.0]])
    assert (gaps.float() / GAP_LEVELS - shares.sqrt()).abs().max() <= 1 / GAP_LEVELS
    part, part_gaps = propose_moves(
        Rows.of(table),
        subspaces,
        torch.ones(4, dtype=torch.int64),
        Leverage.none(subspaces),
        which=torch.tensor([1, 2]),
    )
    assert part.labels.tolist() == [1, 0, 1, 1]
    assert part.gains.tolist() == [0.0, 24.0, 0.0, 0.0]
    assert torch.equal(part_gaps, gaps[1:3])


def test_leverage_by_hand() -> None:
    # Energies 6 and 2 and 4 left to two other directions: m = 2 is no less than the second, whose gap is cut to 0.2.
    leverage = Leverage.of(torch.tensor([[6.0, 2.0]]), torch.tensor([12.0]), torch.tensor([3.0]), dim=4, affine=False)
    assert leverage.per_energy.tolist() == pytest.approx([(6 / 4 + 2 / 0.2) / 8])
    assert leverage.per_row is None
    nothing = Leverage.of(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1), dim=4, affine=True)
    assert nothing.per_energy.tolist() == [0.0]
    assert nothing.per_row is not None
    assert nothing.per_row.tolist() == [0.0]


def test_without_energy_in_the_subspaces_it_is_hartigans_k_means_by_hand() -> None:
    # Points at 0 and 7 on a line and two at 10; the subspaces are the other axis, shifted to the means 3.5 and 10.
    table = torch.tensor([[0.0, 0.0], [0.0, 7.0], [0.0, 10.0], [0.0, 10.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    scatter = ClusterScatter(Rows.of(table), labels, 2, affine=True)
    subspaces = Subspaces.of(axes(0, 0, d=2).double(), scatter.means())
    proposal, _ = propose_moves(
        Rows.of(table), subspaces, labels, scatter.leverage(torch.zeros(2, 1, dtype=torch.float64))
    )
    assert proposal.labels.tolist() == [0, 1, 1, 1]
    # Leaving a mean of two gains 3.5^2 * 2/(2 - 1), joining another costs 3^2 * 2/(2 + 1). The costs before and after
    # are 2 * 3.5^2, and 2 * 1 + 4 from the new mean 9.
    assert proposal.gains[1] == pytest.approx(3.5**2 * 2 - 9 * 2 / 3)
    assert proposal.gains[1] == pytest.approx(2 * 3.5**2 - (2 * 1 + 4))


@pytest.mark.parametrize("affine", [False, True])
def test_it_foretells_what_a_move_changes_better_than_distance(affine: bool) -> None:
    k, rank = 2, 5
    table, labels = grouped_rows(160, 12, k)
    rows = Rows.of(table)
    scatter = ClusterScatter(rows, labels, k, affine)
    subspaces, spectra = fit_subspaces(rows, labels, k, rank, affine)
    told, _ = propose_moves(rows, subspaces, labels, scatter.leverage(spectra[:, :rank]))
    plain, _ = propose_moves(rows, subspaces, labels, Leverage.none(subspaces))
    before = sum(tail_energy(table[labels == c], rank, affine) for c in range(k))
    errors: list[tuple[float, float]] = []
    for row in (told.labels != labels).nonzero().squeeze(1).tolist():
        moved = labels.clone()
        moved[row] = told.labels[row]
        fall = before - sum(tail_energy(table[moved == c], rank, affine) for c in range(k))
        by_distance = float(plain.gains[row]) if plain.labels[row] != labels[row] else 0.0
        errors.append((abs(float(told.gains[row]) - fall), abs(by_distance - fall)))
    assert len(errors) > 10
    mine, distances = torch.tensor(errors).sum(0).tolist()
    assert mine < 0.7 * distances


@pytest.mark.parametrize("affine", [False, True])
def test_rows_move_among_all_candidates_as_without_candidates(affine: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(500, 10, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (500,), generator=generator)
    rows = Rows.of(table, torch.rand(500, generator=generator))
    scatter = ClusterScatter(rows, labels, 4, affine)
    subspaces, spectra = fit_subspaces(rows, labels, 4, 3, affine)
    leverage = scatter.leverage(spectra[:, :3])
    whole, _ = propose_moves(rows, subspaces, labels, leverage)
    everything = torch.ones(500, 4, dtype=torch.bool)
    found = propose_moves_among(rows, subspaces, labels, leverage, everything)
    assert torch.equal(found.labels, whole.labels)
    assert torch.allclose(found.gains, whole.gains)
    assert (found.labels != labels).sum() > 100
    some = everything.clone()
    some[1::2] = False
    found = propose_moves_among(rows, subspaces, labels, leverage, some)
    assert torch.equal(found.labels[::2], whole.labels[::2])
    assert torch.equal(found.labels[1::2], labels[1::2])
    assert not found.gains[1::2].any()
    pair = torch.nn.functional.one_hot(labels, 4).bool()
    pair[:, 2] = True
    found = propose_moves_among(rows, subspaces, labels, leverage, pair)
    assert ((found.labels == labels) | (found.labels == 2)).all()


def test_a_heavy_row_bends_its_subspace_more() -> None:
    table, labels = grouped_rows(80, 8, 2)
    weights = torch.ones(80, dtype=torch.float64)
    weights[0] = 5.0
    subspaces, spectra = fit_subspaces(Rows.of(table), labels, 2, 3)
    leverage = Leverage.of(spectra[:, :3], spectra.sum(1), torch.ones(2), 8, affine=False)
    everything_else = 1 - assign_rows(Rows.of(table), subspaces).labels  # so that every row wants to move
    heavy, _ = propose_moves(Rows.of(table, weights), subspaces, everything_else, leverage)
    light, _ = propose_moves(Rows.of(table), subspaces, everything_else, leverage)
    assert torch.equal(heavy.gains[1:], light.gains[1:])
    # r^2 / (1 - 5h) - s^2 / (1 + 5g) against r^2 / (1 - h) - s^2 / (1 + g).
    assert heavy.gains[0] > light.gains[0] > 0


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("quick", [False, True])
def test_bfloat16_chooses_labels_and_nothing_else(quick: bool, affine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "fast_bfloat16", lambda device: quick)
    table = grouped_rows(1500, 24, 4)[0].float()
    assert Rows.of(table).search_dtype(0.5) == (torch.bfloat16 if quick else torch.float32)
    assert Rows.of(table).search_dtype(0.001) == torch.float32
    assert Rows.of(table.double()).search_dtype(0.5) == torch.float64
    fitted = ProjectiveClustering(4, 6, affine=affine, tol=1e-4).fit(table)
    assert torch.equal(fitted.predict(table), fitted.labels_)
    gram = fitted.components_ @ fitted.components_.mT
    assert torch.allclose(gram, torch.eye(6).expand_as(gram), atol=1e-6)
    rebuilt = fitted.inverse_transform(fitted.coefficients_, fitted.labels_)
    assert fitted.inertia_ == pytest.approx(float((table.double() - rebuilt).square().sum()), rel=1e-6)
    # The other precision ends at about the same cost.
    monkeypatch.setattr(rows_module, "fast_bfloat16", lambda device: not quick)
    other = ProjectiveClustering(4, 6, affine=affine, tol=1e-4).fit(table)
    assert fitted.inertia_ == pytest.approx(other.inertia_, rel=0.02)


def test_what_bfloat16_cannot_tell_apart_is_compared_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "fast_bfloat16", lambda device: True)
    asked: list[tuple[float, torch.dtype]] = []
    decide = Rows.search_dtype

    def recorded(self: Rows, left: float) -> torch.dtype:
        asked.append((left, decide(self, left)))
        return asked[-1][1]

    monkeypatch.setattr(Rows, "search_dtype", recorded)
    table = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    ProjectiveClustering(2, 3).fit(table)
    assert {dtype for _, dtype in asked} == {torch.bfloat16}
    asked.clear()
    table[:, 0] += 100.0  # one direction holds all but a thousandth of the energy
    ProjectiveClustering(2, 3).fit(table)
    assert {dtype for _, dtype in asked} == {torch.float32}
    assert 0 < min(left for left, _ in asked) < max(left for left, _ in asked) < 1e-3


def test_moving_by_leverage_ends_lower_than_by_distance(minilm_table: Tensor) -> None:
    rows = Rows.of(minilm_table[::8].double())
    k, rank = 4, 40
    start = torch.arange(len(rows)) % k
    costs = []
    for follows in (True, False):
        labels = start
        for step in range(30):
            scatter = ClusterScatter(rows, labels, k, affine=False)
            subspaces, spectra = fit_subspaces(rows, labels, k, rank)
            leverage = scatter.leverage(spectra[:, :rank]) if follows else Leverage.none(subspaces)
            proposal, _ = propose_moves(rows, subspaces, labels, leverage)
            labels = torch.where(torch.arange(len(rows)) % 2 == step % 2, proposal.labels, labels)
        costs.append(float(assign_rows(rows, fit_subspaces(rows, labels, k, rank)[0]).distances.sum()))
    assert costs[0] < 0.99 * costs[1]


def test_proposals_take_any_number_of_rows() -> None:
    subspaces = Subspaces.of(orthonormal_rows(torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(0))))
    for n in (1, 127, 128, 129):
        rows = Rows.of(torch.randn(n, 6, generator=torch.Generator().manual_seed(n)))
        proposal, _ = propose_moves(rows, subspaces, torch.zeros(n, dtype=torch.int64), Leverage.none(subspaces))
        exact = assign_rows(rows, subspaces)
        # bfloat16 may choose another where two are as near.
        own = (rows.table.unsqueeze(1) @ subspaces.bases[proposal.labels].mT).square().sum((1, 2))
        assert torch.allclose(rows.norms - own, exact.distances, rtol=0.02, atol=0.02)
