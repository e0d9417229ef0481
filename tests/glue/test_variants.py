from dataclasses import replace
from typing import Any

import pytest

from projclust.errors import ProjclustError
from projclust.glue.variants import Variant, parse_variant, parse_variants
from projclust.options import Body
from projclust.recipes.recipe import Recipe
from projclust.shapes import DenseShape, FactoredShape

N, D = 30522, 384
TABLE = DenseShape(N, D)


def parameter_count(n: int, d: int, k: int, j: int) -> int:
    return FactoredShape(n, d, k=k, j=j).parameters


def shapes(text: str, base: Recipe) -> dict[str, tuple[int | None, int | None]]:
    return {
        variant.name: (None, None) if variant.recipe is None else (variant.recipe.k, variant.recipe.j)
        for variant in parse_variants(text, base, TABLE)
    }


def recipe_of(variant: Variant) -> Recipe:
    assert variant.recipe is not None
    return variant.recipe


def identity_of(variant: Variant) -> dict[str, Any]:
    """Without what all variants of a run share."""
    identity = variant.identity(Recipe())
    assert [identity.pop(name) for name in ("restarts", "max_iter", "tol")] == [16, 100, 1e-3]
    return identity


def test_a_ratio_gives_every_variant_its_own_largest_rank() -> None:
    assert shapes("dense,svd,random,projective", Recipe(ratio=0.4)) == {
        "dense": (None, None),
        "svd": (1, 227),
        "random": (5, 216),
        "projective": (5, 216),
    }


def test_with_a_rank_svd_gets_equal_size_from_below() -> None:
    size = Recipe(k=5, j=40)
    found = shapes("svd,projective", size)
    assert found["projective"] == (5, 40)
    _, rank = found["svd"]
    assert rank is not None
    budget = parameter_count(N, D, 5, 40)
    assert parameter_count(N, D, 1, rank) <= budget < parameter_count(N, D, 1, rank + 1)


def test_variants_with_options_of_their_own() -> None:
    found = shapes("projective:k=1,projective:k=3:j=9,svd:ratio=0.8,random:k=2", Recipe(ratio=0.4))
    assert found == {
        "projective:k=1": (1, 227),
        "projective:k=3:j=9": (3, 9),
        "svd:ratio=0.8": (1, 75),
        "random:k=2": (2, 224),
    }
    variant = parse_variant("projective:affine:codes=float16", Recipe(ratio=0.4), TABLE)
    assert (recipe_of(variant).affine, recipe_of(variant).codes) == (True, "float16")
    assert variant.label == "projective, k=5, j=216, affine, float16"
    assert parse_variant("svd", Recipe(ratio=0.4), TABLE).label == "svd, j=227"
    assert not recipe_of(parse_variant("projective:affine=false", Recipe(affine=True), TABLE)).affine


def test_options_of_a_variant_win_over_a_common_rank() -> None:
    found = shapes("projective:ratio=0.4,projective:k=2,projective:j=7,projective", Recipe(k=5, j=40))
    assert found["projective:ratio=0.4"] == (5, 216)
    assert found["projective:j=7"] == (5, 7)
    assert found["projective"] == (5, 40)
    k, rank = found["projective:k=2"]  # of equal size
    assert k == 2
    assert rank is not None
    assert parameter_count(N, D, 2, rank) <= parameter_count(N, D, 5, 40) < parameter_count(N, D, 2, rank + 1)
    with pytest.raises(ProjclustError, match="rank j=384"):
        shapes("projective", Recipe(k=5, j=384))


def test_options_of_the_fit_count_where_they_are_used() -> None:
    plain, adaptive, robust = (
        parse_variant(spec, Recipe(), TABLE)
        for spec in ("projective", "projective:ranks=adaptive", "projective:loss=l1")
    )
    assert adaptive.label == "projective, k=5, j=216, adaptive ranks"
    assert robust.label == "projective, k=5, j=216, l1 loss"
    assert plain == replace(parse_variant("projective:ranks=equal:loss=l2", Recipe(), TABLE), name="projective")
    # What a result was hashed with before there were such options.
    fields = {"method": "projective", "k": 5, "j": 216, "affine": False, "codes": None}
    assert identity_of(plain) == fields
    assert identity_of(adaptive) == {**fields, "ranks": "adaptive"}
    assert identity_of(robust) == {**fields, "loss": "l1"}


def test_a_variant_named_twice_is_measured_once() -> None:
    assert list(shapes("dense,dense,svd", Recipe())) == ["dense", "svd"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--variants is empty"),
        ("dense,sdv", "there is no variant 'sdv'"),
        ("projective:k=0", "the variant projective:k=0: `k` must be at least 1"),
        ("projective:k=40000", "k=40000 subspaces need at least as many rows"),
        ("projective:j=384", "rank j=384"),
        ("projective:j=0", "`j` must be at least 1"),
        ("projective:j=x", "the option 'j=x'"),
        ("projective:ratio=1.5", "`ratio` must lie between 0 and 1"),
        ("projective:j=5:ratio=0.5", "both j and ratio"),
        ("projective:codes=int3", "`codes` must be one of"),
        ("projective:colour=red", "no option 'colour=red'"),
        ("svd:k=2", "`method` svd is one subspace"),
        ("svd:ranks=adaptive", "the variant svd:ranks=adaptive: adaptive ranks are of several"),
        ("projective:ranks=uneven", "`ranks` must be one of equal, adaptive"),
        ("projective:loss=l3", "`loss` must be one of l2, l1, huber"),
        ("random:loss=l1", "its loss must be l2"),
        ("dense:k=2", "takes no options"),
        ("dense,best", "best chooses among compressed ones"),
        ("dense,best,svd", "named before it"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ProjclustError) as caught:
        parse_variants(text, Recipe(), TABLE)
    assert message in str(caught.value)


def test_bits_mean_auto_codes_and_other_codes_get_the_largest_rank_that_fits() -> None:
    variant = parse_variant("projective:bits=0.5", Recipe(), TABLE)
    recipe = recipe_of(variant)
    assert (recipe.method, recipe.codes, recipe.bits) == ("projective", "auto", 0.5)
    assert (recipe.k, recipe.j) == (None, None)
    assert variant.label == "auto, 0.5 bits"
    assert parse_variant("projective", Recipe(bits=0.5), TABLE) == replace(variant, name="projective")
    assert parse_variant("projective:bits=0.5:metric=none", Recipe(), TABLE).label == "auto, 0.5 bits, no metric"
    for spec, codes, k in (("projective:bits=2:codes=int8", "int8", 5), ("svd:bits=1:codes=int4", "int4", 1)):
        recipe = recipe_of(parse_variant(spec, Recipe(), TABLE))
        assert (recipe.codes, recipe.k) == (codes, k)
        assert recipe.j is not None
        bits = float(spec.split("=")[1].split(":")[0])
        assert FactoredShape(N, D, k=k, j=recipe.j).bytes(codes) <= bits * N * D / 8
        assert FactoredShape(N, D, k=k, j=recipe.j + 1).bytes(codes) > bits * N * D / 8
    # A variant's own size wins over that of the command line.
    assert recipe_of(parse_variant("projective:j=40", Recipe(bits=0.5), TABLE)).j == 40


def test_the_body_is_part_of_a_variant_and_not_of_baselines() -> None:
    variant, plain = parse_variants("projective:bits=0.5:body=int4,projective:bits=0.5", Recipe(), TABLE)
    assert (recipe_of(variant).body, variant.label) == ("int4", "auto, 0.5 bits, int4 body")
    assert variant.identity(Recipe()) == plain.identity(Recipe()) | {"body": "int4"}
    shared = parse_variants("projective,svd,pq,int8", Recipe(bits=1.0, body=Body.INT8), TABLE)
    assert [recipe_of(one).body for one in shared] == ["int8", "int8", None, None]


def test_baselines_have_a_size_of_their_own_or_take_one() -> None:
    found = parse_variants("int8,int4,int3,int2,nf4,pq:bits=1,pq", Recipe(bits=0.5), TABLE)
    assert [variant.label for variant in found] == ["int8", "int4", "int3", "int2", "nf4", "pq, 1 bits", "pq, 0.5 bits"]
    assert all(variant.recipe is not None for variant in found)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("projective:codes=auto", "need a size"),
        ("projective:bits=0.5:k=3", "choose ranks and codes themselves: drop `k`"),
        ("svd:codes=auto:bits=1", "drop `method`"),
        ("projective:bits=0.5:ratio=0.4", "both ratio and bits"),
        ("projective:bits=64", "`bits` must lie between 0 and 32"),
        ("projective:bits=0.5:metric=l2", "`sensitivity` must be one of"),
        ("int4:bits=1", "one size, 4.5 bits"),
        ("projective:bits=4:codes=int8:ranks=adaptive", "needs equal ranks"),
        ("pq", "needs a size"),
        ("pq:k=3", "no options but `bits`"),
        ("int8:body=int8", "no options but `bits`: drop `body`"),
        ("projective:bits=0.5:body=int2", "`body` must be one of int8, int4"),
        ("projective:size=1MB:of=model", "drop `of`, and name `body`"),
    ],
)
def test_sizes_that_cannot_be(spec: str, message: str) -> None:
    with pytest.raises(ProjclustError, match=message):
        parse_variant(spec, Recipe(), TABLE)


def test_what_earlier_results_were_measured_with_has_not_changed() -> None:
    identity = identity_of(parse_variant("projective:k=3:j=9", Recipe(), TABLE))
    assert set(identity) == {"method", "k", "j", "affine", "codes"}
    identity = identity_of(parse_variant("projective:bits=0.5", Recipe(), TABLE))
    codes = {"method": "projective", "k": None, "j": None, "affine": False, "codes": "auto", "bits": 0.5}
    assert identity == {**codes, "metric": "model"}
    dense = {"method": "dense", "k": None, "j": None, "affine": False, "codes": None}
    assert parse_variant("dense", Recipe(), TABLE).identity(Recipe()) == dense
    # Options of the solver have always counted for what knows nothing of them, too.
    assert parse_variant("int8", Recipe(restarts=3), TABLE).identity(Recipe(restarts=3))["restarts"] == 3


def test_solver_options_of_a_variant_are_part_of_its_identity() -> None:
    base = Recipe(k=3, j=9, restarts=4)
    for name, value in (("restarts", 16), ("max_iter", 7), ("tol", 0.1)):
        plain, own = parse_variant("projective", base, TABLE), parse_variant(f"projective:{name}={value}", base, TABLE)
        assert plain.identity(base) == plain.identity(Recipe()) | {"restarts": 4}
        assert own.identity(base) == plain.identity(base) | {name: value}
    baseline = parse_variant("int4", base, TABLE)
    assert baseline.identity(base)["restarts"] == 4


@pytest.mark.parametrize("option", ["restarts=1", "bits=0.5:weights=uniform", "max_iter=7"])
def test_variants_that_a_report_would_name_the_same_are_refused(option: str) -> None:
    plain = "projective:bits=0.5" if "bits" in option else "projective"
    with pytest.raises(ProjclustError, match=f"would name {plain} and projective:{option} the same"):
        parse_variants(f"{plain},projective:{option}", Recipe(k=3, j=9), TABLE)
    assert len(parse_variants(f"{plain},{plain}", Recipe(k=3, j=9), TABLE)) == 1
