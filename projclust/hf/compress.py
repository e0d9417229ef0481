"""Compressing the embedding of a model that is in memory."""

from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from operator import mul
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from projclust.clustering import Method, ProjectiveClustering
from projclust.clustering.estimator import Progress, as_weights
from projclust.clustering.ranks import Ranks
from projclust.clustering.robust import Loss
from projclust.coding.fit import CodedMatrix, code_clusters, fit_coded
from projclust.coding.fit import Progress as RowProgress
from projclust.errors import ProjclustError
from projclust.modules import CodedEmbedding, ProjectiveEmbedding
from projclust.modules.lookup import EmbeddingLookup
from projclust.planning import bytes_for_bits, rank_for_bytes, rank_for_ratio

from .config import AUTO, INTEGER_CODES, Metric, ProjClustConfig, stored_dtype
from .metric import model_metric
from .quantizer import ProjClustHfQuantizer, stored_shape
from .swap import input_embedding, swap_embedding

ModelT = TypeVar("ModelT", bound=PreTrainedModel)


@dataclass(frozen=True)
class Compression:
    """What a compression did.

    Attributes:
        config: as the checkpoint stores it.
        clustering: the fitted estimator; None for codes "auto", which need none.
        coded: the coded table; None for float codes.
        parameters: numbers that are stored: of the factors, or those that have codes.
        relative_error: squared error of the stored table over the squared norm of the dense one.
        weighted_relative_error: the same with the row weights of the fit.
    """

    config: ProjClustConfig
    clustering: ProjectiveClustering | None
    coded: CodedMatrix | None
    parameters: int
    relative_error: float
    weighted_relative_error: float


def compress_model(
    model: ModelT,
    k: int = 5,
    j: int | None = None,
    *,
    ratio: float | None = None,
    bits: float | None = None,
    affine: bool = False,
    method: Method | str = Method.PROJECTIVE,
    ranks: Ranks | str = Ranks.EQUAL,
    loss: Loss | str = Loss.L2,
    codes: str | None = None,
    metric: Metric | str = Metric.MODEL,
    sample_weight: Any = None,
    restarts: int = 16,
    max_iter: int = 100,
    tol: float = 1e-3,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> ModelT:
    """Compress the input embedding of a dense model, in place; `save_pretrained` then writes a compressed checkpoint.

    Args:
        model: any transformers model with a token embedding.
        k: number of subspaces.
        j: their dimension; or give
        ratio: the paper's compression rate to reach, 0.4 takes 40% of the parameters off; or
        bits: stored bits for each entry of the table, everything counted; without `codes`, "auto" ones.
        affine: subspaces with means.
        method: "projective", "svd" (k = 1) or "random".
        ranks: "equal", or "adaptive": unequal ranks that take no more parameters than j for all.
        loss: "l2", "l1" or "huber": what the fit sums of the rows' distances to their subspaces.
        codes: dtype to store the factors in: "float32", "float16", "bfloat16"; default: the model's own. "int8" or
            "int4" code the coefficients; "auto" chooses classes, ranks and codes itself and takes neither k nor j.
        metric: of "auto" codes: "model" or "none", see `ProjClustConfig`.
        sample_weight: (n,) row weights, tensor or array; default: all one. `projclust.word_weights` makes them from the
            words of a language, without which "auto" codes lose most of what they are good for.
        restarts, max_iter, tol, seed, device: see `ProjectiveClustering`.

    Returns:
        the same model.

    Raises:
        ProjclustError: the model or the options are unsuitable; the model is then unchanged.
    """
    embedding = input_embedding(model)[1]
    n, d = embedding.num_embeddings, embedding.embedding_dim
    if sum(target is not None for target in (j, ratio, bits)) != 1:
        raise ProjclustError("give exactly one of j, ratio and bits")
    method, ranks, loss = (option.value if isinstance(option, Enum) else option for option in (method, ranks, loss))
    metric = metric.value if isinstance(metric, Enum) else metric
    stored_dtype(codes, embedding.weight.dtype)  # whether there are such codes
    if bits is not None and codes is None:
        codes = AUTO
    if codes == AUTO:
        if j is not None:
            raise ProjclustError("codes auto choose the ranks: give bits or ratio instead of j")
        bits = 8 * embedding.weight.element_size() * (1 - ratio) if ratio is not None else bits
        config = ProjClustConfig(
            affine=affine, method=method, codes=AUTO, seed=seed, ranks=ranks, loss=loss, bits=bits, metric=metric
        )
    else:
        if ratio is not None:
            j = rank_for_ratio(ratio, n, d, k, affine)
        if bits is not None:
            own = str(embedding.weight.dtype).removeprefix("torch.")
            j = rank_for_bytes(bytes_for_bits(bits, n, d), n, d, k, codes or own, affine, ranks)
        assert j is not None
        config = ProjClustConfig(k, j, affine, method, codes, seed, restarts, max_iter, tol, ranks, loss)
    compress_embedding(model, config, sample_weight, device)
    return model


def unfreeze(model: ModelT) -> ModelT:
    """Let a coded embedding learn: its means, deviations and decoders become parameters, in place.

    Codes themselves never change, and what is trained is rounded to what is stored in every step, so the checkpoint
    keeps its size. To be called before the optimizer is made. Float factors are parameters from the start.

    Returns:
        the same model.
    """
    model.get_input_embeddings().requires_grad_(True)
    return model


def compress_embedding(
    model: PreTrainedModel,
    config: ProjClustConfig,
    sample_weight: Any = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    process_group: "dist.ProcessGroup | None" = None,
    encoding: RowProgress | None = None,
) -> Compression:
    """Fit, swap and fill the embedding of `model` as `config` says.

    With a process group all its processes, which have the same model, share the fit and get the same result.

    Args:
        config: stays as it is; that of the model and of the result also has the table's shape.
        encoding: called while rows are coded, with how many are and of how many.

    Raises:
        ProjclustError: as `compress_model`.
    """
    config = deepcopy(config)
    old = input_embedding(model)[1]
    table = old.weight.detach()
    if table.is_meta:
        raise ProjclustError("the model has no weights in memory (it is on the meta device)")
    n, d = table.shape
    weights = as_weights(sample_weight, n, torch.device("cpu"))
    dtype = stored_dtype(config.codes, table.dtype)
    clustering, coded = None, None
    if config.codes == AUTO:
        check_auto(config)
        coded = _fit_auto(model, table, config, weights, device, encoding)
    else:
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
        if config.codes in INTEGER_CODES:
            coded = _code_clusters(table, clustering, config.codes, encoding)

    embedding: ProjectiveEmbedding | CodedEmbedding
    if coded is not None:
        config.set_coded_table(coded.shape)
        embedding = swap_embedding(model, coded.shape)
        assert isinstance(embedding, CodedEmbedding)
        embedding.set_stored(coded.stored)
        parameters = _coded_numbers(coded)
    else:
        assert clustering is not None
        embedding = _filled(model, clustering, config, (n, d), dtype)
        embedding.requires_grad_(old.weight.requires_grad)
        parameters = sum(getattr(embedding, name).numel() for name in embedding.factor_names())
    model.tie_weights()

    model.hf_quantizer = ProjClustHfQuantizer(config, pre_quantized=True)
    model.quantization_method = "projclust"
    model.is_quantized = False
    model.config.quantization_config = config
    error, weighted_error = _relative_errors(table, embedding, weights)
    return Compression(config, clustering, coded, parameters, error, weighted_error)


def check_auto(config: ProjClustConfig) -> None:
    """Refuse options that codes "auto" cannot follow.

    Raises:
        ProjclustError: naming them.
    """
    if config.bits is None or not 0 < config.bits < 32:
        raise ProjclustError("codes auto need a size: bits between 0 and 32 for each entry of the table")
    if config.method != Method.PROJECTIVE.value:
        raise ProjclustError(f"codes auto are of method projective, not {config.method}")
    if config.affine or config.ranks != Ranks.EQUAL.value or config.loss != Loss.L2.value:
        raise ProjclustError("codes auto choose means and ranks, by squared errors: drop affine, ranks and loss")
    if config.metric not in [metric.value for metric in Metric]:
        raise ProjclustError(f"metric must be one of {', '.join(metric.value for metric in Metric)}")


def _fit_auto(
    model: PreTrainedModel,
    table: Tensor,
    config: ProjClustConfig,
    weights: Tensor | None,
    device: torch.device | str | None,
    encoding: RowProgress | None,
) -> CodedMatrix:
    metric = None
    if config.metric == Metric.MODEL.value:
        exponent = getattr(config, "weights_exponent", None) or 1.0
        metric = model_metric(model, None if weights is None else weights ** (1 / exponent), config.seed)
    assert config.bits is not None
    on_device = table if device is None else table.to(device)
    return fit_coded(on_device, bytes_for_bits(config.bits, *table.shape), weights, metric, progress=encoding)


def _code_clusters(
    table: Tensor, clustering: ProjectiveClustering, codes: str | None, encoding: RowProgress | None
) -> CodedMatrix:
    assert codes is not None
    components, means = clustering.components_, clustering.means_
    on_device = table.to(components.device)
    return code_clusters(on_device, clustering.labels_, components, means, clustering.ranks_, codes, encoding)


def _coded_numbers(coded: CodedMatrix) -> int:
    shape = coded.shape
    rows = torch.bincount(coded.classes, minlength=shape.classes).tolist()
    beside = (shape.decoders * shape.rank + shape.affine * shape.classes) * shape.d  # decoders and means
    return sum(map(mul, rows, coded.ranks)) + beside


def _filled(
    model: PreTrainedModel,
    clustering: ProjectiveClustering,
    config: ProjClustConfig,
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> ProjectiveEmbedding:
    """The embedding swapped in, with the fitted factors rounded to `dtype`."""
    bases, means = _rounded(clustering.components_, dtype), clustering.means_
    means = None if means is None else _rounded(means, dtype)
    coefficients = _rounded(clustering.coefficients_, dtype)
    if config.ranks == Ranks.ADAPTIVE.value:
        sizes = torch.bincount(clustering.labels_, minlength=config.n_clusters).tolist()
        config.set_table(*shape, clustering.ranks_, sizes)
    else:
        config.set_table(*shape)
    embedding = swap_embedding(model, stored_shape(config))
    assert isinstance(embedding, ProjectiveEmbedding)
    embedding.set_factors(clustering.labels_, coefficients, bases, means)
    return embedding


def _rounded(factor: Tensor, dtype: torch.dtype) -> Tensor:
    stored = factor.to(dtype)
    if not torch.isfinite(stored).all():
        raise ProjclustError(f"the factors exceed the range of {str(dtype).removeprefix('torch.')}: use codes bfloat16")
    return stored


@torch.no_grad()
def _relative_errors(table: Tensor, embedding: EmbeddingLookup, weights: Tensor | None) -> tuple[float, float]:
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
