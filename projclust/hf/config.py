"""`ProjClustConfig`: the `quantization_config` of a compressed checkpoint, or how one is to be made."""

from copy import copy
from dataclasses import fields
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from projclust.errors import ProjclustError
from projclust.options import Body, Codes
from projclust.recipes.recipe import DEFAULT_K, Recipe
from projclust.shapes import MOST_CLASSES, CodedShape, FactoredShape

# The stored formats: one rank for all clusters, a rank for each, and coded.
EQUAL_RANKS_FORMAT, UNEQUAL_RANKS_FORMAT, CODED_FORMAT = FORMAT_VERSIONS = (1, 2, 3)
DEFAULT_RANK = 40

# What config.json calls options of a recipe.
_STORED_NAMES = {"k": "n_clusters", "j": "rank", "sensitivity": "metric"}
_RECIPE = {part.name: _STORED_NAMES.get(part.name, part.name) for part in fields(Recipe)}
# What only a table that was compressed has.
_TABLE = ("num_embeddings", "embedding_dim", "added_rows", "cluster_ranks", "cluster_sizes", "coding", "sha256")
# Fields that the format did not always have: they are stored where they are not these.
_LATER: dict[str, Any] = {"ranks": "equal", "loss": "l2"}
_LATER |= dict.fromkeys(("cluster_ranks", "cluster_sizes", "bits", "coding", "weights", "weights_exponent"))
_LATER |= dict.fromkeys(("sha256", "body", "added_rows"))
# Options of a compression that the table has been given, and what is used once.
_NEVER_STORED = ("ratio", "size", "size_of", "sample_weight", "tokenizer", "twin_check")
# The sizes of a coded table beside those that all tables have.
_CODING = ("decoders", "decoder_bits", "coded", "code_bytes")


class ProjClustConfig(QuantizationConfigMixin):
    """How an input embedding is, or is to be, compressed.

    Pass one to ``from_pretrained`` of a dense model to compress it while loading; a compressed checkpoint has its own
    in config.json.

    Args:
        n_clusters: k, the number of subspaces (5, where no other target of size is given).
        rank: j, their dimension (then 40).
        sample_weight: (n,) row weights to use in place of those that `weights` names; not stored.
        tokenizer: the model's, for row weights; by default the one beside the weights. It is not stored.
        twin_check: whether to refuse a model that answers otherwise than with the same rows in a dense table.
        options: those of `projclust.recipes.recipe.Recipe`: ``bits=0.5``, ``ratio=0.4``, ``codes="int8"``, ...

    Raises:
        OptionError: an option is unknown, cannot have its value, or does not go with another.

    Example::

        config = ProjClustConfig(bits=0.5)
        model = AutoModel.from_pretrained("roberta-base", quantization_config=config)
    """

    n_clusters: int
    rank: int
    affine: bool
    codes: str | None
    body: str | None
    version: int
    num_embeddings: int | None
    embedding_dim: int | None
    added_rows: int | None
    cluster_ranks: list[int] | None
    cluster_sizes: list[int] | None
    coding: dict[str, Any] | None
    sha256: str | None

    def __init__(
        self,
        n_clusters: int | None = None,
        rank: int | None = None,
        *,
        sample_weight: Any = None,
        tokenizer: Any = None,
        twin_check: bool = True,
        **options: Any,
    ) -> None:
        recipe = Recipe.of({"k": n_clusters, "j": rank, **options})
        self._set_recipe(recipe)
        if not recipe.targets and not recipe.is_auto:
            self.rank = DEFAULT_RANK
        self.quant_method, self.version = "projclust", EQUAL_RANKS_FORMAT
        self.__dict__.update(dict.fromkeys(_TABLE))
        self.sample_weight, self.tokenizer, self.twin_check = sample_weight, tokenizer, twin_check

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The configuration that a config.json states, as it is: the load checks it.

        Fields of later versions are kept. See `QuantizationConfigMixin.from_dict` for the arguments.
        """
        config = cls()
        stated = {name: value for name, value in config_dict.items() if name not in ("dequantize", "quant_method")}
        config.__dict__.update(stated)
        unused = config.update(**kwargs)
        return (config, unused) if return_unused_kwargs else config

    def _set_recipe(self, recipe: Recipe) -> None:
        self.__dict__.update({_RECIPE[name]: value for name, value in recipe.as_dict().items()})
        if recipe.is_auto:
            self.codes = str(Codes.AUTO)
        elif recipe.k is None:
            self.n_clusters = 1 if recipe.method == "svd" else DEFAULT_K

    @property
    def recipe(self) -> Recipe:
        """The recipe of a table that is yet to be compressed."""
        return Recipe(**{name: getattr(self, stored) for name, stored in _RECIPE.items()})

    def to_dict(self) -> dict[str, Any]:
        """The fields of config.json."""
        found: dict[str, Any] = {name: value for name, value in self.__dict__.items() if name not in _NEVER_STORED}
        if self.codes != Codes.AUTO:
            del found["metric"]
        return {name: value for name, value in found.items() if name not in _LATER or value != _LATER[name]}

    def of_table(self, recipe: Recipe, shape: FactoredShape | CodedShape, weights: dict[str, Any]) -> "ProjClustConfig":
        """The configuration of a table that was compressed by a settled recipe.

        The weights are "weights" and "weights_exponent", as they are recorded.
        """
        config = copy(self)
        config.sample_weight = config.tokenizer = config.sha256 = None
        config._set_recipe(recipe)
        config.__dict__.update(weights)
        config.set_shape(shape)
        return config

    def set_shape(self, shape: FactoredShape | CodedShape) -> None:
        """State what is stored of a table of this shape."""
        self.num_embeddings, self.embedding_dim, self.added_rows = shape.n, shape.d, shape.added or None
        if isinstance(shape, CodedShape):
            self.n_clusters, self.rank, self.affine = shape.classes, shape.rank, shape.affine
            self.coding = {name: getattr(shape, name) for name in _CODING}
            self.version = CODED_FORMAT
        elif shape.ranks is not None and shape.sizes is not None:
            self.cluster_ranks, self.cluster_sizes = list(shape.ranks), list(shape.sizes)
            self.version = UNEQUAL_RANKS_FORMAT

    def stored_shape(self) -> FactoredShape | CodedShape:
        """The shape that config.json states; one that no table can have is refused, by the name of the field."""
        self._check_shapes()
        n, d, added = int(self.num_embeddings or 0), int(self.embedding_dim or 0), int(self.added_rows or 0)
        if self.coding is not None:
            coding = {name: int(self.coding[name]) for name in _CODING}
            return CodedShape(n, d, classes=self.n_clusters, rank=self.rank, affine=self.affine, added=added, **coding)
        ranks = None if self.cluster_ranks is None else tuple(self.cluster_ranks)
        sizes = None if self.cluster_sizes is None else tuple(self.cluster_sizes)
        k, j, affine = self.n_clusters, self.rank, self.affine
        return FactoredShape(n, d, k=k, j=j, affine=affine, ranks=ranks, sizes=sizes, added=added)

    def _check_shapes(self) -> None:
        n, d, k, j = (getattr(self, name) for name in ("num_embeddings", "embedding_dim", "n_clusters", "rank"))
        for name, value in (("num_embeddings", n), ("embedding_dim", d), ("n_clusters", k), ("rank", j)):
            if type(value) is not int or value < 1:
                raise ProjclustError(f"quantization_config has {name}={value!r}, which is no positive integer")
        if self.added_rows is not None and (type(self.added_rows) is not int or self.added_rows < 1):
            raise ProjclustError(
                f"quantization_config has added_rows={self.added_rows!r}, which is no positive integer"
            )
        if type(self.affine) is not bool:
            raise ProjclustError(f"quantization_config has affine={self.affine!r}, which is neither true nor false")
        if self.codes is not None and self.codes not in map(str, Codes):
            raise ProjclustError(f"codes must be one of {', '.join(Codes)}, not {self.codes!r}")
        if self.body is not None and self.body not in map(str, Body):
            raise ProjclustError(f"quantization_config has body={self.body!r}, not one of {', '.join(Body)}")
        # A coded table has codes of one dimension, and is never taken for a dense one.
        if j >= d + (self.codes == Codes.AUTO):
            raise ProjclustError(f"rank j={j} must be less than the embedding's width {d}")
        if k > n:
            raise ProjclustError(f"k={k} subspaces need at least as many rows, but the embedding has {n}")
        if (self.version == CODED_FORMAT) != (self.coding is not None):
            raise ProjclustError(f"quantization_config has version={self.version!r} and coding={self.coding!r}")
        if self.version == CODED_FORMAT:
            self._check_coding(n)
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

    def _check_coding(self, n: int) -> None:
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
        if k > MOST_CLASSES:
            raise ProjclustError(
                f"quantization_config has n_clusters={k}, but coded tables have at most {MOST_CLASSES} classes"
            )
