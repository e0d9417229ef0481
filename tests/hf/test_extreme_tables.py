"""Tables of any scale and shape: what comes out does not depend on the scale, or is refused in one sentence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from coded_tables import gaussian, rebuilt
from tiny_models import COMPRESSIONS
from torch import Tensor

from projclust import ProjclustError, Recipe, compress_model
from projclust.clustering.fit import ClusteringOptions, fit_clustering
from projclust.coding.fit import fit_coded
from projclust.recipes.problem import Problem
from projclust.tables.lookup import EmbeddingLookup

SMALL = gaussian(600, 16)
AS_IT_IS: dict[str, Any] = {"sensitivity": "none", "weights": "uniform"}
OPTIONS: dict[str, dict[str, Any]] = {
    "bits": {"bits": 3, **AS_IT_IS},
    "scalar": {"k": 3, "j": 4, "restarts": 2},
    "int8": {"k": 3, "j": 4, "restarts": 2, "codes": "int8", "affine": True},
    "int4": {"k": 3, "j": 4, "restarts": 2, "codes": "int4"},
    "l1": {"k": 3, "j": 4, "restarts": 2, "loss": "l1"},
    "huber": {"k": 3, "j": 4, "restarts": 2, "loss": "huber"},
    "adaptive": {"k": 3, "j": 4, "restarts": 2, "ranks": "adaptive"},
}


def model_of(table: Tensor) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 40}
    model = hf.BertForMaskedLM(hf.BertConfig(vocab_size=len(table), hidden_size=table.shape[1], **shape)).eval()
    model.to(table.dtype)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(table)
    return model


def compressed(table: Tensor, **options: Any) -> Tensor:
    found: Tensor = compress_model(model_of(table), **options).get_input_embeddings().dense_weight()
    return found


def error(table: Tensor, other: Tensor) -> float:
    table, other = table.double(), other.double()
    return float((table - other).square().sum() / table.square().sum())


@pytest.mark.parametrize("how", [*OPTIONS])
@pytest.mark.parametrize("exponent", [-110, -83, 63, 67, 100, 120])
def test_the_result_does_not_depend_on_the_scale(how: str, exponent: int) -> None:
    # From an ordinary scale, so that both are brought to the same one and all that follows is the same, bit for bit.
    expected = compressed(SMALL * 2.0**60, **OPTIONS[how]).double() * 2.0**-60
    found = compressed(SMALL * 2.0**exponent, **OPTIONS[how]).double() * 2.0**-exponent
    # Next to the smallest numbers of float32 what is read has fewer digits.
    assert error(expected, found) <= (1e-8 if exponent < -80 else 0)
    assert error(SMALL, found) < 0.75


@pytest.mark.parametrize("loss", ["l2", "l1", "huber"])
def test_a_clustering_is_told_in_the_scale_of_its_table(loss: str) -> None:
    options = ClusteringOptions(3, 4, restarts=2, loss=loss, affine=True)  # type: ignore[arg-type]
    costs: list[float] = []
    expected = fit_clustering(SMALL * 2.0**-60, options)
    found = fit_clustering(SMALL * 2.0**60, options, progress=lambda start, step, cost: costs.append(cost))
    length = 2.0**120
    cost = length if loss == "l1" else length**2
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.bases, expected.bases)
    assert found.means is not None
    assert expected.means is not None
    assert torch.equal(found.means, expected.means * length)
    assert torch.equal(found.coefficients, expected.coefficients * length)
    assert torch.equal(found.residuals, expected.residuals * length**2)
    assert found.inertia == expected.inertia * cost
    assert found.cost_history == [value * cost for value in expected.cost_history]
    assert costs[-1] == pytest.approx(found.inertia, rel=0.2)


def test_an_estimate_does_not_depend_on_the_scale() -> None:
    recipe = Recipe.parse("projective:bits=3")
    for exponent in (-80, 66):
        (expected, found) = (
            next(recipe.settled(problem.shape).estimate(problem))
            for problem in (Problem.of(SMALL), Problem.of(SMALL * 2.0**exponent))
        )
        assert found.errors == expected.errors
        assert found.bytes == expected.bytes
        assert expected.rebuild is not None
        assert found.rebuild is not None
        rows = torch.arange(0, 600, 7)
        assert error(expected.rebuild(rows), found.rebuild(rows).double() * 2.0**-exponent) < 1e-8


@pytest.mark.parametrize("far", [{0: 100.0}, {0: 1e4, 1: 100.0}, {7: 1e12}, dict.fromkeys(range(20), 50.0)])
def test_a_few_long_rows_do_not_ruin_the_others(far: dict[int, float]) -> None:
    table = gaussian(3000, 32)
    weights = 1 / (1 + torch.arange(3000, dtype=torch.float64)) ** 0.3
    others = [row for row in range(3000) if row not in far]
    for own in (None, weights):
        expected = rebuilt(fit_coded(table, 3000 * 32 // 8, own))
        with_far = table.clone()
        for row, factor in far.items():
            with_far[row] *= factor
        found = rebuilt(fit_coded(with_far, 3000 * 32 // 8, own))
        assert error(table[others], found[others]) < 1.25 * error(table[others], expected[others])
        assert error(with_far[list(far)], found[list(far)]) < 0.85


def test_a_long_row_in_a_small_table_has_a_class_of_its_own() -> None:
    table = gaussian(200, 8)
    table[5] *= 1000
    coded = fit_coded(table, 200 * 8 // 2)
    assert coded.shape.classes == 2
    others = torch.arange(200) != 5
    assert error(table[others], rebuilt(coded)[others]) < 0.2
    assert coded.shape.bytes <= 200 * 8 // 2


@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("largest", [60000.0, 65504.0])
def test_entries_at_the_end_of_float16_are_refused(bits: int, largest: float) -> None:
    table = (gaussian(600, 16).sign() * largest).half()
    for options in ({"bits": bits, **AS_IT_IS}, OPTIONS["int8"], OPTIONS["int4"], OPTIONS["scalar"]):
        model = model_of(table)
        with pytest.raises(ProjclustError, match="range of float16.*convert the model to float32 or bfloat16 first"):
            compress_model(model, **options)
        # The model is as it was.
        assert type(model.get_input_embeddings()) is torch.nn.Embedding
        assert torch.equal(model.get_input_embeddings().weight, table)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert not hasattr(model.config, "quantization_config")


def test_narrower_factors_out_of_range_name_codes_that_hold_them() -> None:
    with pytest.raises(ProjclustError, match="use codes bfloat16"):
        compress_model(model_of(SMALL * 1e6), k=3, j=4, codes="float16")
    compress_model(model_of(SMALL * 1e6), k=3, j=4, codes="bfloat16")


def test_a_table_further_off_than_zeros_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: Callable[..., Tensor] = EmbeddingLookup.rows
    monkeypatch.setattr(EmbeddingLookup, "rows", lambda self, ids: -rows(self, ids))
    with pytest.raises(ProjclustError, match="further off than zeros"):
        compress_model(model_of(SMALL), k=3, j=8)


@pytest.mark.parametrize(
    "table",
    [
        torch.ones(600, 16),
        torch.zeros(600, 16),
        SMALL * (torch.arange(16) >= 12),
        SMALL * (torch.arange(16) >= 15),
        SMALL[:1],
    ],
    ids=["ones", "zeros", "12 columns of zeros", "15 columns of zeros", "one row"],
)
@pytest.mark.parametrize("sensitivity", ["model", "none"])
def test_degenerate_tables_are_coded(table: Tensor, sensitivity: str) -> None:
    found = compressed(table, bits=6 if len(table) > 1 else 20, sensitivity=sensitivity, weights="uniform")
    assert torch.allclose(found, table, atol=0.1)


@pytest.mark.parametrize("how", sorted({*COMPRESSIONS} - {"auto"}))
def test_degenerate_tables_are_factorised(how: str) -> None:
    for table in (torch.ones(60, 16), torch.zeros(60, 16)):
        assert torch.allclose(compressed(table, **COMPRESSIONS[how]), table, atol=0.1)
