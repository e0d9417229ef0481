"""What is compared: the dense model and recipes for its embedding, at equal size unless told otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from projclust.errors import OptionError, ProjclustError
from projclust.options import Codes, Loss, Method, Ranks, Sensitivity, SizeOf
from projclust.recipes.recipe import DEFAULT_K, METHODS, Recipe, split_options
from projclust.shapes import DenseShape, FactoredShape

DENSE, BEST, COMPRESSED = "dense", "best", "compressed"
# What others do to a table, which is rebuilt as it would be read. SVD is no baseline here: it is stored in our codes.
BASELINES = tuple(name for name, home in METHODS.items() if home not in ("subspaces", "svd"))
DEFAULT_RATIO = 0.4


@dataclass(frozen=True)
class Variant:
    """The model with its embedding stored in one way, named as in `--variants`.

    The recipe is settled for the model's table. "dense", "best" and "compressed" have none: "best" is whichever
    variant scores best on the training rows, and "compressed" is a model that was compressed before.
    """

    name: str
    recipe: Recipe | None = None

    @property
    def method(self) -> str:
        """The method of the recipe, or the name of a variant without one."""
        return self.name if self.recipe is None else self.recipe.method

    @property
    def label(self) -> str:
        """The variant and its size, in words for people."""
        recipe = self.recipe
        if recipe is None:
            return "best by training score" if self.name == BEST else self.name
        return self._label_of_table(recipe) + ("" if recipe.body is None else f", {recipe.body} body")

    @staticmethod
    def _label_of_table(recipe: Recipe) -> str:
        if recipe.is_auto:
            return f"auto, {recipe.bits:g} bits" + ", no metric" * (recipe.sensitivity == Sensitivity.NONE)
        if not recipe.is_stored:
            return recipe.method + ("" if recipe.bits is None else f", {recipe.bits:g} bits")
        ranks = f", {recipe.ranks} ranks" * (recipe.ranks != Ranks.EQUAL)
        loss = f", {recipe.loss} loss" * (recipe.loss != Loss.L2)
        means, codes = ", affine" * recipe.affine, "" if recipe.codes is None else f", {recipe.codes}"
        size = f"j={recipe.j}" if recipe.method == Method.SVD else f"k={recipe.k}, j={recipe.j}"
        return f"{recipe.method}, {size}{ranks}{loss}{means}{codes}"

    def identity(self, fit: Recipe) -> dict[str, Any]:
        """Return what bears on a result.

        The solver's options, those of `fit` where a variant gives none, have always counted for codes and baselines
        too, which know nothing of them.
        """
        if self.recipe is None:
            return {"method": self.name, "k": None, "j": None, "affine": False, "codes": None}
        source = self.recipe if self.recipe.k is not None else fit
        return self.recipe.identity() | {name: getattr(source, name) for name in ("restarts", "max_iter", "tol")}

    def told_apart_by(self, fit: Recipe) -> dict[str, Any]:
        """Return what no other variant has, row weights too."""
        own = self.recipe or fit
        return self.identity(fit) | {"weights": own.weights, "weights_exponent": own.weights_exponent}


def parse_variants(text: str, base: Recipe, table: DenseShape) -> tuple[Variant, ...]:
    """Read `--variants`, each `NAME` or `NAME:option=value:...`; `base` has the options where they give none."""
    specs = [spec.strip() for spec in text.split(",") if spec.strip()]
    # Keyed by their labels, because two ways to write the same variant are one.
    found: dict[str, Variant] = {}
    for variant in [parse_variant(spec, base, table) for spec in specs]:
        known = found.setdefault(variant.label, variant)
        if known.told_apart_by(base) != variant.told_apart_by(base):
            raise ProjclustError(
                f"a report would name {known.name} and {variant.name} the same, {variant.label!r}: give each a run of "
                "its own"
            )
    if not found:
        raise ProjclustError("--variants is empty: name some of dense, svd, random, projective, best")
    if BEST in specs and not best_of(tuple(found.values())):
        raise ProjclustError(
            "the variant best chooses among compressed ones named before it: name some, as in projective:k=1,best"
        )
    return tuple(found.values())


def best_of(variants: Sequence[Variant]) -> set[str]:
    """The labels of the variants that "best" is one of: the compressed ones named before it."""
    names = [variant.name for variant in variants]
    before = variants[: names.index(BEST)] if BEST in names else ()
    return {variant.label for variant in before if variant.recipe is not None}


def parse_variant(spec: str, base: Recipe, table: DenseShape) -> Variant:
    """Read one of the variants that `parse_variants` takes."""
    name = spec.partition(":")[0]
    if name in (DENSE, BEST):
        if name != spec:
            raise ProjclustError(f"the variant {name} takes no options, but {spec!r} gives some")
        return Variant(name)
    if name not in (*Method, *BASELINES):
        known = f"dense, svd, random, projective, best, {', '.join(BASELINES)}"
        raise ProjclustError(f"there is no variant {name!r}: --variants takes {known}")
    try:
        return Variant(spec, _sized(name, split_options(spec)[1], base, table).settled(table))
    except OptionError as error:
        raise OptionError(f"the variant {spec}: {error}") from None


def _sized(name: str, own: dict[str, Any], base: Recipe, table: DenseShape) -> Recipe:
    """Make the recipe of a variant; where it gives no size, it gets one comparable to that of the others."""
    recipe = Recipe.given(name, own, base)
    if recipe.size_of == SizeOf.MODEL:
        raise OptionError("a variant's size is that of the embedding: drop `of`, and name `body`")
    if not recipe.is_stored or recipe.is_auto:
        return recipe
    if recipe.codes is None and table.dtype != "float32":
        # A half-precision model is fine-tuned in float32, but its factors are stored as its table would be.
        recipe = replace(recipe, codes=Codes(table.dtype))
    if not recipe.targets:
        return replace(recipe, ratio=DEFAULT_RATIO)
    k, base_k = recipe.k or (1 if name == Method.SVD else DEFAULT_K), base.k or DEFAULT_K
    if "j" not in own and recipe.j is not None and k != base_k:
        # The variant gets at most as many parameters as the k and j of the command line make.
        most = FactoredShape(table.n, table.d, k=base_k, j=recipe.j, affine=base.affine).parameters
        equal = FactoredShape(table.n, table.d, k=k, j=1, affine=recipe.affine)
        return replace(recipe, j=equal.largest_rank(lambda shape: shape.parameters <= most))
    return recipe
