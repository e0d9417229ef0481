from itertools import pairwise

import pytest
import torch
from torch import Tensor

from projclust.clustering import solver
from projclust.clustering.inputs import ClusteringOptions
from projclust.clustering.reassignment import Proposal, propose_moves
from projclust.clustering.rows import Rows
from projclust.clustering.scatter import ClusterScatter, fit_subspaces
from projclust.clustering.solver import Solution, alternate, fill_small_clusters, fit_equal_ranks
from projclust.clustering.subspaces import Subspaces, assign_rows, orthonormal_rows


def flat(d: int, k: int, rank: int) -> Subspaces:
    """k times the subspace of the first axes: the last coordinates are the distance."""
    return Subspaces.of(torch.eye(d)[:rank].expand(k, rank, d))


def rows_at(distances: list[float], weights: list[float] | None = None) -> Rows:
    """Rows in three dimensions at these squared distances from the plane of the first two axes."""
    table = torch.zeros(len(distances), 3)
    table[:, 0] = 3.0
    table[:, 2] = torch.tensor(distances).sqrt()
    return Rows.of(table, None if weights is None else torch.tensor(weights))


def run(rows: Rows, start: Tensor, generator: torch.Generator, affine: bool, max_iter: int) -> Solution:
    """A run at the rank of the start that ends when nothing is left to gain."""
    options = ClusteringOptions(rank=start.shape[1], affine=affine, max_iter=max_iter, tol=0.0)
    return fit_equal_ranks(rows, start, options, generator, lambda step, cost: None)[1]


def test_an_empty_cluster_takes_the_worst_served_rows() -> None:
    labels = torch.zeros(6, dtype=torch.int64)
    filled = fill_small_clusters(rows_at([0.0, 5.0, 1.0, 9.0, 0.5, 2.0]), flat(3, 2, 2), labels)
    assert filled.tolist() == [0, 1, 0, 1, 0, 0]
    assert labels.tolist() == [0] * 6  # the argument is left alone


def test_weights_decide_who_is_served_worst_and_who_counts() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1])
    # Cluster 1 has one row that counts.
    rows = rows_at([4.0, 3.0, 2.0, 1.0, 1.0], weights=[1.0, 2.0, 1.0, 0.0, 1.0])
    assert fill_small_clusters(rows, flat(3, 2, 2), labels).tolist() == [0, 1, 0, 1, 1]  # 2 x 3 is worse than 1 x 4


def test_full_clusters_and_exact_rows_stay() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    assert fill_small_clusters(rows_at([1.0] * 4), flat(3, 2, 2), labels) is labels
    exact = torch.zeros(4, dtype=torch.int64)
    assert fill_small_clusters(rows_at([0.0] * 4), flat(3, 2, 2), exact).tolist() == [0, 0, 0, 0]


def test_filling_never_raises_the_cost() -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        rows = Rows.of(torch.randn(60, 8, generator=generator, dtype=torch.float64))
        labels = torch.randint(0, 3, (60,), generator=generator)
        labels[labels == 2] = 0
        labels[:2] = 2  # cluster 2 has two rows, fewer than its rank
        for affine in (False, True):
            before, _ = fit_subspaces(rows, labels, 3, 4, affine)
            assigned = assign_rows(rows, before)
            filled = fill_small_clusters(rows, before, assigned.labels)
            after = fit_subspaces(rows, filled, 3, 4, affine)[1][:, 4:].sum()
            assert after <= assigned.distances.sum() * (1 + 1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("keep_grams", [False, True])
def test_scatter_follows_the_rows_that_move(keep_grams: bool, affine: bool, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(900, 6, generator=generator, dtype=torch.float64) + 0.5
    rows = Rows.of(table, torch.rand(900, generator=generator) if weighted else None)
    subspaces = Subspaces.of(orthonormal_rows(torch.randn(3, 2, 6, generator=generator, dtype=torch.float64)))
    first, second = (torch.randint(0, 3, (900,), generator=generator) for _ in range(2))
    moved = ClusterScatter(rows, first, 3, affine, keep_grams)
    moved.update(second)
    assert (moved.grams is not None) == keep_grams
    (bases, energies, cost), (same_bases, same_energies, same_cost) = (
        scatter.iterate(subspaces) for scatter in (moved, ClusterScatter(rows, second, 3, affine, keep_grams))
    )
    assert torch.allclose(bases.bases, same_bases.bases)
    assert torch.allclose(energies, same_energies)
    assert cost == pytest.approx(same_cost)
    # The cost of the given bases, with the best means, straight from the rows.
    weights = torch.ones(900, dtype=torch.float64) if rows.weights is None else rows.weights
    direct = 0.0
    for cluster in range(3):
        own, mass = table[second == cluster], weights[second == cluster].unsqueeze(1)
        centred = own - (mass * own).sum(0) / mass.sum() if affine else own
        basis = subspaces.bases[cluster]
        direct += float((mass * (centred - centred @ basis.T @ basis).square()).sum())
    assert cost == pytest.approx(direct)


def test_one_step_of_iteration_never_raises_the_cost_and_many_reach_the_best() -> None:
    rows = Rows.of(torch.randn(400, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    labels = torch.arange(400) % 2
    scatter = ClusterScatter(rows, labels, 2, affine=False)
    subspaces = Subspaces.of(orthonormal_rows(torch.randn(2, 3, 10, dtype=torch.float64, generator=torch.Generator())))
    costs = []
    for _ in range(300):
        subspaces, _, cost = scatter.iterate(subspaces)
        costs.append(cost)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(costs))
    assert costs[-1] == pytest.approx(float(fit_subspaces(rows, labels, 2, 3)[1][:, 3:].sum()), rel=1e-6)


def test_the_last_step_compared_everything() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = Rows.of(torch.randn(2000, 12, generator=generator) @ torch.diag(0.8 ** torch.arange(12.0)))
    start = Subspaces.of(orthonormal_rows(torch.randn(5, 4, 12, generator=generator)))
    solution = run(rows, start.bases, generator, affine=False, max_iter=500)
    assert len(solution.history) < 500
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise([*solution.history, solution.cost]))
    # An exact fit to its labels and one more comparison find nothing: it did not stop on the candidates alone.
    again = assign_rows(rows, fit_subspaces(rows, solution.labels, 5, 4)[0])
    assert float(again.distances.double().sum()) >= solution.cost * (1 - 1e-6)


def test_large_and_small_clusters_take_turns() -> None:
    order = solver._balanced_order(torch.tensor([5, 40, 10, 30, 20]))
    assert order.tolist() == [1, 0, 3, 2, 4]  # 40, 5, 30, 10, 20


@pytest.mark.parametrize("affine", [False, True])
def test_a_step_that_would_raise_the_cost_is_taken_back(affine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = Rows.of(torch.randn(300, 8, generator=generator, dtype=torch.float64))
    labels = torch.randint(0, 3, (300,), generator=generator)
    halves = torch.arange(300) % 2 == 0

    def everything_moves(*arguments: object) -> tuple[Proposal, Tensor]:
        """A proposal that is wrong for every row."""
        proposal, gaps = propose_moves(*arguments)  # type: ignore[arg-type]
        following = bool(arguments[3].per_energy.any())  # type: ignore[attr-defined]
        return (Proposal((proposal.labels + 1) % 3, proposal.gains), gaps) if following else (proposal, gaps)

    monkeypatch.setattr(solver, "propose_moves", everything_moves)
    scatter = ClusterScatter(rows, labels, 3, affine)
    subspaces, _ = fit_subspaces(rows, labels, 3, 4, affine)
    before = scatter.iterate(subspaces)[2]
    _, history = alternate(scatter, subspaces, halves, max_iter=50, tol=0.0)
    # By distance it went on, from where the bad step began.
    assert len(history) > 3
    assert history[0] < before
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(history))
    fresh = ClusterScatter(rows, scatter.labels, 3, affine)
    assert scatter.grams is not None
    assert fresh.grams is not None
    assert torch.allclose(scatter.grams, fresh.grams)


@pytest.mark.parametrize("affine", [False, True])
def test_the_cost_never_rises_where_few_rows_have_much_leverage(affine: bool) -> None:
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        rows = Rows.of(torch.randn(40, 8, generator=generator, dtype=torch.float64))
        start = orthonormal_rows(torch.randn(3, 4, 8, generator=generator, dtype=torch.float64))
        solution = run(rows, start, generator, affine=affine, max_iter=100)
        assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise([*solution.history, solution.cost]))
