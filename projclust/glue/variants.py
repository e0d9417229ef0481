"""What is compared: the dense model and ways to compress its embedding, at equal size unless told otherwise."""

from dataclasses import asdict, dataclass
from typing import Any

from projclust.clustering import Method
from projclust.clustering.ranks import Ranks
from projclust.clustering.robust import Loss
from projclust.coding.baselines import Baseline, baseline_bits
from projclust.errors import ProjclustError
from projclust.hf.config import AUTO, CODES, Metric, check_fit
from projclust.planning import bytes_for_bits, parameter_count, rank_for_bytes, rank_for_ratio

DENSE, BEST, COMPRESSED = "dense", "best", "compressed"
# What others do to a table, rebuilt and measured as it would be read; SVD has codes of ours.
BASELINES = tuple(
    baseline.value
    for baseline in (Baseline.INT8, Baseline.INT4, Baseline.INT3, Baseline.INT2, Baseline.NF4, Baseline.PQ)
)


@dataclass(frozen=True)
class Size:
    """The size options of the command line, which variants without options of their own share.

    Attributes:
        k: number of subspaces (SVD has one).
        j: their dimension; None: from `ratio`.
        ratio: the compression rate to reach, where there is no `j`.
        affine: subspaces with means.
        codes: how to store the factors; None: the model's own dtype, but "auto" with `bits`.
        bits: stored bits for each weight of the table to reach, where there is no `j`.
        metric: of codes "auto".
    """

    k: int = 5
    j: int | None = None
    ratio: float = 0.4
    affine: bool = False
    codes: str | None = None
    bits: float | None = None
    metric: str = Metric.MODEL.value


@dataclass(frozen=True)
class Variant:
    """One way to compress a table of known shape.

    Attributes:
        name: as given to `--variants`.
        method: "projective", "svd", "random", or one of `BASELINES`; "dense" for none; "compressed" for a model that
            came so; "best" for the one among the others with the best score on the training rows.
        k, j: subspaces and their dimension; None where there are none, or codes "auto" choose them.
        ranks, loss: of the fit, as `ProjectiveClustering` takes them.
        bits: stored bits for each weight of the table, of codes "auto" and of baselines of free size.
        metric: of codes "auto".
    """

    name: str
    method: str
    k: int | None = None
    j: int | None = None
    affine: bool = False
    codes: str | None = None
    ranks: str = Ranks.EQUAL.value
    loss: str = Loss.L2.value
    bits: float | None = None
    metric: str | None = None

    @property
    def is_compressed_here(self) -> bool:
        """Whether measuring it begins with a compression."""
        return self.method not in (DENSE, BEST, COMPRESSED)

    @property
    def label(self) -> str:
        """The variant with its size, for people."""
        if self.codes == AUTO:
            return f"auto, {self.bits:g} bits" + ", no metric" * (self.metric == Metric.NONE.value)
        if self.method in BASELINES:
            return self.method + ("" if self.bits is None else f", {self.bits:g} bits")
        if self.k is None:
            return "best by training score" if self.method == BEST else self.name
        ranks = f", {self.ranks} ranks" * (self.ranks != Ranks.EQUAL.value)
        loss = f", {self.loss} loss" * (self.loss != Loss.L2.value)
        means, codes = ", affine" * self.affine, "" if self.codes is None else f", {self.codes}"
        size = f"j={self.j}" if self.method == Method.SVD.value else f"k={self.k}, j={self.j}"
        return f"{self.method}, {size}{ranks}{loss}{means}{codes}"

    def identity(self) -> dict[str, Any]:
        """What of it bears on a result. Options it did not always have count where they are used: earlier results of
        the others stay what they were.
        """
        unused = {"ranks": Ranks.EQUAL.value, "loss": Loss.L2.value, "bits": None, "metric": None}
        fields = {name: value for name, value in asdict(self).items() if name != "name"}
        return {name: value for name, value in fields.items() if (name, value) not in unused.items()}


def parse_variants(text: str, size: Size, n: int, d: int) -> tuple[Variant, ...]:
    """The variants that `--variants` names: a list with commas, each `NAME` or `NAME:option=value:...`.

    Args:
        size: for variants without options of their own.
        n, d: shape of the table.

    Raises:
        ProjclustError: no such variant or option, or a size the table cannot have.
    """
    specs = dict.fromkeys(spec.strip() for spec in text.split(",") if spec.strip())
    # By their labels: two ways to write the same variant are one.
    variants = tuple(
        {variant.label: variant for variant in reversed([parse_variant(spec, size, n, d) for spec in specs])}.values()
    )[::-1]
    if not variants:
        raise ProjclustError("--variants is empty: name some of dense, svd, random, projective, best")
    if BEST in specs and not any(variant.is_compressed_here for variant in variants):
        raise ProjclustError("the variant best chooses among compressed ones: name some, as in projective:k=1")
    return variants


def parse_variant(spec: str, size: Size, n: int, d: int) -> Variant:
    """One variant; see `parse_variants`.

    Raises:
        ProjclustError: as there.
    """
    name, *pairs = spec.split(":")
    if name in (DENSE, BEST):
        if pairs:
            raise ProjclustError(f"the variant {name} takes no options, but {spec!r} gives some")
        return Variant(name, name)
    own = dict(_option(spec, pair) for pair in pairs)
    if name in BASELINES:
        return _baseline(spec, name, own, size, n, d)
    if name not in {method.value for method in Method}:
        raise ProjclustError(
            f"there is no variant {name!r}: --variants takes dense, svd, random, projective, best, "
            f"{', '.join(BASELINES)}"
        )
    # Sizes exclude each other, and one of the variant's own replaces those of the command line.
    targets = [target for target in ("j", "ratio", "bits") if target in own]
    if len(targets) > 1:
        raise ProjclustError(f"the variant {spec} gives both {targets[0]} and {targets[1]}")
    bits = own.get("bits", None if targets else size.bits)
    codes = own.get("codes", size.codes)
    if bits is not None and "codes" not in own and name == Method.PROJECTIVE.value and size.codes in (None, AUTO):
        codes = AUTO
    if codes == AUTO:
        return _auto(spec, name, own, bits, size)
    if name == Method.SVD.value and own.get("k", 1) != 1:
        raise ProjclustError(f"the variant {spec}: svd is one subspace")
    k = 1 if name == Method.SVD.value else own.get("k", size.k)
    affine = own.get("affine", size.affine)
    ranks, loss = own.get("ranks", Ranks.EQUAL.value), own.get("loss", Loss.L2.value)
    if not 1 <= k <= n:
        raise ProjclustError(f"the variant {spec} has k={k}, but the embedding has {n} rows")
    if "j" in own:
        j = own["j"]
    elif "ratio" in own:
        j = rank_for_ratio(own["ratio"], n, d, k, affine)
    elif bits is not None:
        j = rank_for_bytes(bytes_for_bits(bits, n, d), n, d, k, codes or "float32", affine, ranks)
    elif size.j is None:
        j = rank_for_ratio(size.ratio, n, d, k, affine)
    elif k == size.k:
        j = size.j
    else:
        # As many parameters as k and j of the command line have, from below.
        budget = parameter_count(n, d, size.k, size.j, size.affine) - (k * d if affine else 0)
        j = min(budget // (n + k * d), d - 1)
    if not 1 <= j < d:
        raise ProjclustError(f"the variant {spec}: the rank j={j} must be at least 1 and less than the width {d}")
    try:
        check_fit(name, k, ranks, loss)
    except ProjclustError as error:
        raise ProjclustError(f"the variant {spec}: {error}") from None
    return Variant(spec, name, k, j, affine, codes, ranks, loss)


def _auto(spec: str, name: str, own: dict[str, Any], bits: float | None, size: Size) -> Variant:
    if name != Method.PROJECTIVE.value:
        raise ProjclustError(f"the variant {spec}: codes auto are of projective")
    for option in set(own) - {"bits", "codes", "metric"}:
        raise ProjclustError(f"the variant {spec}: codes auto choose {option} themselves")
    if bits is None:
        raise ProjclustError(f"the variant {spec}: codes auto need a size, as in projective:bits=0.5")
    metric = own.get("metric", size.metric)
    return Variant(spec, name, codes=AUTO, bits=bits, metric=metric)


def _baseline(spec: str, name: str, own: dict[str, Any], size: Size, n: int, d: int) -> Variant:
    if set(own) - {"bits"}:
        raise ProjclustError(f"the variant {spec} takes no options but bits=F")
    fixed = baseline_bits(Baseline(name), n, d)
    bits = own.get("bits", size.bits)
    if fixed is not None and "bits" in own:
        raise ProjclustError(f"the variant {spec}: {name} has one size, {fixed:g} bits")
    if fixed is None and bits is None:
        raise ProjclustError(f"the variant {spec} needs a size, as in {name}:bits=1")
    return Variant(spec, name, bits=None if fixed is not None else bits)


def _option(spec: str, pair: str) -> tuple[str, Any]:
    name, separator, value = pair.partition("=")
    try:
        match name:
            case "k" | "j":
                return name, int(value)
            case "ratio":
                ratio = float(value)
                if 0 < ratio < 1:
                    return name, ratio
            case "bits":
                bits = float(value)
                if 0 < bits < 32:
                    return name, bits
            case "metric" if value in [metric.value for metric in Metric]:
                return name, value
            case "affine" if value in ("true", "false") or not separator:
                return name, value != "false"
            case "codes" if value in CODES:
                return name, value
            case "ranks" | "loss":
                return name, value
    except ValueError:
        pass
    raise ProjclustError(
        f"the variant {spec} has the option {pair!r}: there are k=INT, j=INT, ratio=0.4, bits=0.5, affine, "
        "codes=float16, ranks=adaptive, loss=l1, metric=none"
    )
