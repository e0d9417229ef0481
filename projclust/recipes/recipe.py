"""`Recipe`: how a table is to be stored, as one value. Imports no torch, so that mistakes are refused at once."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from projclust.errors import OptionError
from projclust.options import (
    Body,
    Codes,
    FitOptions,
    HelpPanel,
    Method,
    Sensitivity,
    SizeOf,
    check_combination,
    fields_of,
    names_of,
    option,
    part_of,
    read_value,
)
from projclust.shapes import MOST_CLASSES, DenseShape, parse_size
from projclust.weights.names import AUTO, MOST_EXPONENT, UNIFORM, check_weights_name

if TYPE_CHECKING:
    from torch import Tensor

    from projclust.recipes.problem import Estimate, Fitted, Problem

# Every method, by the module of this room that carries it out. A checkpoint can hold those of the first one.
METHODS = {
    **dict.fromkeys(map(str, Method), "subspaces"),
    **dict.fromkeys(("int8", "int4", "int3", "int2", "nf4"), "rounding"),
    **dict.fromkeys(("svd-float16", "svd-int8", "svd-int4"), "svd"),
    "pq": "pq",
}
TARGETS = ("j", "ratio", "bits", "size")
DEFAULT_K = 5
# The size to begin with, wherever one is named; what it costs: docs/accuracy.md.
RECOMMENDED_BITS = 0.5
RECOMMENDED = f"--bits {RECOMMENDED_BITS:g} is where to begin"

# What codes "auto" choose themselves, and what the baselines that only round or quantize know nothing of.
_OF_SUBSPACES = ("k", "j", *(part.name for part in fields(FitOptions) if part.name != "seed"))
# What baselines, which are never stored, know nothing of.
_OF_CHECKPOINTS = ("codes", "sensitivity", "body", "size_of")
# What the identity of a result has always held; of later options only those that are used count, so that results keep
# their identity. Sizes count as what they come to, and weights and seeds are counted by their values elsewhere.
_IDENTITY = ("method", "k", "j", "affine", "codes", "restarts", "max_iter", "tol")
_NO_IDENTITY = ("weights", "weights_exponent", "sensitivity", "seed")


@dataclass(frozen=True)
class Recipe(FitOptions):
    """How a table is to be stored: a method, one target of size, and the options of the fit.

    The one home of these options: `compress`, `compress_model`, `ProjClustConfig`, the variants of `glue-eval`, the
    rows of `plan` and the baselines are all recipes.

    Raises:
        OptionError: an option cannot have its value, or does not go with another.

    Example::

        recipe = Recipe.parse("projective:k=3:ratio=0.8")
        fitted = recipe.fit(table)
        print(recipe, fitted.bytes, fitted.errors.plain)
    """

    method: str = option(
        "projective",
        "What is fitted; svd and random are baselines.",
        choices=tuple(METHODS),
        metavar="METHOD",
        panel=HelpPanel.METHOD,
    )
    k: int | None = option(
        None, "The number of subspaces (5; 1 with method svd).", "-k", "--k", least=1, panel=HelpPanel.SIZE
    )
    j: int | None = option(None, "The dimension of the subspaces.", "-j", "--j", least=1, panel=HelpPanel.SIZE)
    ratio: float | None = option(
        None,
        "Instead of --j: the fraction of the parameters (with codes auto: of the bytes) to take off, 0.4 for 40%.",
        above=0,
        below=1,
        hint="0.4 takes 40% off",
        panel=HelpPanel.SIZE,
    )
    bits: float | None = option(
        None,
        "The stored bits for each weight of the table, everything counted.",
        above=0,
        below=32,
        panel=HelpPanel.SIZE,
    )
    size: str | None = option(
        None, "The stored bytes of the embedding, as 400KB or 1.5MB.", metavar="BYTES", panel=HelpPanel.SIZE
    )
    weights: str | None = option(
        None,
        "How much each row counts in the fit: model (how often a generative model says each token), "
        "tokenizer[:LANG,...] (how often its tokenizer expects each token), wordfreq[:LANG,...] (by dictionaries), "
        "counts:FILE, text:FILE, uniform, or auto, which takes what suits the model: its own text where it generates, "
        "else the languages of the vocabulary (uniform; with codes auto, auto).",
        panel=HelpPanel.WEIGHTS,
    )
    weights_exponent: float | None = option(
        None,
        "The power to which frequencies are raised to make weights (0.4; with tokenizer 0.5, model 0.6, counts 1).",
        above=0,
        panel=HelpPanel.WEIGHTS,
    )
    size_of: SizeOf = option(
        SizeOf.EMBEDDING,
        "What --size is the size of: the embedding, or the model with all its weights, where --body is chosen too "
        "unless it is named.",
        "--of",
        aliases=("of",),
        panel=HelpPanel.SIZE,
    )
    body: Body | None = option(
        None,
        "Also store the weights beside the table as int8 or int4, which a loaded model has as floats again.",
        panel=HelpPanel.METHOD,
    )
    codes: Codes | None = option(
        None,
        "How numbers are stored: as floats (by default the model's), as int8 or int4, or auto, which --bits and --size "
        "choose by themselves.",
        panel=HelpPanel.METHOD,
    )
    sensitivity: Sensitivity = option(
        Sensitivity.MODEL,
        "With codes auto: count an error by what the model makes of it, or as it is.",
        "--sensitivity",
        "--metric",
        aliases=("metric",),
        panel=HelpPanel.METHOD,
    )

    def check(self) -> None:
        """Refuse options that exclude each other; see `Options.check`."""
        if len(self.targets) > 1:
            raise OptionError("give exactly one of `j`, `ratio`, `bits` and `size`")
        if self.size is not None:
            parse_size(self.size)
        if self.size_of == SizeOf.MODEL and self.size is None:
            raise OptionError("`of` model says what `size` is the size of: give `size`")
        if self.size_of == SizeOf.MODEL and not (self.is_auto and self.is_stored):
            raise OptionError("`of` model needs codes auto, whose table can have any size: drop `codes` and `method`")
        if self.weights is not None:
            check_weights_name(self.weights)
        if self.weights == UNIFORM and self.weights_exponent is not None:
            raise OptionError("uniform weights have no exponent: drop `weights_exponent`, or name other `weights`")
        if (self.weights_exponent or 0) > MOST_EXPONENT:
            raise OptionError(f"`weights_exponent` must be at most {MOST_EXPONENT:g}, not {self.weights_exponent:g}")
        if self.is_auto or not self.is_stored:
            self._check_without_subspaces()
            return
        if self.method == Method.SVD and self.k not in (None, 1):
            raise OptionError(f"`method` svd is one subspace: drop `k` {self.k}")
        if self.codes is not None and self.codes.bits and (self.k or 1) > MOST_CLASSES:
            raise OptionError(f"`codes` {self.codes} takes at most {MOST_CLASSES} subspaces, not {self.k}")
        check_combination(self.method, self.k, self.ranks, self.loss)

    def _check_without_subspaces(self) -> None:
        if self.is_stored and self.method != Method.PROJECTIVE:
            raise OptionError("codes auto choose the subspaces themselves: drop `method`, or name other `codes`")
        names = _OF_SUBSPACES if self.is_stored else (*_OF_SUBSPACES, *_OF_CHECKPOINTS)
        for name in names:
            if getattr(self, name) != part_of(Recipe, name).default:
                if self.is_stored:
                    raise OptionError(
                        f"codes auto choose ranks and codes themselves: drop `{name}`, or name other `codes`"
                    )
                raise OptionError(f"{self.method} takes no options but `bits`: drop `{name}`")

    @classmethod
    def flags_win(cls, values: dict[str, Any], on_line: set[str]) -> dict[str, Any]:
        """A target on the command line replaces those of a file; a k of a file that has no use is dropped."""
        if on_line & set(TARGETS):
            values |= {name: None for name in TARGETS if name in values and name not in on_line}
            if "size" not in on_line and "size_of" not in on_line:
                values.pop("size_of", None)
        # Version 0.1 wrote its default k beside sizes of codes, too.
        unused = values.get("codes") == Codes.AUTO and values.get("k") == DEFAULT_K
        if "k" not in on_line and (unused or values.get("method") == Method.SVD):
            values["k"] = None
        return values

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Recipe":
        """A recipe from options by their names, or by names that they had earlier.

        Raises:
            OptionError: there is no such option, or as `Recipe`.
        """
        known = names_of(cls)
        for name in options:
            if name not in known:
                raise OptionError(
                    f"there is no option {name!r}: there are {', '.join(part.name for part in fields_of(cls))}"
                )
        return cls(**{known[name]: value for name, value in options.items()})

    @classmethod
    def parse(cls, text: str, base: "Recipe | None" = None) -> "Recipe":
        """A recipe from a text such as ``projective:k=3:ratio=0.8``, as `str` writes it.

        Args:
            text: a method, then options as ``name=value``; ``affine`` alone stands for ``affine=true``.
            base: has the options that the text does not give. A target in the text replaces those of the base.

        Raises:
            OptionError: as `Recipe.of`, naming the text.
        """
        try:
            return cls.given(*split_options(text), base or cls())
        except OptionError as error:
            raise OptionError(f"{text}: {error}") from None

    @classmethod
    def given(cls, method: str, own: Mapping[str, Any], base: "Recipe") -> "Recipe":
        """`base` with another method and the options `own`; what the method does not know is left out of the base."""
        options = {part.name: getattr(base, part.name) for part in fields(cls)} | {"method": method}
        if set(own) & set(TARGETS) or METHODS.get(method) == "rounding":  # which has one size
            options |= {**dict.fromkeys(TARGETS), "size_of": SizeOf.EMBEDDING}
        drafted = {**options, **own}
        if drafted["codes"] == Codes.AUTO and method != Method.PROJECTIVE and "codes" not in own:
            options["codes"] = drafted["codes"] = None
        has_size = drafted["bits"] is not None or drafted["size"] is not None
        auto = drafted["codes"] == Codes.AUTO or (drafted["codes"] is None and method == Method.PROJECTIVE and has_size)
        if auto or METHODS.get(method) != METHODS["projective"]:
            left_out = _OF_SUBSPACES if auto else (*_OF_SUBSPACES, "ratio", *_OF_CHECKPOINTS)
            options |= {name: part_of(cls, name).default for name in left_out}
        if method == Method.SVD:
            options["k"] = None
        return cls(**{**options, **own})

    def __str__(self) -> str:
        parts = [self.method]
        for part in fields_of(type(self)):
            value = getattr(self, part.name)
            if part.name == "method" or value == part.default:
                continue
            if isinstance(value, bool):
                value = str(value).lower()
            elif isinstance(value, float):
                value = short_number(value)
            parts.append(f"{part.name}={value}".replace(",", "+"))
        return ":".join(parts)

    @property
    def targets(self) -> list[str]:
        """The names of the targets of size that are given."""
        return [name for name in TARGETS if getattr(self, name) is not None]

    @property
    def is_stored(self) -> bool:
        """Whether a checkpoint can hold such a table; the others are rebuilt and measured only."""
        return METHODS[self.method] == METHODS["projective"]

    @property
    def is_auto(self) -> bool:
        """Whether each coordinate of each row gets as many bits as it deserves: asked for, or because a size is."""
        by_size = self.codes is None and self.method == Method.PROJECTIVE
        return self.codes == Codes.AUTO or (by_size and (self.bits is not None or self.size is not None))

    @property
    def default_weights(self) -> str:
        """The row weights that are taken where none are named."""
        return AUTO if self.is_auto or not self.is_stored else UNIFORM

    def require_target(self) -> "Recipe":
        """The same recipe, if it says how large the table is to be.

        Raises:
            OptionError: it does not.
        """
        if not self.targets:
            raise OptionError("give exactly one of `j`, `ratio`, `bits` and `size`")
        return self

    @property
    def _module(self) -> Any:
        return import_module(f"projclust.recipes.{'codes' if self.is_auto else METHODS[self.method]}")

    def settled(self, table: DenseShape) -> "Recipe":
        """The recipe for a table of this shape: a target of another kind has become a rank, or bits.

        Raises:
            OptionError: the table cannot have that size.
        """
        found: Recipe = self._module.settle(self, table)
        return found

    def budget(self, table: DenseShape) -> int | None:
        """The bytes that the target allows; None where it is not one of bytes."""
        if self.bits is not None:
            return table.bytes_for_bits(self.bits)
        return None if self.size is None else parse_size(self.size)

    def stored_bytes(self, table: DenseShape) -> int:
        """The bytes of a table that is stored so, of unequal ranks the most that they can be; of a settled recipe."""
        found: int = self._module.stored_bytes(self, table)
        return found

    def fit(self, table: "Tensor", weights: "Tensor | None" = None, **more: Any) -> "Fitted":
        """Fit to the rows of a table (n, d), with row weights (n,); see `Problem` for what else can be given.

        Raises:
            ProjclustError: NaN or infinity in the table, unusable weights, or a size that it cannot have.
        """
        # By name, as the methods: they are of this room, know recipes, and import torch.
        problem: Problem = import_module("projclust.recipes.problem").Problem.of(table, weights, **more)
        return self.fit_to(problem)

    def fit_to(self, problem: "Problem") -> "Fitted":
        """Fit to a problem that is made already; see `fit`."""
        found: Fitted = self._module.fit(self.settled(problem.shape), problem)
        return found

    def estimate(self, problem: "Problem", sizes: "Sequence[Recipe]" = ()) -> "Iterator[Estimate]":
        """What this settled recipe, and others of its method in `sizes`, would leave, found out quickly."""
        found, started = self._module.estimate([self, *sizes], problem), time.perf_counter()
        for estimate in found:
            yield replace(estimate, seconds=time.perf_counter() - started)
            del estimate  # it may hold a table, and so would the next one
            started = time.perf_counter()

    def identity(self) -> dict[str, Any]:
        """What of a settled recipe bears on a result, for caches."""
        found = {name: value for name, value in self.as_dict().items() if name in _IDENTITY}
        for part in fields(self):
            value = getattr(self, part.name)
            if part.name not in (*_IDENTITY, *_NO_IDENTITY) and value != part.default:
                found[part.name] = self.as_dict()[part.name]
        return found | ({"metric": str(self.sensitivity)} if self.is_auto else {})


def split_options(text: str) -> tuple[str, dict[str, Any]]:
    """The method of a text such as ``projective:k=3`` and the options it gives.

    Raises:
        OptionError: there is no such option, or its value is of another kind.
    """
    method, *parts = text.split(":")
    known, last = names_of(Recipe), ""
    own: dict[str, Any] = {}
    for part in parts:
        name, separator, value = part.partition("=")
        name = known.get(name.replace("-", "_"), name)
        if name not in known and last == "weights":  # a colon in the name of weights, as in wordfreq:de
            own[last] += f":{part}"
            continue
        if name not in known or name == "method" or not (separator or name == "affine"):
            raise OptionError(
                f"there is no option {part!r}: there are k=INT, j=INT, ratio=0.4, bits=0.5, size=1MB, affine, "
                "codes=float16, ranks=adaptive, loss=l1, weights=uniform, sensitivity=none"
            )
        if name in own:
            raise OptionError(f"it gives {name} twice")
        try:
            own[name] = read_value(part_of(Recipe, name), value if separator else "true")
        except ValueError:
            raise OptionError(f"the option {part!r} is no number") from None
        last = name
    given = [name for name in TARGETS if name in own]
    if len(given) > 1:
        raise OptionError(f"it gives both {given[0]} and {given[1]}")
    return method, own


def short_number(value: float) -> str:
    """A number as short as the same number is read from."""
    text = f"{value:g}"
    return text if float(text) == value else repr(value)
