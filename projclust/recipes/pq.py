"""Product quantization (Jégou et al., PAMI 2011): each part of a row becomes the nearest of some centroids."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from projclust.errors import ProjclustError
from projclust.recipes.problem import Errors, Estimate, Fitted, Problem, RowErrors
from projclust.recipes.recipe import Recipe
from projclust.recipes.rounding import packed_bytes, to_half
from projclust.recipes.svd import settle_by_count
from projclust.shapes import DenseShape, largest

_MOST_CENTROID_BITS = 8
_KMEANS_STEPS = 25
# An estimate quantizes one part in so many, spread evenly.
_PARTS_AN_ESTIMATE = 12


def settle(recipe: Recipe, table: DenseShape) -> Recipe:
    """The recipe with a target in bits that some number of parts meets; see `Recipe.settled`."""
    return settle_by_count(recipe, table, _size(table, 1), _parts(recipe, table))


def stored_bytes(recipe: Recipe, table: DenseShape) -> int:
    """See `Recipe.stored_bytes`."""
    return _size(table, _parts(recipe, table) or 1)


def _parts(recipe: Recipe, table: DenseShape) -> int | None:
    budget = recipe.budget(table) or 0
    return largest(table.d, lambda parts: _size(table, parts) <= budget)


def _size(table: DenseShape, parts: int) -> int:
    bits = _centroid_bits(table.n)
    return table.n * packed_bytes(parts, bits) + 2 * 2**bits * table.d


def _centroid_bits(n: int) -> int:
    """The bits of a code: there are no more centroids than rows to train them on."""
    return min(_MOST_CENTROID_BITS, n.bit_length() - 1)


def fit(recipe: Recipe, problem: Problem) -> Fitted:
    """Quantize every part; see `Recipe.fit`.

    Raises:
        ProjclustError: faiss is not installed.
    """
    table, count = problem.table, _parts(recipe, problem.shape) or 1
    parts = [_quantizer(part, problem.relative_weights, recipe.seed) for part in table.tensor_split(count, 1)]

    def rebuild(ids: Tensor) -> Tensor:
        return torch.cat([part.rows(ids.to(table.device)) for part in parts], 1)

    return Fitted(recipe, problem, stored_bytes(recipe, problem.shape), table.numel(), rebuild=rebuild)


def estimate(recipes: Sequence[Recipe], problem: Problem) -> Iterator[Estimate]:
    """What settled recipes would leave, measured on some of their parts with all rows and steps."""
    n = problem.shape.n
    weights = torch.ones(n, dtype=torch.float64) if problem.weights is None else problem.weights
    for recipe in recipes:
        count = _parts(recipe, problem.shape) or 1
        parts = problem.table.tensor_split(count, 1)
        chosen = [parts[int((i + 0.5) * _PARTS_AN_ESTIMATE)] for i in range(count // _PARTS_AN_ESTIMATE)]
        sums = torch.zeros(2, 2, dtype=torch.float64)  # (plain, weighted) x (error, norm), over all chosen parts
        for part in chosen or [parts[count // 2]]:
            found = _quantizer(part, problem.relative_weights, recipe.seed)
            both = torch.stack(list(vars(RowErrors.of(found.rows, part)).values()))
            sums += torch.stack([both.sum(1), both @ weights])
        errors = Errors(*(error / max(norm, 1e-300) for error, norm in sums.tolist()))
        yield Estimate(recipe.method, stored_bytes(recipe, problem.shape), errors, True, None)


class _Quantizer(NamedTuple):
    """The centroids of a part, (c, m), and the number of the nearest one to each row, (n,) uint8."""

    codebook: Tensor
    nearest: Tensor

    def rows(self, ids: Tensor) -> Tensor:
        """(N, m) rows of the part."""
        return self.codebook[self.nearest[ids].long()]


def _quantizer(part: Tensor, weights: Tensor | None, seed: int) -> _Quantizer:
    """The quantizer of a part (n, m) of any float dtype. faiss's own product quantizer knows no row weights."""
    try:
        import faiss
    except ImportError:
        raise ProjclustError("product quantization needs faiss: pip install 'projclust[baselines]'") from None
    vectors = part.float().cpu().contiguous().numpy()
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        2 ** _centroid_bits(len(vectors)),
        niter=_KMEANS_STEPS,
        seed=seed,
        # All rows, however few or many there are for each centroid.
        min_points_per_centroid=1,
        max_points_per_centroid=len(vectors),
    )
    kmeans.train(vectors, weights=None if weights is None else weights.cpu().numpy())
    codebook = to_half(torch.from_numpy(kmeans.centroids))
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(codebook.numpy())
    nearest = torch.from_numpy(index.search(vectors, 1)[1].squeeze(1))
    return _Quantizer(codebook.to(part.device), nearest.to(part.device, torch.uint8))
