from dataclasses import replace

import pytest

from projclust.errors import ProjclustError
from projclust.glue.variants import Size, parse_variant, parse_variants
from projclust.planning import parameter_count, stored_bytes

N, D = 30522, 384


def shapes(text: str, size: Size) -> dict[str, tuple[int | None, int | None]]:
    return {variant.name: (variant.k, variant.j) for variant in parse_variants(text, size, N, D)}


def test_a_ratio_gives_every_variant_its_own_largest_rank() -> None:
    assert shapes("dense,svd,random,projective", Size(ratio=0.4)) == {
        "dense": (None, None),
        "svd": (1, 227),
        "random": (5, 216),
        "projective": (5, 216),
    }


def test_with_a_rank_svd_gets_equal_size_from_below() -> None:
    size = Size(k=5, j=40)
    found = shapes("svd,projective", size)
    assert found["projective"] == (5, 40)
    _, rank = found["svd"]
    assert rank is not None
    budget = parameter_count(N, D, 5, 40)
    assert parameter_count(N, D, 1, rank) <= budget < parameter_count(N, D, 1, rank + 1)


def test_variants_with_options_of_their_own() -> None:
    found = shapes("projective:k=1,projective:k=3:j=9,svd:ratio=0.8,random:k=2", Size(ratio=0.4))
    assert found == {
        "projective:k=1": (1, 227),
        "projective:k=3:j=9": (3, 9),
        "svd:ratio=0.8": (1, 75),
        "random:k=2": (2, 224),
    }
    variant = parse_variant("projective:affine:codes=float16", Size(ratio=0.4), N, D)
    assert (variant.affine, variant.codes) == (True, "float16")
    assert variant.label == "projective, k=5, j=216, affine, float16"
    assert parse_variant("svd", Size(ratio=0.4), N, D).label == "svd, j=227"
    assert not parse_variant("projective:affine=false", Size(affine=True), N, D).affine


def test_options_of_a_variant_win_over_a_common_rank() -> None:
    found = shapes("projective:ratio=0.4,projective:k=2,projective:j=7,projective", Size(k=5, j=40))
    assert found["projective:ratio=0.4"] == (5, 216)
    assert found["projective:j=7"] == (5, 7)
    assert found["projective"] == (5, 40)
    k, rank = found["projective:k=2"]  # of equal size
    assert k == 2
    assert rank is not None
    assert parameter_count(N, D, 2, rank) <= parameter_count(N, D, 5, 40) < parameter_count(N, D, 2, rank + 1)
    with pytest.raises(ProjclustError, match="rank j=384"):
        shapes("projective", Size(k=5, j=384))


def test_options_of_the_fit_count_where_they_are_used() -> None:
    plain, adaptive, robust = (
        parse_variant(spec, Size(), N, D) for spec in ("projective", "projective:ranks=adaptive", "projective:loss=l1")
    )
    assert adaptive.label == "projective, k=5, j=216, adaptive ranks"
    assert robust.label == "projective, k=5, j=216, l1 loss"
    assert plain == replace(parse_variant("projective:ranks=equal:loss=l2", Size(), N, D), name="projective")
    # What a result was hashed with before there were such options.
    fields = {"method": "projective", "k": 5, "j": 216, "affine": False, "codes": None}
    assert plain.identity() == fields
    assert adaptive.identity() == {**fields, "ranks": "adaptive"}
    assert robust.identity() == {**fields, "loss": "l1"}


def test_a_variant_named_twice_is_measured_once() -> None:
    assert list(shapes("dense,dense,svd", Size())) == ["dense", "svd"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--variants is empty"),
        ("dense,sdv", "there is no variant 'sdv'"),
        ("projective:k=0", "has k=0"),
        ("projective:k=40000", "has k=40000"),
        ("projective:j=384", "rank j=384"),
        ("projective:j=0", "rank j=0"),
        ("projective:j=x", "the option 'j=x'"),
        ("projective:ratio=1.5", "the option 'ratio=1.5'"),
        ("projective:j=5:ratio=0.5", "both j and ratio"),
        ("projective:codes=int3", "the option 'codes=int3'"),
        ("projective:colour=red", "the option 'colour=red'"),
        ("svd:k=2", "svd is one subspace"),
        ("svd:ranks=adaptive", "the variant svd:ranks=adaptive: adaptive ranks are of several"),
        ("projective:ranks=uneven", "ranks must be one of equal, adaptive"),
        ("projective:loss=l3", "loss must be one of l2, l1, huber"),
        ("random:loss=l1", "its loss must be l2"),
        ("dense:k=2", "takes no options"),
        ("dense,best", "best chooses among compressed ones"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ProjclustError) as caught:
        parse_variants(text, Size(), N, D)
    assert message in str(caught.value)


def test_bits_mean_auto_codes_and_other_codes_get_the_largest_rank_that_fits() -> None:
    variant = parse_variant("projective:bits=0.5", Size(), N, D)
    assert (variant.method, variant.codes, variant.bits, variant.k, variant.j) == (
        "projective",
        "auto",
        0.5,
        None,
        None,
    )
    assert variant.label == "auto, 0.5 bits"
    assert variant.is_compressed_here
    assert parse_variant("projective", Size(bits=0.5), N, D) == replace(variant, name="projective")
    assert parse_variant("projective:bits=0.5:metric=none", Size(), N, D).label == "auto, 0.5 bits, no metric"
    for spec, codes, k in (("projective:bits=2:codes=int8", "int8", 5), ("svd:bits=1:codes=int4", "int4", 1)):
        variant = parse_variant(spec, Size(), N, D)
        assert (variant.codes, variant.k) == (codes, k)
        assert variant.j is not None
        bits = float(spec.split("=")[1].split(":")[0])
        assert stored_bytes(N, D, k, variant.j, codes) <= bits * N * D / 8
        assert stored_bytes(N, D, k, variant.j + 1, codes) > bits * N * D / 8
    # A variant's own size wins over that of the command line.
    assert parse_variant("projective:j=40", Size(bits=0.5), N, D).j == 40


def test_baselines_have_a_size_of_their_own_or_take_one() -> None:
    found = parse_variants("int8,int4,int3,int2,nf4,pq:bits=1,pq", Size(bits=0.5), N, D)
    assert [variant.label for variant in found] == ["int8", "int4", "int3", "int2", "nf4", "pq, 1 bits", "pq, 0.5 bits"]
    assert all(variant.is_compressed_here for variant in found)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("projective:codes=auto", "need a size"),
        ("projective:bits=0.5:k=3", "choose k themselves"),
        ("svd:codes=auto:bits=1", "of projective"),
        ("projective:bits=0.5:ratio=0.4", "both ratio and bits"),
        ("projective:bits=64", "bits=64"),
        ("projective:bits=0.5:metric=l2", "metric=l2"),
        ("int4:bits=1", "one size, 4.5 bits"),
        ("projective:bits=4:codes=int8:ranks=adaptive", "needs equal ranks"),
        ("pq", "needs a size"),
        ("pq:k=3", "no options but bits"),
    ],
)
def test_sizes_that_cannot_be(spec: str, message: str) -> None:
    with pytest.raises(ProjclustError, match=message):
        parse_variant(spec, Size(), N, D)


def test_what_earlier_results_were_measured_with_has_not_changed() -> None:
    identity = parse_variant("projective:k=3:j=9", Size(), N, D).identity()
    assert set(identity) == {"method", "k", "j", "affine", "codes"}
