"""`ProjClustConfig`: the `quantization_config` of a compressed checkpoint."""

from typing import Any

import torch
from transformers.utils.quantization_config import QuantizationConfigMixin

from projclust.clustering import Method
from projclust.errors import ProjclustError

FORMAT_VERSION = 1
CODES = ("float32", "float16", "bfloat16")


class ProjClustConfig(QuantizationConfigMixin):
    """How an input embedding is, or is to be, factorised.

    Pass one to ``from_pretrained(dense_model, quantization_config=ProjClustConfig(n_clusters=5, rank=40))`` to compress
    while loading; a compressed checkpoint has its own in config.json.

    Args:
        n_clusters: k, the number of subspaces.
        rank: j, their dimension.
        affine: whether the subspaces have means.
        method: "projective", "svd" (k = 1) or "random" (the random-partition control).
        codes: dtype in which the factors are stored ("float32", "float16", "bfloat16"); None: the model's own.
        seed, restarts, max_iter, tol: of the solver, see `projclust.ProjectiveClustering`.
        num_embeddings, embedding_dim: n and d, filled in by the compression and checked at load.
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
        restarts: int = 8,
        max_iter: int = 100,
        tol: float = 1e-4,
        num_embeddings: int | None = None,
        embedding_dim: int | None = None,
        version: int = FORMAT_VERSION,
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
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        for name, value in kwargs.items():
            setattr(self, name, value)

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
        if j >= d:
            raise ProjclustError(f"rank j={j} must be less than the embedding's width {d}")
        if k > n:
            raise ProjclustError(f"k={k} subspaces need at least as many rows, but the embedding has {n}")
        if self.codes is not None and self.codes not in CODES:
            raise ProjclustError(f"codes must be one of {', '.join(CODES)}, not {self.codes!r}")


def stored_dtype(codes: str | None, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which `codes` stores the factors of a model of another dtype.

    Raises:
        ProjclustError: there are no such codes, or they are not narrower than the model's own dtype.
    """
    if codes is None:
        return dtype
    if codes not in CODES:
        raise ProjclustError(f"codes must be one of {', '.join(CODES)}, not {codes!r}")
    narrow: torch.dtype = getattr(torch, codes)
    if narrow != dtype and narrow.itemsize >= dtype.itemsize:
        name = str(dtype).removeprefix("torch.")
        raise ProjclustError(f"codes {codes} are not narrower than the model's {name}: leave them out to store {name}")
    return narrow
