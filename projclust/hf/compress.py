"""Compressing the embedding of a model that is in memory."""

from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from projclust.clustering import Method, ProjectiveClustering
from projclust.clustering.estimator import Progress
from projclust.clustering.ranks import Ranks
from projclust.clustering.robust import Loss
from projclust.errors import ProjclustError
from projclust.modules import ProjectiveEmbedding
from projclust.planning import rank_for_ratio

from .config import ProjClustConfig, stored_dtype
from .quantizer import ProjClustHfQuantizer, stored_shape
from .swap import input_embedding, swap_embedding

ModelT = TypeVar("ModelT", bound=PreTrainedModel)


@dataclass(frozen=True)
class Compression:
    """What a compression did.

    Attributes:
        clustering: the fitted estimator.
        parameters: of the stored factors.
        relative_error: squared error of the stored table over the squared norm of the dense one.
        weighted_relative_error: the same with the row weights of the fit.
    """

    clustering: ProjectiveClustering
    parameters: int
    relative_error: float
    weighted_relative_error: float


def compress_model(
    model: ModelT,
    k: int = 5,
    j: int | None = None,
    *,
    ratio: float | None = None,
    affine: bool = False,
    method: Method | str = Method.PROJECTIVE,
    ranks: Ranks | str = Ranks.EQUAL,
    loss: Loss | str = Loss.L2,
    codes: str | None = None,
    sample_weight: Any = None,
    restarts: int = 8,
    max_iter: int = 100,
    tol: float = 1e-4,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> ModelT:
    """Compress the input embedding of a dense model, in place; `save_pretrained` then writes a compressed checkpoint.

    Args:
        model: any transformers model with a token embedding.
        k: number of subspaces.
        j: their dimension; or give
        ratio: the paper's compression rate to reach, 0.4 takes 40% of the parameters off.
        affine: subspaces with means.
        method: "projective", "svd" (k = 1) or "random".
        ranks: "equal", or "adaptive": unequal ranks that take no more parameters than j for all.
        loss: "l2", "l1" or "huber": what the fit sums of the rows' distances to their subspaces.
        codes: dtype to store the factors in: "float32", "float16", "bfloat16"; default: the model's own.
        sample_weight: (n,) row weights, tensor or array; default: all one.
        restarts, max_iter, tol, seed, device: see `ProjectiveClustering`.

    Returns:
        the same model.

    Raises:
        ProjclustError: the model or the options are unsuitable; the model is then unchanged.
    """
    embedding = input_embedding(model)[1]
    if (j is None) == (ratio is None):
        raise ProjclustError("give exactly one of j and ratio")
    if ratio is not None:
        j = rank_for_ratio(ratio, embedding.num_embeddings, embedding.embedding_dim, k, affine)
    assert j is not None
    method, ranks, loss = (option.value if isinstance(option, Enum) else option for option in (method, ranks, loss))
    config = ProjClustConfig(k, j, affine, method, codes, seed, restarts, max_iter, tol, ranks, loss)
    compress_embedding(model, config, sample_weight, device)
    return model


def compress_embedding(
    model: PreTrainedModel,
    config: ProjClustConfig,
    sample_weight: Any = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    process_group: "dist.ProcessGroup | None" = None,
) -> Compression:
    """Fit, swap and fill the embedding of `model` as `config` says; completes `config` with the table's shape.

    With a process group all its processes, which have the same model, share the fit and get the same result.

    Raises:
        ProjclustError: as `compress_model`.
    """
    old = input_embedding(model)[1]
    table = old.weight.detach()
    if table.is_meta:
        raise ProjclustError("the model has no weights in memory (it is on the meta device)")
    stored = stored_dtype(config.codes, table.dtype)
    weights = None if sample_weight is None else torch.as_tensor(sample_weight, dtype=torch.float64)
    clustering = ProjectiveClustering(
        config.n_clusters,
        config.rank,
        affine=config.affine,
        method=config.method,
        ranks=config.ranks,
        loss=config.loss,
        restarts=config.restarts,
        max_iter=config.max_iter,
        tol=config.tol,
        seed=config.seed,
        device=device,
        process_group=process_group,
    ).fit(table, weights, progress)

    bases, means = _rounded(clustering.components_, stored), clustering.means_
    means = None if means is None else _rounded(means, stored)
    coefficients = _rounded(clustering.coefficients_, stored)

    n, d = table.shape
    if config.ranks == Ranks.ADAPTIVE.value:
        sizes = torch.bincount(clustering.labels_, minlength=config.n_clusters).tolist()
        config.set_table(n, d, clustering.ranks_, sizes)
    else:
        config.set_table(n, d)
    shape = stored_shape(config)
    embedding = swap_embedding(model, shape)
    embedding.set_factors(clustering.labels_, coefficients, bases, means)
    embedding.requires_grad_(old.weight.requires_grad)
    model.tie_weights()

    model.hf_quantizer = ProjClustHfQuantizer(config, pre_quantized=True)
    model.quantization_method = "projclust"
    model.is_quantized = False
    model.config.quantization_config = config
    error, weighted_error = _relative_errors(table, embedding, weights)
    parameters = sum(getattr(embedding, name).numel() for name in embedding.factor_names())
    return Compression(clustering, parameters, error, weighted_error)


def _rounded(factor: Tensor, dtype: torch.dtype) -> Tensor:
    stored = factor.to(dtype)
    if not torch.isfinite(stored).all():
        raise ProjclustError(f"the factors exceed the range of {str(dtype).removeprefix('torch.')}: use codes bfloat16")
    return stored


@torch.no_grad()
def _relative_errors(table: Tensor, embedding: ProjectiveEmbedding, weights: Tensor | None) -> tuple[float, float]:
    """Squared error of the embedding's rows over the squared norm of the table's, plain and weighted."""
    plain, weighted = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for ids in torch.arange(len(table), device=table.device).split(4096):
        exact = table[ids].double()
        error = (embedding.rows(ids).double() - exact).square().sum(1)
        both = torch.stack([error, exact.square().sum(1)]).cpu()  # (2, rows)
        plain += both.sum(1)
        weighted += both.sum(1) if weights is None else both @ weights.cpu()[ids.cpu()]
    # A table of zeros is met exactly.
    relative, weighted_relative = (float(e / s) if s > 0 else 0.0 for e, s in (plain, weighted))
    return relative, weighted_relative
