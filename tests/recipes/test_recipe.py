"""A recipe as one value: it parses and prints itself, knows its bytes, refuses what does not go together, and fits."""

import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from projclust import OptionError, ProjclustError
from projclust.options import Codes, Loss, Ranks, Sensitivity
from projclust.recipes.problem import relative_errors
from projclust.recipes.recipe import METHODS, Recipe
from projclust.shapes import DenseShape

TABLE = DenseShape(400, 24)
RECIPES = [
    Recipe(k=3, j=5),
    Recipe(k=3, ratio=0.4, affine=True, loss=Loss.L1, restarts=2),
    Recipe(ratio=0.5, k=4, ranks=Ranks.ADAPTIVE, seed=7),
    Recipe(method="svd", size="20KB", codes=Codes.FLOAT16),
    Recipe(method="random", bits=12.25, k=2),
    Recipe(bits=4, weights="wordfreq:en,de", weights_exponent=0.3),
    Recipe(size="1.5KB", sensitivity=Sensitivity.NONE),
    Recipe(bits=6, codes=Codes.INT8, k=3),
    Recipe(j=6, codes=Codes.INT4, k=3, weights="counts:a:b=c.txt"),
    Recipe(method="int4"),
    Recipe(method="svd-int8", bits=3),
    Recipe(method="pq", size="22000"),
]


@pytest.fixture(scope="module")
def table() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(TABLE.n, 8, generator=generator) @ torch.randn(8, TABLE.d, generator=generator)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_recipe_is_read_from_what_it_prints(recipe: Recipe) -> None:
    text = str(recipe)
    again = Recipe.parse(text)
    assert str(again) == text
    named = {**again.as_dict(), "weights": (again.weights or "").replace("+", ",") or None}
    assert named == recipe.as_dict()
    assert "," not in text  # so that several stand in one list


def test_texts_by_hand() -> None:
    assert str(Recipe(k=3, ratio=0.8)) == "projective:k=3:ratio=0.8"
    assert Recipe.parse("projective:k=3:ratio=0.8") == Recipe(k=3, ratio=0.8)
    assert Recipe.parse("projective:affine:j=4") == Recipe(affine=True, j=4)
    assert Recipe.parse("projective:metric=none:bits=1").sensitivity == "none"  # its earlier name
    base = Recipe(k=4, ratio=0.4, seed=3, tol=0.1)
    assert Recipe.parse("projective:j=9", base) == Recipe(k=4, j=9, seed=3, tol=0.1)
    assert Recipe.parse("svd", base) == Recipe(method="svd", ratio=0.4, seed=3, tol=0.1)
    assert Recipe.parse("int8", base) == Recipe(method="int8", seed=3)
    assert Recipe.parse("projective:bits=1", base) == Recipe(bits=1, seed=3)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_bytes_are_known_beforehand_and_the_fit_keeps_to_them(recipe: Recipe, table: Tensor) -> None:
    settled = recipe.settled(TABLE)
    assert settled.settled(TABLE) == settled
    foreseen, budget = settled.stored_bytes(TABLE), recipe.budget(TABLE)
    if budget is not None:
        assert foreseen <= budget
    fitted = settled.fit(table)
    assert fitted.recipe == settled
    assert fitted.bytes <= foreseen
    if not recipe.is_auto and recipe.ranks == "equal":
        assert fitted.bytes == foreseen
    rows = fitted.rows(torch.arange(TABLE.n)).double()
    error = float((rows - table.double()).square().sum() / table.double().square().sum())
    assert fitted.errors.plain == pytest.approx(error, rel=1e-9)
    assert fitted.errors.plain == fitted.errors.weighted
    assert error < 1
    if recipe.is_stored:
        assert fitted.shape is not None
        assert (fitted.factors is None) is (fitted.coded is not None)


def test_the_error_by_hand() -> None:
    table = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    errors = relative_errors(lambda ids: table[ids] * torch.tensor([1.0, 0.5]), table, torch.tensor([1.0, 10.0, 5.0]))
    assert errors.plain == pytest.approx((4 + 1) / (25 + 4))
    assert errors.weighted == pytest.approx((4 + 10) / (25 + 40))
    assert relative_errors(lambda ids: table[ids] + 1, torch.zeros(3, 2), None) == (0.0, 0.0)
    one = relative_errors(lambda ids: 0 * table[ids], table, None, torch.tensor([1]))
    assert one == (1.0, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"j": 5, "bits": 1}, "exactly one of `j`, `ratio`, `bits` and `size`"),
        ({"k": 0, "j": 5}, "`k` must be at least 1, not 0"),
        ({"j": True}, "`j` must be a whole number, not True"),
        ({"j": 2.5}, "`j` must be a whole number, not 2.5"),
        ({"ratio": 1.0}, "`ratio` must lie between 0 and 1"),
        ({"ratio": float("nan")}, "`ratio` must lie between 0 and 1"),
        ({"bits": 32}, "`bits` must lie between 0 and 32"),
        ({"size": "big"}, "`size` takes bytes as 400KB"),
        ({"affine": 1}, "`affine` must be true or false"),
        ({"tol": -1}, "`tol` must be at least 0"),
        ({"seed": -1}, "`seed` must lie between 0"),
        ({"weights": "zipf"}, "`weights` must be auto, model, tokenizer"),
        ({"weights_exponent": 0}, "`weights_exponent` must be a number greater than 0"),
        ({"weights": "uniform", "weights_exponent": 0.3}, "drop `weights_exponent`"),
        ({"bits": 1, "k": 3}, "drop `k`"),
        ({"bits": 1, "restarts": 3}, "drop `restarts`"),
        ({"codes": "auto", "j": 3}, "drop `j`"),
        ({"k": 300, "j": 3, "codes": "int8"}, "at most 256 subspaces"),
        ({"method": "svd", "k": 2}, "drop `k` 2"),
        ({"method": "int8", "affine": True}, "int8 takes no options but `bits`: drop `affine`"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Recipe(**options)


def test_choices_and_defaults_are_closed() -> None:
    assert Recipe.of({"codes": "int8"}).codes is Codes.INT8
    assert {part.name for part in fields(Recipe)} == set(Recipe().as_dict())
    assert set(METHODS) >= {"projective", "svd", "random", "int8", "pq"}
    assert Recipe().as_dict()["codes"] is None
    assert not Recipe(method="pq", bits=1).is_stored
    assert [Recipe(bits=1).is_auto, Recipe(size="1KB").is_auto, Recipe(ratio=0.9).is_auto] == [True, True, False]
    assert not Recipe(method="svd", bits=9).is_auto


def test_sizes_no_table_can_have() -> None:
    for recipe, message in (
        (Recipe(k=401, j=2), "k=401 subspaces need at least as many rows, but the embedding has 400"),
        (Recipe(j=24), "the rank j=24 must be less than the embedding's width 24"),
        (Recipe(ratio=0.999), "leaves no room for k=5"),
        (Recipe(size="100", codes=Codes.INT8), "100 bytes are too few for k=5 subspaces of int8"),
        (Recipe(size="100"), "100 bytes are too few"),
        (Recipe(codes=Codes.AUTO), "codes auto need a size"),
        (Recipe(), "exactly one of"),
        (Recipe(bits=9, codes=Codes.INT8, ranks=Ranks.ADAPTIVE), "needs equal ranks"),
    ):
        with pytest.raises(ProjclustError, match=message):
            recipe.settled(TABLE)
    with pytest.raises(OptionError, match="codes float32 are not narrower than the model's bfloat16"):
        Recipe(j=3, codes=Codes.FLOAT32).settled(DenseShape(400, 24, "bfloat16"))


def test_the_identity_holds_what_is_used() -> None:
    plain = Recipe(k=3, j=5).identity()
    assert plain == Recipe(k=3, j=5, seed=9, weights="uniform").identity()  # counted elsewhere
    assert plain != Recipe(k=3, j=6).identity()
    assert plain != Recipe(k=3, j=5, loss=Loss.HUBER).identity()
    assert Recipe(bits=1).identity() != Recipe(bits=1, sensitivity=Sensitivity.NONE).identity()


def test_options_are_refused_without_torch() -> None:
    program = (
        "import sys\n"
        "from projclust.cli.app import run\n"
        "for wrong in (['--bits', 'x'], ['--bits', '40'], ['--k', '0', '--j', '3'], ['--bits', '1', '-o', sys.executable + '/out']):\n"
        "    assert run(['compress', 'absent', *wrong]) == 2\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'sklearn', 'scipy', 'datasets'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("error: ") == 4
