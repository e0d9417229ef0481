"""`ProjClustConfig`: the `quantization_config` of a compressed checkpoint."""

from enum import Enum
from typing import Any

import torch
from transformers.utils.quantization_config import QuantizationConfigMixin

from projclust.clustering import Method
from projclust.clustering.estimator import check_combination
from projclust.clustering.ranks import Ranks
from projclust.clustering.robust import Loss
from projclust.coding.stored import CodedShape
from projclust.errors import ProjclustError

# Of the stored format: with one rank for all clusters, with a rank for each, and coded.
EQUAL_RANKS_FORMAT, UNEQUAL_RANKS_FORMAT, CODED_FORMAT = FORMAT_VERSIONS = (1, 2, 3)
FLOAT_CODES = ("float32", "float16", "bfloat16")
INTEGER_CODES = ("int8", "int4")
AUTO = "auto"
CODES = (*FLOAT_CODES, *INTEGER_CODES, AUTO)


class Metric(str, Enum):
    """In which coordinates the errors of coded rows count."""

    NONE = "none"
    MODEL = "model"


# The sizes of a coded table beside those that all tables have.
_CODING = ("decoders", "decoder_bits", "coded", "code_bytes")


class ProjClustConfig(QuantizationConfigMixin):
    """How an input embedding is, or is to be, factorised.

    Pass one to ``from_pretrained(dense_model, quantization_config=ProjClustConfig(n_clusters=5, rank=40))`` to compress
    while loading; a compressed checkpoint has its own in config.json.

    Args:
        n_clusters: k, the number of subspaces.
        rank: j, their dimension.
        affine: whether the subspaces have means.
        method: "projective", "svd" (k = 1) or "random" (the random-partition control).
        codes: dtype in which the factors are stored ("float32", "float16", "bfloat16"), "int8" or "int4" for
            coefficients of so many bits, or "auto" for codes of as many bits as each coordinate of each row deserves,
            within `bits`; None: the model's own dtype.
        seed, restarts, max_iter, tol: of the solver, see `projclust.ProjectiveClustering`.
        ranks: "equal", or "adaptive": unequal ranks that take no more parameters than `rank` for all.
        loss: of the fit, "l2", "l1" or "huber".
        bits: with codes "auto": stored bits for each entry of the table, everything counted.
        metric: with codes "auto": "model" measures the rows' errors by what the model's gradients say they do to its
            outputs, "none" as they are.
        num_embeddings, embedding_dim: n and d, filled in by the compression and checked at load.
        cluster_ranks, cluster_sizes: rank and rows of each cluster, filled in and checked likewise; None where all have
            the same rank.
        coding: the sizes of a coded table, filled in and checked likewise; None for float codes.
        version: of the stored format.
        kwargs: fields of later versions, kept as they are.
    """

    def __init__(
        self,
        n_clusters: int = 5,
        rank: int = 40,
        affine: bool = False,
        method: str = Method.PROJECTIVE.value,
        codes: str | None = None,
        seed: int = 0,
        restarts: int = 16,
        max_iter: int = 100,
        tol: float = 1e-3,
        ranks: str = Ranks.EQUAL.value,
        loss: str = Loss.L2.value,
        bits: float | None = None,
        metric: str = Metric.MODEL.value,
        num_embeddings: int | None = None,
        embedding_dim: int | None = None,
        cluster_ranks: list[int] | None = None,
        cluster_sizes: list[int] | None = None,
        coding: dict[str, Any] | None = None,
        version: int = EQUAL_RANKS_FORMAT,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("quant_method", None)
        kwargs.pop("dequantize", None)  # an option of other quantizers' loading, never stored here
        self.quant_method = "projclust"
        self.version = version
        self.n_clusters = n_clusters
        self.rank = rank
        self.affine = affine
        self.method = method
        self.codes = codes
        self.seed = seed
        self.restarts = restarts
        self.max_iter = max_iter
        self.tol = tol
        self.ranks = ranks
        self.loss = loss
        self.bits = bits
        self.metric = metric
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.cluster_ranks = cluster_ranks
        self.cluster_sizes = cluster_sizes
        self.coding = coding
        for name, value in kwargs.items():
            setattr(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """The fields of config.json."""
        # As they were before the format knew of these.
        default: dict[str, Any] = {"ranks": Ranks.EQUAL.value, "loss": Loss.L2.value}
        default |= dict.fromkeys(("cluster_ranks", "cluster_sizes", "bits", "coding"))
        fields: dict[str, Any] = super().to_dict()
        if self.codes != AUTO:
            del fields["metric"]
        return {name: value for name, value in fields.items() if name not in default or value != default[name]}

    def check_shapes(self) -> None:
        """Refuse values no table can have, so that a damaged config.json asks for nothing absurd.

        Raises:
            ProjclustError: naming the field.
        """
        n, d, k, j = (getattr(self, name) for name in ("num_embeddings", "embedding_dim", "n_clusters", "rank"))
        for name, value in (("num_embeddings", n), ("embedding_dim", d), ("n_clusters", k), ("rank", j)):
            if type(value) is not int or value < 1:
                raise ProjclustError(f"quantization_config has {name}={value!r}, which is no positive integer")
        if type(self.affine) is not bool:
            raise ProjclustError(f"quantization_config has affine={self.affine!r}, which is neither true nor false")
        if self.codes is not None and self.codes not in CODES:
            raise ProjclustError(f"codes must be one of {', '.join(CODES)}, not {self.codes!r}")
        # Of coded tables the codes are of one dimension, and never taken for a table.
        if j >= d + (self.codes == AUTO):
            raise ProjclustError(f"rank j={j} must be less than the embedding's width {d}")
        if k > n:
            raise ProjclustError(f"k={k} subspaces need at least as many rows, but the embedding has {n}")
        if (self.version == CODED_FORMAT) != (self.coding is not None):
            raise ProjclustError(f"quantization_config has version={self.version!r} and coding={self.coding!r}")
        if self.version == CODED_FORMAT:
            self._check_coding(n, d)
        elif self.version == UNEQUAL_RANKS_FORMAT:
            self._check_clusters("cluster_ranks", 1, d - 1)
            self._check_clusters("cluster_sizes", 0, n)
            if sum(self.cluster_sizes or []) != n:
                raise ProjclustError(f"quantization_config has cluster_sizes that do not sum to num_embeddings={n}")
        elif self.cluster_ranks is not None or self.cluster_sizes is not None:
            raise ProjclustError(f"quantization_config has the ranks of clusters, but version={self.version!r}")

    def _check_clusters(self, name: str, least: int, most: int) -> None:
        values = getattr(self, name)
        if type(values) is not list or len(values) != self.n_clusters:
            raise ProjclustError(f"quantization_config has {name} that are no list of {self.n_clusters} integers")
        for value in values:
            if type(value) is not int or not least <= value <= most:
                raise ProjclustError(f"quantization_config has {value!r} among {name}, not one of {least} .. {most}")

    def _check_coding(self, n: int, d: int) -> None:
        k, j = self.n_clusters, self.rank
        limits = {"decoders": (1, k), "decoder_bits": (4, 8), "coded": (0, k * j), "code_bytes": (0, n * j)}
        coding = self.coding
        if not isinstance(coding, dict):
            raise ProjclustError(f"quantization_config has coding={coding!r}, which is no object")
        for name, (least, most) in limits.items():
            value = coding.get(name)
            if type(value) is not int or not least <= value <= most:
                raise ProjclustError(f"quantization_config has {name}={value!r}, not one of {least} .. {most}")
        if coding["decoder_bits"] not in (4, 8):
            raise ProjclustError(f"quantization_config has decoder_bits={coding['decoder_bits']!r}, not 4 or 8")
        if k > 256:
            raise ProjclustError(f"quantization_config has n_clusters={k}, but coded tables have at most 256 classes")

    def set_coded_table(self, shape: CodedShape) -> None:
        """Enter the sizes of a coded table."""
        self.num_embeddings, self.embedding_dim = shape.n, shape.d
        self.n_clusters, self.rank, self.affine = shape.classes, shape.rank, shape.affine
        self.coding = {name: getattr(shape, name) for name in _CODING}
        self.version = CODED_FORMAT

    def coded_shape(self) -> CodedShape:
        """The sizes of a coded table; to be checked first."""
        n, d = int(self.num_embeddings or 0), int(self.embedding_dim or 0)
        sizes = {name: int(value) for name, value in (self.coding or {}).items() if name in _CODING}
        return CodedShape(n, d, self.n_clusters, self.rank, affine=self.affine, **sizes)

    def set_table(self, n: int, d: int, ranks: list[int] | None = None, sizes: list[int] | None = None) -> None:
        """Enter the shape of the table that was fitted: n x d, and of unequal ranks those and the clusters' sizes."""
        self.num_embeddings, self.embedding_dim = n, d
        self.cluster_ranks, self.cluster_sizes = ranks, sizes
        self.version = EQUAL_RANKS_FORMAT if ranks is None else UNEQUAL_RANKS_FORMAT


def check_fit(method: str, k: int, ranks: str, loss: str) -> None:
    """Refuse options of a fit that are unknown or exclude each other, before a model is loaded for it.

    Raises:
        ProjclustError: naming them.
    """
    for name, value, choices in (("method", method, Method), ("ranks", ranks, Ranks), ("loss", loss, Loss)):
        known = [str(choice.value) for choice in choices]
        if value not in known:
            raise ProjclustError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    check_combination(Method(method), k, Ranks(ranks), Loss(loss))


def stored_dtype(codes: str | None, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which float `codes` store the factors of a model of another dtype; uint8 for others.

    Raises:
        ProjclustError: there are no such codes, or they are not narrower than the model's own dtype.
    """
    if codes is None:
        return dtype
    if codes not in CODES:
        raise ProjclustError(f"codes must be one of {', '.join(CODES)}, not {codes!r}")
    if codes not in FLOAT_CODES:
        return torch.uint8
    narrow: torch.dtype = getattr(torch, codes)
    if narrow != dtype and narrow.itemsize >= dtype.itemsize:
        name = str(dtype).removeprefix("torch.")
        raise ProjclustError(f"codes {codes} are not narrower than the model's {name}: leave them out to store {name}")
    return narrow
