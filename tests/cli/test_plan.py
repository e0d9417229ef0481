import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commandline import Cli, snapshot
from safetensors.torch import load_file
from tiny_models import VOCABULARY, WIDTH, logits, tiny_model
from torch import Tensor
from transformers import AutoModel, BertConfig, BertModel

from projclust.coding.fit import fit_coded
from projclust.coding.predict import Prediction, code_rows, least_bytes, predict_coded
from projclust.errors import ProjclustError
from projclust.hf.probe import probe
from projclust.jobs.plan import PLAN_FILE, PLOT_FILE
from projclust.recipes.problem import Errors, Estimate
from projclust.recipes.recipe import Recipe
from projclust.tables import CodedEmbedding

Refused = Callable[..., str]
FIELDS = {
    *("recipe", "bits_per_weight", "bytes", "relative_error", "weighted_relative_error", "cosine", "kl"),
    *("predicted", "seconds"),
}


def plan(cli: Cli, *arguments: object) -> dict[str, Any]:
    outcome = cli("plan", *arguments, "--format", "json")
    assert outcome.code == 0, outcome.err
    return outcome.json


def rows_of(result: dict[str, Any], recipe: str) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if row["recipe"] == recipe]


def test_the_result_is_the_contract_and_nothing_is_written(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    result = plan(cli, tiny_folder, "--bits", "6,4", "--weights", "uniform")
    assert snapshot(tmp_path) == before
    assert set(result) >= {"model", "n", "d", "bytes_dense", "weights", "metric", "rows", "pick", "notes"}
    assert (result["n"], result["d"], result["bytes_dense"]) == (VOCABULARY, WIDTH, 4 * VOCABULARY * WIDTH)
    assert (result["weights"], result["metric"]) == ("uniform", "none")
    for row in result["rows"]:
        assert set(row) == FIELDS
        assert row["bits_per_weight"] == pytest.approx(8 * row["bytes"] / (VOCABULARY * WIDTH))
        assert row["relative_error"] == pytest.approx(row["weighted_relative_error"], rel=1e-6)
        assert row["cosine"] is row["kl"] is None
    sizes = [row["bytes"] for row in result["rows"]]
    assert sizes == sorted(sizes, reverse=True)
    wanted = {"auto", "projective-float32", "projective-int8", "int8", "int4", "int3", "int2", "nf4", "svd-int4"}
    assert {row["recipe"] for row in result["rows"]} == wanted
    assert "without pq: the sizes are too small for it" in result["notes"]  # its codebooks are larger
    large, small = rows_of(result, "auto")
    assert large["relative_error"] < small["relative_error"]
    assert small["bits_per_weight"] <= 4 < large["bits_per_weight"] <= 6


def test_baselines_are_recipes(cli: Cli, tiny_folder: Path) -> None:
    result = plan(cli, tiny_folder, "--bits", 12, "--weights", "uniform", "--exact")
    table = load_file(tiny_folder / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    for method in ("int8", "int2", "nf4", "svd-int4", "pq"):
        own = Recipe(method=method, bits=12 if method in ("svd-int4", "pq") else None).fit(table)
        (row,) = rows_of(result, method)
        assert row["bytes"] == own.bytes
        rebuilt = own.rows(torch.arange(len(table)))
        assert row["relative_error"] == pytest.approx(error_of(rebuilt, table)[0], rel=1e-3)
        assert row["predicted"] is False


def test_exact_rows_are_what_compress_writes(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    result = plan(cli, tiny_folder, "--bits", 5, "--weights", "uniform", "--exact")
    arguments = ("--weights", "uniform", "--format", "json")
    auto = cli("compress", tiny_folder, "--bits", 5, "--metric", "none", "-o", tmp_path / "a", *arguments).json
    int8 = cli("compress", tiny_folder, "--ratio", 0.4, "--codes", "int8", "-o", tmp_path / "b", *arguments).json
    for report, recipe in ((auto, "auto"), (int8, "projective-int8")):
        (row,) = rows_of(result, recipe)
        assert row["bytes"] == report["bytes_stored"]
        assert row["relative_error"] == pytest.approx(report["relative_error"], rel=1e-4)


def test_a_probe_is_near_one_where_the_table_is_nearly_kept(cli: Cli, tiny_folder: Path) -> None:
    result = plan(cli, tiny_folder, "--bits", "6,3", "--weights", "uniform", "--probe")
    assert result["metric"] == "model"
    (int8,), (int2,), (large, small) = (rows_of(result, name) for name in ("int8", "int2", "auto"))
    assert int8["cosine"] > 0.999
    assert int8["cosine"] > int2["cosine"]
    assert large["cosine"] > small["cosine"]
    assert all(row["cosine"] is not None for row in result["rows"] if row["recipe"] != "pq")
    assert result == {**plan(cli, tiny_folder, "--bits", "6,3", "--weights", "uniform", "--probe"), **unsteady(result)}


def unsteady(result: dict[str, Any]) -> dict[str, Any]:
    """What differs from run to run."""
    return {"rows": result["rows"], "total_seconds": result["total_seconds"]}


@pytest.mark.parametrize("name", ["gpt2", "t5", "llama-untied"])
def test_generative_models_are_probed_and_come_out_unchanged(cli: Cli, tmp_path: Path, name: str) -> None:
    model = tiny_model(name)
    before = logits(model, name)
    table = model.get_input_embeddings().weight.detach().clone()
    halved = [
        Estimate("same", 1, Errors(0, 0), False, lambda ids: table[ids]),
        Estimate("other", 1, Errors(0, 0), False, lambda ids: 0.5 * table[ids]),
    ]
    found = [outputs for outputs in probe(model, halved, None, 0, lambda text: None) if outputs is not None]
    (same, same_kl), (other, other_kl) = found
    assert torch.equal(logits(model, name), before)
    assert same == pytest.approx(1, abs=1e-6)
    assert other is not None
    assert other < 0.9999
    tied = name != "llama-untied"
    assert (same_kl is not None) is tied
    if tied:
        assert same_kl == pytest.approx(0, abs=1e-6)
        assert other_kl is not None
        assert other_kl > 1e-3


def test_a_causal_model_is_picked_by_what_it_says_next(cli: Cli, tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path / "gpt2")
    result = plan(cli, tmp_path / "gpt2", "--bits", "8,6,4", "--probe")
    assert result["weights"] == "model"
    assert result["weights_chosen"] == "model: it generates text"
    pick = result["pick"]
    assert pick["rule"] == "the smallest with a KL divergence of at most 0.1"
    divergence = {row["bytes"]: row["kl"] for row in rows_of(result, "auto")}
    assert pick["bytes"] == min(size for size, kl in divergence.items() if kl <= 0.1)
    assert "--weights" not in pick["command"]


def test_a_pick_of_another_size_than_the_recommended_one_says_why(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projclust.jobs.plan.GOOD_COSINE", 0.9999)  # more than half a bit has
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=4000, **shape)).save_pretrained(tmp_path / "bert")
    arguments = (tmp_path / "bert", "--weights", "uniform", "--bits", "6,4,0.5", "--sensitivity", "none")
    for more in ((), ("--probe",)):
        result = plan(cli, *arguments, *more)
        row = rows_of(result, "auto")[-1]
        measured = "cosine" if more else "weighted error"
        value = row["cosine" if more else "weighted_relative_error"]
        assert "--bits 0.5" not in result["pick"]["command"]
        assert f"--bits 0.5 is where to begin, and has a {measured} of {value:.4f} here" in result["pick"]["rule"]
    assert "where to begin" not in plan(cli, *arguments[:3], "--bits", 0.5)["pick"]["rule"]


def test_picks_and_the_human_table(cli: Cli, tiny_folder: Path) -> None:
    def pick(*arguments: object) -> Any:
        return plan(cli, tiny_folder, "--weights", "uniform", *arguments)["pick"]

    command = f"projclust compress {tiny_folder}"
    assert pick("--bits", 5)["command"] == f"{command} --bits 5 --weights uniform"
    sized = pick("--size", "1KB")
    assert sized["command"] == f"{command} --size 1KB --weights uniform"
    assert sized["bytes"] <= 1000
    assert (
        pick("--bits", 5, "--metric", "none")["command"] == f"{command} --bits 5 --weights uniform --sensitivity none"
    )
    assert pick("--bits", 5.1234567)["command"] == f"{command} --bits 5.1234567 --weights uniform"
    # The smallest that is good; where none is, the largest.
    good = pick("--bits", "8,6,2.5")
    assert good["rule"] == "the smallest with a weighted error of at most 0.25"
    assert "none has" in pick("--bits", "1.8,1.7")["rule"]
    human = cli("plan", tiny_folder, "--weights", "uniform", "--bits", "8,6")
    assert human.out.endswith(f"\nnext: {command} --bits 6 --weights uniform\n")
    assert human.err == ""
    assert "~ predicted" in human.out
    header = next(line for line in human.out.splitlines() if line.startswith("recipe"))
    assert header.split() == ["recipe", "bits", "size", "smaller", "error", "weighted"]


def test_a_folder_is_written_only_where_one_is_named(
    cli: Cli, refused: Refused, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("plan", tiny_folder, "--bits", "6,4", "--weights", "uniform", "-o", out)
    shown = cli(*arguments, "--format", "json").json
    assert {path.name for path in out.iterdir()} == {PLAN_FILE, PLOT_FILE, "projclust_options.yaml"}
    written = (out / PLAN_FILE).read_bytes()
    times = [row.pop("seconds") for row in shown["rows"]] + [shown.pop("total_seconds")]
    assert min(times) >= 0
    assert json.loads(written) == shown
    assert (out / PLOT_FILE).read_bytes().startswith(b"\x89PNG")
    assert "exists" in refused(*arguments)
    # The options that were written do the same again.
    again = plan(cli, tiny_folder, "--config", out / "projclust_options.yaml", "--overwrite")
    assert [row["bytes"] for row in again["rows"]] == [row["bytes"] for row in shown["rows"]]
    # To the last byte: what takes another time every time is only printed.
    assert cli(*arguments, "--overwrite").code == 0
    assert (out / PLAN_FILE).read_bytes() == written


def test_config_files_take_lists_and_numbers(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    for bits, sizes in (([6, 4], 2), (6, 1), ("6,4", 2)):
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"bits": bits, "weights": "uniform"}))
        assert len(rows_of(plan(cli, tiny_folder, "--config", tmp_path / "plan.yaml"), "auto")) == sizes


def test_without_a_tokenizer_rows_weigh_the_same(cli: Cli, refused: Refused, tiny_folder: Path) -> None:
    (tiny_folder / "vocab.txt").unlink()
    outcome = cli("plan", tiny_folder, "--bits", 6, "--format", "json")
    assert outcome.code == 0
    assert outcome.json["weights"] == "uniform"
    assert outcome.err.startswith("warning: all rows weigh the same")
    assert outcome.err.count("\n") == 1
    assert "no tokenizer" in refused("plan", tiny_folder, "--bits", 6, "--weights", "wordfreq")


def test_without_faiss_there_is_a_note(cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    result = plan(cli, tiny_folder, "--bits", 12, "--weights", "uniform")
    assert rows_of(result, "pq") == []
    assert any("without pq" in note and "faiss" in note for note in result["notes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "0"], "between 0 and 32"),
        (["--bits", "nan"], "between 0 and 32"),
        (["--bits", "1,32"], "between 0 and 32"),
        (["--bits", "half"], "--bits takes numbers"),
        (["--bits", ""], "no size to look at"),
        (["--bits", "0.1"], "bytes are too few"),
        (["--size", "10"], "bytes are too few"),
        (["--size", "big"], "--size takes bytes"),
        (["--weights", "zipf"], "--weights must be"),
        (["--metric", "magic"], "magic"),
        (["--seed", "-1"], "seed"),
        (["--revision", "main"], "--revision is for models on the Hub"),
        (["--config", "absent.yaml"], "cannot read the config file"),
    ],
)
def test_mistakes(refused: Refused, tiny_folder: Path, arguments: list[str], message: str) -> None:
    uniform = [] if "--weights" in arguments else ["--weights", "uniform"]
    assert message in refused("plan", tiny_folder, *arguments, *uniform)


def test_models_that_cannot_be_planned_for(
    cli: Cli, refused: Refused, tiny_folder: Path, compressed_folder: Path, tmp_path: Path
) -> None:
    assert "no model folder" in refused("plan", tmp_path / "absent")
    assert "Hub cannot be reached" in refused("plan", "projclust-tests/absent")
    assert "is compressed already (projclust)" in refused("plan", compressed_folder)
    assert "overlap" in refused("plan", tiny_folder, "-o", tiny_folder / "plan")
    outcome = cli("plan", "--help")
    assert outcome.code == 0
    assert "Example: projclust plan" in outcome.out


def error_of(rebuilt: Tensor, table: Tensor, weight: Tensor | None = None) -> tuple[float, float]:
    lost, norm = (rebuilt.double() - table.double()).square().sum(1), table.double().square().sum(1)
    weight = torch.ones(len(table), dtype=torch.float64) if weight is None else weight
    return float(lost.sum() / norm.sum()), float(weight @ lost / (weight @ norm))


@pytest.mark.parametrize(("bits", "with_metric"), [(1.0, False), (0.5, True)])
def test_predictions_on_minilm(minilm_table: Tensor, bits: float, with_metric: bool) -> None:
    # A part of the table; frequencies as Zipf's law has them, for rows come roughly by falling frequency.
    table = minilm_table[1000::20].clone()
    n, d = table.shape
    weight = torch.arange(1, n + 1, dtype=torch.float64) ** -0.4
    metric = None
    if with_metric:
        rotation = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0)).double()).Q
        metric = (rotation * torch.linspace(0.6, 1.6, d)) @ rotation.T
    budget = int(bits * n * d / 8)
    (prediction,) = predict_coded(table, [budget], weight, metric)
    matrix = fit_coded(table, budget, weight, metric)
    plain, weighted = error_of(dense(matrix), table, weight)
    assert prediction.bytes <= budget
    assert prediction.bytes == pytest.approx(matrix.shape.bytes, rel=0.001)
    assert prediction.weighted_relative_error == pytest.approx(weighted, rel=0.06)
    assert prediction.relative_error == pytest.approx(plain, rel=0.06)
    # Some rows alone are coded about as well as among all.
    some = torch.arange(0, n, 5)
    coded = dense(code_rows(prediction, some))
    assert error_of(coded, table[some], weight[some])[1] == pytest.approx(weighted, rel=0.1)


def dense(matrix: Any) -> Tensor:
    embedding = CodedEmbedding(matrix.shape)
    embedding.set_stored(matrix.stored)
    return embedding.dense_weight()


def test_budgets_that_are_too_small() -> None:
    table = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    least = least_bytes(300, 16)
    (smallest,) = predict_coded(table, [least])
    assert isinstance(smallest, Prediction)
    assert smallest.relative_error <= 1.001
    with pytest.raises(ProjclustError, match="too few"):
        predict_coded(table, [least - 1])


def test_minilm_at_one_size(cli: Cli, minilm: Path, minilm_table: Tensor) -> None:
    result = plan(cli, minilm, "--bits", 0.5, "--weights", "uniform")
    (auto,), (svd,) = rows_of(result, "auto"), rows_of(result, "svd-int4")
    assert auto["predicted"] is True
    assert auto["bits_per_weight"] == pytest.approx(0.5, abs=0.001)
    assert auto["relative_error"] < svd["relative_error"] < 1
    (pq,) = rows_of(result, "pq")
    assert auto["relative_error"] < pq["relative_error"]
    assert AutoModel.from_pretrained(minilm).get_input_embeddings().weight.equal(minilm_table)
