"""Subspaces: projective clustering, truncated SVD and the random partition, as floats or integer codes."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from operator import mul

import torch
from torch import Tensor

from projclust.clustering.fit import Clustering, ClusteringOptions, fit_clustering
from projclust.clustering.rows import rows_at_once
from projclust.coding.fit import CodedMatrix, code_clusters
from projclust.errors import OptionError, ProjclustError
from projclust.options import FLOAT_BYTES, Method, Ranks
from projclust.recipes.problem import Estimate, Factors, Fitted, Problem, Rebuild, relative_errors
from projclust.recipes.recipe import DEFAULT_K, Recipe, short_number
from projclust.shapes import DenseShape, FactoredShape

# An estimate settles for a few steps from few starts.
_STARTS, _STEPS = 2, 2


def settle(recipe: Recipe, table: DenseShape) -> Recipe:
    """The recipe with k and j, and no other target; see `Recipe.settled`."""
    n, d = table.n, table.d
    k = recipe.k or (1 if recipe.method == Method.SVD else DEFAULT_K)
    if k > n:
        raise OptionError(f"k={k} subspaces need at least as many rows, but the embedding has {n}")
    codes, budget = stored_codes(recipe, table), recipe.budget(table)
    shape = FactoredShape(n, d, k=k, j=1, affine=recipe.affine)
    j = recipe.j
    if budget is not None:
        if codes not in FLOAT_BYTES and recipe.ranks != Ranks.EQUAL:
            # They are stored as wide as the largest rank, which is known only after the fit.
            raise OptionError(f"a size for codes {codes} needs equal ranks: give `j` for unequal ones")
        j = shape.largest_rank(lambda own: own.bytes(codes) <= budget)
        if j is None:
            least = shape.bytes(codes)
            raise OptionError(f"{budget:,} bytes are too few for k={k} subspaces of {codes}: rank 1 takes {least:,}")
    elif recipe.ratio is not None:
        most = (1 - recipe.ratio) * table.parameters
        j = shape.largest_rank(lambda own: own.parameters <= most)
        if j is None:
            ratio = short_number(recipe.ratio)
            raise OptionError(f"a ratio of {ratio} leaves no room for k={k} subspaces of rank 1: lower `ratio` or `k`")
    if j is None:
        recipe.require_target()
    elif j >= d:
        raise OptionError(f"the rank j={j} must be less than the embedding's width {d}")
    return replace(recipe, k=k, j=j, ratio=None, bits=None, size=None)


def stored_codes(recipe: Recipe, table: DenseShape) -> str:
    """The codes that are stored: where none are named, floats as wide as the table's.

    Raises:
        OptionError: floats that are named are not narrower than those.
    """
    if recipe.codes is None:
        return table.dtype
    codes = str(recipe.codes)
    if recipe.codes.is_float and codes != table.dtype and FLOAT_BYTES[codes] >= FLOAT_BYTES[table.dtype]:
        raise OptionError(
            f"codes {codes} are not narrower than the model's {table.dtype}: leave `codes` out to store {table.dtype}"
        )
    return codes


def shape_of(recipe: Recipe, table: DenseShape) -> FactoredShape:
    """The shape that a settled recipe gives a table, with equal ranks."""
    assert recipe.k is not None
    assert recipe.j is not None
    return FactoredShape(table.n, table.d, k=recipe.k, j=recipe.j, affine=recipe.affine)


def stored_bytes(recipe: Recipe, table: DenseShape) -> int:
    """See `Recipe.stored_bytes`."""
    return shape_of(recipe, table).bytes(stored_codes(recipe, table))


def fit(recipe: Recipe, problem: Problem) -> Fitted:
    """Fit subspaces and store what they make of the rows; see `Recipe.fit`."""
    names = {part.name for part in fields(ClusteringOptions)} & {part.name for part in fields(recipe)}
    options = ClusteringOptions(
        n_clusters=recipe.k or 1, rank=recipe.j or 1, **{name: getattr(recipe, name) for name in names}
    )
    clustering = fit_clustering(
        problem.table,
        options,
        problem.weights,
        device=problem.device,
        process_group=problem.process_group,
        progress=problem.on_step,
    )
    if recipe.codes is not None and recipe.codes.bits:
        coded = code_clusters(
            problem.table.to(clustering.bases.device),
            clustering.labels,
            bases=clustering.bases,
            means=clustering.means,
            ranks=clustering.ranks,
            codes=str(recipe.codes),
            progress=problem.on_rows,
        )
        return coded_table(recipe, problem, coded, clustering)
    codes = stored_codes(recipe, problem.shape)
    means = None if clustering.means is None else _rounded(clustering.means, codes, problem)
    coefficients, bases = (_rounded(part, codes, problem) for part in (clustering.coefficients, clustering.bases))
    factors = Factors(clustering.labels, coefficients, bases, means)
    shape = shape_of(recipe, problem.shape)
    if recipe.ranks == Ranks.ADAPTIVE:
        sizes = torch.bincount(clustering.labels, minlength=shape.k).tolist()
        shape = replace(shape, ranks=tuple(clustering.ranks), sizes=tuple(sizes))
    size, numbers = shape.bytes(codes), shape.parameters
    return Fitted(recipe, problem, size, numbers, shape=shape, clustering=clustering, factors=factors)


def coded_table(recipe: Recipe, problem: Problem, coded: CodedMatrix, clustering: Clustering | None = None) -> Fitted:
    """What comes of a recipe whose codes are not floats. Coordinates, decoders and means are what has codes."""
    shape = coded.shape
    rows = torch.bincount(coded.classes, minlength=shape.classes).tolist()
    beside = (shape.decoders * shape.rank + shape.affine * shape.classes) * shape.d
    numbers = sum(map(mul, rows, coded.ranks)) + beside
    return Fitted(recipe, problem, shape.bytes, numbers, shape=shape, clustering=clustering, coded=coded)


def _rounded(factor: Tensor, codes: str, problem: Problem) -> Tensor:
    stored = factor.to(getattr(torch, codes))
    # By extremes: isfinite alone would make temporaries as large as the factor.
    if stored.numel() and not torch.isfinite(torch.stack(torch.aminmax(stored))).all():
        narrower = codes != problem.shape.dtype
        way_out = "use codes bfloat16" if narrower else "convert the model to float32 or bfloat16 first"
        raise ProjclustError(f"the factors exceed the range of {codes}: {way_out}")
    return stored


def estimate(recipes: Sequence[Recipe], problem: Problem) -> Iterator[Estimate]:
    """What settled recipes of one k and j would leave, after few steps; with integer codes, rounded as by them."""
    cheap = replace(recipes[0], codes=None, restarts=_STARTS, max_iter=_STEPS)
    fitted = fit(cheap, problem)
    assert fitted.factors is not None
    for recipe in recipes:
        bits = None if recipe.codes is None else recipe.codes.bits
        rebuild = _rounded_rows(fitted.factors, bits) if bits else fitted.factors.rows
        errors = relative_errors(rebuild, problem.table, problem.weights)
        codes = stored_codes(recipe, problem.shape)
        size = stored_bytes(recipe, problem.shape)
        yield Estimate(f"{recipe.method}-{codes}", size, errors, True, rebuild)


def _rounded_rows(factors: Factors, bits: int) -> Rebuild:
    """Rows whose coefficients lie on a grid for each column of each cluster, which its largest one spans."""
    steps = torch.zeros(factors.bases.shape[:2], device=factors.labels.device)  # (k, j)
    size = rows_at_once(factors.coefficients)
    for labels, block in zip(factors.labels.split(size), factors.coefficients.split(size), strict=True):
        for cluster in labels.unique().tolist():
            own = block[labels == cluster].float().abs().amax(0)
            steps[cluster] = torch.maximum(steps[cluster], own)
    steps = steps.clamp_(min=torch.finfo(torch.float32).tiny) / (2 ** (bits - 1) - 1)

    def rebuild(ids: Tensor) -> Tensor:
        ids = ids.to(factors.labels.device)
        labels = factors.labels[ids]
        rounded = (factors.coefficients[ids].float() / steps[labels]).round_().mul_(steps[labels])
        few = replace(factors, labels=labels, coefficients=rounded)
        return few.rows(torch.arange(len(ids), device=labels.device))

    return rebuild
