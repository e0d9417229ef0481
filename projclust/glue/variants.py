"""What is compared: the dense model and ways to compress its embedding, at equal size unless told otherwise."""

from dataclasses import asdict, dataclass
from typing import Any

from projclust.clustering import Method
from projclust.clustering.ranks import Ranks
from projclust.clustering.robust import Loss
from projclust.errors import ProjclustError
from projclust.hf.config import CODES, check_fit
from projclust.planning import parameter_count, rank_for_ratio

DENSE, BEST, COMPRESSED = "dense", "best", "compressed"


@dataclass(frozen=True)
class Size:
    """The size options of the command line, which variants without options of their own share.

    Attributes:
        k: number of subspaces (SVD has one).
        j: their dimension; None: from `ratio`.
        ratio: the compression rate to reach, where there is no `j`.
        affine: subspaces with means.
        codes: dtype to store the factors in; None: the model's own.
    """

    k: int = 5
    j: int | None = None
    ratio: float = 0.4
    affine: bool = False
    codes: str | None = None


@dataclass(frozen=True)
class Variant:
    """One way to compress a table of known shape.

    Attributes:
        name: as given to `--variants`.
        method: "projective", "svd", "random"; "dense" for none; "compressed" for a model that came so; "best" for the
            one among the others with the best score on the training rows.
        k, j: subspaces and their dimension; None where nothing is compressed here.
        ranks, loss: of the fit, as `ProjectiveClustering` takes them.
    """

    name: str
    method: str
    k: int | None = None
    j: int | None = None
    affine: bool = False
    codes: str | None = None
    ranks: str = Ranks.EQUAL.value
    loss: str = Loss.L2.value

    @property
    def label(self) -> str:
        """The variant with its size, for people."""
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
        unused = {"ranks": Ranks.EQUAL.value, "loss": Loss.L2.value}
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
    if BEST in specs and not any(variant.k is not None for variant in variants):
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
    if name not in {method.value for method in Method}:
        raise ProjclustError(f"there is no variant {name!r}: --variants takes dense, svd, random, projective, best")
    own = dict(_option(spec, pair) for pair in pairs)
    if name == Method.SVD.value and own.get("k", 1) != 1:
        raise ProjclustError(f"the variant {spec}: svd is one subspace")
    if "j" in own and "ratio" in own:
        raise ProjclustError(f"the variant {spec} gives both j and ratio")
    k = 1 if name == Method.SVD.value else own.get("k", size.k)
    affine = own.get("affine", size.affine)
    if not 1 <= k <= n:
        raise ProjclustError(f"the variant {spec} has k={k}, but the embedding has {n} rows")
    if "j" in own:
        j = own["j"]
    elif "ratio" in own:
        j = rank_for_ratio(own["ratio"], n, d, k, affine)
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
    ranks, loss = own.get("ranks", Ranks.EQUAL.value), own.get("loss", Loss.L2.value)
    try:
        check_fit(name, k, ranks, loss)
    except ProjclustError as error:
        raise ProjclustError(f"the variant {spec}: {error}") from None
    return Variant(spec, name, k, j, affine, own.get("codes", size.codes), ranks, loss)


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
            case "affine" if value in ("true", "false") or not separator:
                return name, value != "false"
            case "codes" if value in CODES:
                return name, value
            case "ranks" | "loss":
                return name, value
    except ValueError:
        pass
    raise ProjclustError(
        f"the variant {spec} has the option {pair!r}: there are k=INT, j=INT, ratio=0.4, affine, codes=float16, "
        "ranks=adaptive, loss=l1"
    )
