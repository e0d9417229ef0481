import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commandline import Cli, snapshot
from safetensors.torch import load_file, save_file
from tiny_models import VOCABULARY, WIDTH, logits, tiny_model, uneven_model
from transformers import AutoModel, BertConfig, BertModel

from projclust import ProjClustConfig, compress_model
from projclust.checkpoints.load import load_checkpoint
from projclust.jobs.options import CompressOptions
from projclust.options import Codes
from projclust.recipes.recipe import Recipe
from projclust.shapes import FactoredShape
from projclust.weights.names import DEFAULT_EXPONENT

FAR = "warning: the outputs are far from the dense model's ("
REPORT_FIELDS = {
    *("model", "method", "k", "j", "loss", "affine", "n", "d", "seed", "weights", "codes", "device"),
    *("params_dense", "params_stored", "compression_rate"),
    *("bytes_dense", "bytes_stored", "bits_per_weight"),
    *("relative_error", "weighted_relative_error"),
    *("cluster_sizes", "ranks", "iterations", "cost_history", "restarts"),
    *("fit_seconds", "total_seconds", "peak_memory_bytes", "output", "versions"),
}


def compress(cli: Cli, *arguments: object) -> dict[str, Any]:
    outcome = cli("compress", *arguments, "--format", "json")
    assert outcome.code == 0, outcome.err
    assert not [line for line in outcome.complaints if not line.startswith(FAR)]
    return outcome.json


def test_report_is_the_contract_and_tells_the_truth(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    source = snapshot(tiny_folder)
    out = tmp_path / "out"
    report = compress(cli, tiny_folder, "--k", 3, "--j", 5, "-o", out)
    assert snapshot(tiny_folder) == source
    assert set(report) >= REPORT_FIELDS
    assert {**json.loads((out / "projclust_report.json").read_text()), "pushed_to": None} == report
    n, d, k, j = VOCABULARY, WIDTH, 3, 5
    assert (report["n"], report["d"], report["k"], report["j"]) == (n, d, k, j)
    assert report["params_dense"] == n * d
    assert report["params_stored"] == n * j + k * j * d
    assert report["compression_rate"] == 1 - report["params_stored"] / (n * d)
    assert report["ranks"] == [j] * k
    assert sum(report["cluster_sizes"]) == n
    assert report["iterations"] == len(report["cost_history"])
    assert report["dense_parts"] == []  # the masked-LM head is tied

    stored = load_file(out / "model.safetensors")
    factors = {name: t for name, t in stored.items() if "word_embeddings" in name}
    assert (
        report["bytes_stored"]
        == sum(t.numel() * t.element_size() for t in factors.values())
        == 4 * report["params_stored"] + n
    )
    assert report["bits_per_weight"] == pytest.approx(8 * report["bytes_stored"] / (n * d))
    assert report["model_bytes_stored"] == sum(t.numel() * t.element_size() for t in stored.values())

    from transformers import AutoModel

    table = load_file(tiny_folder / "model.safetensors")["bert.embeddings.word_embeddings.weight"].double()
    rebuilt = AutoModel.from_pretrained(out).get_input_embeddings().dense_weight().double()
    error = ((rebuilt - table).square().sum() / table.square().sum()).item()
    assert report["relative_error"] == report["weighted_relative_error"] == pytest.approx(error, rel=1e-5)
    assert report["cost_history"][-1] == pytest.approx((rebuilt - table).square().sum().item(), rel=1e-5)


def test_the_folder_is_complete(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compress(cli, tiny_folder, "--k", 3, "--ratio", 0.4, "-o", out)
    names = {
        "config.json",
        "model.safetensors",
        "README.md",
        "projclust_report.json",
        "projclust_options.yaml",
        "vocab.txt",
    }
    assert {path.name for path in out.iterdir()} == {*names, "projclust_fit.png"}
    assert (out / "projclust_fit.png").read_bytes().startswith(b"\x89PNG")
    _, front, body = (out / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["library_name"] == "transformers"
    assert card["tags"] == ["projclust"]
    assert "base_model" not in card  # a local folder means nothing to others
    for text in ("BertForMaskedLM.from_pretrained", "arxiv.org/abs/2010.04290", "relative squared error"):
        assert text in body


def test_the_card_keeps_what_holds_of_the_source_and_names_its_base(
    cli: Cli, refused: Callable[..., str], tiny_folder: Path, tmp_path: Path
) -> None:
    source = {
        "tags": ["sentence-similarity", "onnx", "feature-extraction"],
        "library_name": "sentence-transformers",
        "license": "mit",
    }
    (tiny_folder / "README.md").write_text(f"---\n{yaml.safe_dump(source)}---\n# Tiny\n")
    arguments = (tiny_folder, "--k", 3, "--j", 14, "--weights", "tokenizer", "-o", tmp_path / "out")
    refusal = refused("compress", *arguments, "--base-model", "not a name")
    assert "--base-model must be a model's name on the Hub, as user/name, not 'not a name'" in refusal
    for named in ((), ("--base-model", "some-lab/tiny")):
        compress(cli, *arguments, "--overwrite", *named)
        _, front, body = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
        card = yaml.safe_load(front)
        assert card["tags"] == ["sentence-similarity", "feature-extraction", "projclust"]  # no ONNX file comes along
        assert card["library_name"] == "sentence-transformers"
        assert card.get("base_model") == (named[1] if named else None)
        assert card.get("base_model_relation") == ("quantized" if named else None)
        assert ("[some-lab/tiny](https://huggingface.co/some-lab/tiny)" in body) == bool(named)
        assert "SVD of equal size (float32) would have, weighted |" in body
    again = yaml.safe_load((tmp_path / "out" / "projclust_options.yaml").read_text())
    assert again["base-model"] == "some-lab/tiny"


@pytest.mark.parametrize(
    "how", [("--bits", 8, "--sensitivity", "none"), ("--k", 3, "--j", 14), ("--k", 3, "--j", 14, "--codes", "int8")]
)
@pytest.mark.parametrize("name", ["bert", "llama-untied"])
def test_the_body_is_stored_in_another_dtype(cli: Cli, tmp_path: Path, how: tuple[object, ...], name: str) -> None:
    tiny_model(name).save_pretrained(tmp_path / "dense")
    arguments = (tmp_path / "dense", *how, "--weights", "uniform")
    as_it_is = compress(cli, *arguments, "-o", tmp_path / "float32")
    for dtype in ("float16", "bfloat16"):
        foreseen = compress(cli, *arguments, "--dtype", dtype, "--dry-run")
        report = compress(cli, *arguments, "--dtype", dtype, "-o", tmp_path / dtype)
        assert report["dtype"] == dtype
        # The table is what it was, and everything else half as large.
        assert report["bytes_stored"] == as_it_is["bytes_stored"]
        beside = report["model_bytes_stored"] - report["bytes_stored"]
        assert 2 * beside == as_it_is["model_bytes_stored"] - as_it_is["bytes_stored"]
        assert foreseen["model_bytes_stored"] - foreseen["bytes_stored"] == beside
        assert [part["bytes"] for part in report["dense_parts"]] == [
            part["bytes"] // 2 for part in as_it_is["dense_parts"]
        ]
        stored = load_file(tmp_path / dtype / "model.safetensors")
        wide = load_file(tmp_path / "float32" / "model.safetensors")
        for key, tensor in stored.items():
            same = "embed" in key and "position" not in key and "type" not in key and "LayerNorm" not in key
            assert torch.equal(tensor, wide[key] if same else wide[key].to(getattr(torch, dtype))), key
        assert f"The other weights are stored as {dtype}." in (tmp_path / dtype / "README.md").read_text()
        own, others = (logits(load_checkpoint(tmp_path / folder).model, name) for folder in (dtype, "float32"))
        assert torch.allclose(own.float(), others, atol=0.1)
        assert cli("inspect", tmp_path / dtype).code == 0
        assert cli("expand", tmp_path / dtype, "-o", tmp_path / f"{dtype}-dense").code == 0


def test_a_dtype_that_cannot_hold_a_weight_is_refused(
    cli: Cli, refused: Callable[..., str], tiny_folder: Path, tmp_path: Path
) -> None:
    path = tiny_folder / "model.safetensors"
    weights = load_file(path)
    weights["bert.encoder.layer.0.output.dense.bias"][3] = 7e4
    save_file(weights, path, metadata={"format": "pt"})
    arguments = ("compress", tiny_folder, "--k", 3, "--j", 5, "-o", tmp_path / "out", "--dtype")
    message = refused(*arguments, "float16")
    assert (
        "--dtype float16 cannot hold bert.encoder.layer.0.output.dense.bias, which has entries of 7e+04: use bfloat16"
        in message
    )
    assert cli(*arguments, "bfloat16").code == 0
    assert "drop it, or drop --body" in refused(*arguments, "float16", "--body", "int8")


def test_same_seed_same_bytes(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        compress(cli, tiny_folder, "--k", 3, "--j", 5, "--seed", seed, "-o", tmp_path / name)
    first, second, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == second != other


def test_baselines_and_their_sizes(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    errors = {}
    for method in ("projective", "svd", "random"):
        report = compress(cli, tiny_folder, "--ratio", 0.3, "--method", method, "-o", tmp_path / method)
        assert report["k"] == (1 if method == "svd" else 5)
        assert report["compression_rate"] >= 0.3
        errors[method] = report["relative_error"]
        assert report["method"] == method
    assert errors["projective"] < errors["random"]
    svd = json.loads((tmp_path / "svd" / "projclust_report.json").read_text())
    same = json.loads((tmp_path / "svd" / "projclust_report.json").read_text())["same_size_svd"]
    error = pytest.approx(svd["relative_error"], rel=1e-4)
    assert same == {"j": svd["j"], "codes": "float32", "weighted_relative_error": error}


@pytest.mark.parametrize("affine", [False, True])
def test_adaptive_ranks_from_the_dry_run_to_the_card(cli: Cli, tmp_path: Path, affine: bool) -> None:
    uneven_model("bert").save_pretrained(tmp_path / "dense")
    arguments = (tmp_path / "dense", "--k", 3, "--ratio", 0.5, "--ranks", "adaptive", *["--affine"] * affine)
    out = tmp_path / "out"
    plan = compress(cli, *arguments, "-o", out, "--dry-run")
    assert plan["ranks"] is None
    human = cli("compress", *arguments, "-o", out, "--dry-run").out
    assert f"-> at most {plan['params_stored']:,}" in human
    assert "adaptive ranks" in human
    report = compress(cli, *arguments, "-o", out)
    assert set(plan) == set(report)
    assert report["j"] == plan["j"]
    ranks, sizes = report["ranks"], report["cluster_sizes"]
    assert len(set(ranks)) > 1
    means = 3 * WIDTH if affine else 0
    parameters = sum((size + WIDTH) * rank for size, rank in zip(sizes, ranks, strict=True)) + means
    assert report["params_stored"] == parameters <= plan["params_stored"]
    assert report["compression_rate"] == 1 - parameters / (VOCABULARY * WIDTH) >= 0.5
    assert report["bytes_stored"] == 4 * parameters + VOCABULARY <= plan["bytes_stored"]
    assert report["model_bytes_stored"] <= plan["model_bytes_stored"]
    assert report["same_size_svd"]["j"] == parameters // (VOCABULARY + WIDTH)
    assert report["loss"] == "l2"

    from transformers import AutoModel

    table = load_file(tmp_path / "dense" / "model.safetensors")["bert.embeddings.word_embeddings.weight"].double()
    rebuilt = AutoModel.from_pretrained(out).get_input_embeddings().dense_weight().double()
    error = ((rebuilt - table).square().sum() / table.square().sum()).item()
    assert report["relative_error"] == pytest.approx(error, rel=1e-4)
    span = f"{min(ranks)} to {max(ranks)}"
    assert f"dimensions {span} and is stored as its coordinates there" in (out / "README.md").read_text()
    assert f"adaptive ranks {span} (budget of j={report['j']})" in (out / "README.md").read_text()
    assert yaml.safe_load((out / "projclust_options.yaml").read_text())["ranks"] == "adaptive"
    shown = cli("inspect", out, "--format", "json").json
    for name in ("k", "j", "ranks", "loss", "params_stored", "bytes_stored", "relative_error"):
        assert shown[name] == report[name], name
    assert f"j={report['j']}" + ", affine" * affine + f", ranks {span}" in cli("inspect", out).out
    # The recorded options make it again, and it expands to a stock checkpoint.
    compress(cli, "--config", out / "projclust_options.yaml", "-o", tmp_path / "again")
    first, second = ((folder / "model.safetensors").read_bytes() for folder in (out, tmp_path / "again"))
    assert first == second
    assert cli("expand", out, "-o", tmp_path / "stock").code == 0
    stock = load_file(tmp_path / "stock" / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert torch.allclose(stock.double(), rebuilt, atol=1e-6)


@pytest.mark.parametrize("loss", ["l1", "huber"])
@pytest.mark.parametrize("method", ["projective", "svd"])
def test_a_robust_loss_is_used_and_named(cli: Cli, tiny_folder: Path, tmp_path: Path, loss: str, method: str) -> None:
    arguments = (tiny_folder, "--j", 5, "--method", method)
    report = compress(cli, *arguments, "--loss", loss, "-o", tmp_path / "robust")
    squares = compress(cli, *arguments, "-o", tmp_path / "squares")
    assert report["loss"] == loss
    assert report["params_stored"] == squares["params_stored"]
    assert report["relative_error"] != squares["relative_error"]
    assert f", loss {loss}, row weights" in (tmp_path / "robust" / "README.md").read_text()
    assert "loss" not in (tmp_path / "squares" / "README.md").read_text()
    assert f", loss {loss}" in cli("inspect", tmp_path / "robust").out
    stored = json.loads((tmp_path / "robust" / "config.json").read_text())["quantization_config"]
    assert (stored["loss"], stored["version"]) == (loss, 1)
    assert (tmp_path / "robust" / "projclust_fit.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("codes", ["float16", "bfloat16"])
def test_narrow_codes_halve_the_bytes(cli: Cli, tiny_folder: Path, tmp_path: Path, codes: str) -> None:
    report = compress(cli, tiny_folder, "--k", 3, "--j", 5, "--codes", codes, "--affine", "-o", tmp_path / "out")
    assert report["codes"] == codes
    assert report["bytes_stored"] == 2 * report["params_stored"] + VOCABULARY
    shown = cli("inspect", tmp_path / "out", "--format", "json").json
    assert shown["bytes_stored"] == report["bytes_stored"]


def test_counts_weigh_the_rows(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    counts = tmp_path / "counts.txt"
    counts.write_text("".join(f"{1000 if row < 20 else 1}\n" for row in range(VOCABULARY)))
    arguments = (tiny_folder, "--k", 2, "--j", 6)
    weighted = compress(cli, *arguments, "--weights", f"counts:{counts}", "-o", tmp_path / "weighted")
    uniform = compress(cli, *arguments, "-o", tmp_path / "uniform")
    assert weighted["weights"] == "counts:counts.txt"
    assert weighted["weighted_relative_error"] < 0.5 * weighted["relative_error"]
    assert weighted["relative_error"] > uniform["relative_error"] == uniform["weighted_relative_error"]


def test_dry_run_writes_nothing_and_gets_the_sizes_right(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    plan = compress(cli, tiny_folder, "--k", 3, "--ratio", 0.5, "-o", tmp_path / "out", "--dry-run")
    assert not (tmp_path / "out").exists()
    report = compress(cli, tiny_folder, "--k", 3, "--ratio", 0.5, "-o", tmp_path / "out")
    assert set(plan) == set(report)
    for name in ("j", "params_stored", "compression_rate", "bytes_stored", "bits_per_weight", "model_bytes_stored"):
        assert plan[name] == report[name]
    assert plan["relative_error"] is None
    before = snapshot(tmp_path)
    compress(cli, tiny_folder, "--k", 2, "--j", 3, "-o", tmp_path / "out", "--dry-run")  # what exists is no obstacle
    assert snapshot(tmp_path) == before


def test_an_untied_head_is_reported(cli: Cli, tmp_path: Path) -> None:
    tiny_model("llama-untied").save_pretrained(tmp_path / "llama")
    report = compress(cli, tmp_path / "llama", "--k", 2, "--j", 5, "-o", tmp_path / "out")
    bytes_ = VOCABULARY * WIDTH * 4
    reason = "output layer, not tied to the embedding"
    assert report["dense_parts"] == [{"name": "lm_head.weight", "bytes": bytes_, "reason": reason}]
    assert "`lm_head.weight` (7,680 bytes) stays dense" in (tmp_path / "out" / "README.md").read_text()
    shown = cli("compress", tmp_path / "llama", "--k", 2, "--j", 5, "-o", tmp_path / "other")
    assert "stays dense" in shown.out


def test_outputs_that_are_far_off_are_told_with_what_to_do(cli: Cli, tmp_path: Path) -> None:
    gpt2 = tiny_model("gpt2")
    with torch.no_grad():
        gpt2.get_input_embeddings().weight.mul_(30)  # so that it is sure of what it says next
    for name, model in (("output_cosine", tiny_model("llama-untied")), ("output_kl", gpt2)):
        folder = tmp_path / name
        model.save_pretrained(folder)
        command = ("compress", folder, "--k", 2, "-o", tmp_path / "out", "--overwrite", "--format", "json")
        low = cli(*command, "--j", 1)
        (line,) = low.complaints
        assert line.startswith(FAR)
        assert f" {low.json[name]:.2f})" in line
        assert f"`projclust plan {folder} --probe`" in line
        assert cli(*command, "--j", 15).complaints == []


def test_human_output_ends_with_the_next_command(
    cli: Cli, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "..")
    monkeypatch.chdir(tmp_path)
    outcome = cli("compress", "tiny-bert", "--k", 3, "--j", 5)
    assert outcome.code == 0
    assert (tmp_path / "tiny-bert-projclust" / "config.json").is_file()  # the default output
    assert outcome.out.rstrip().endswith("next: projclust inspect tiny-bert-projclust")
    (tmp_path / "alias").symlink_to("tiny-bert")  # the name the user gave, not what it points to
    assert cli("compress", "alias/", "--k", 3, "--j", 5, "--format", "json").json["output"] == "alias-projclust"
    assert (
        cli("inspect", "tiny-bert-projclust").out.rstrip().endswith("next: projclust expand tiny-bert-projclust -o DIR")
    )


def test_tensors_beside_the_named_class_are_kept(cli: Cli, tmp_path: Path) -> None:
    # As in bert-base-uncased: a pooler and a next-sentence head beside the masked-LM model that config.json names.
    import transformers as hf

    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    source, out, dense = tmp_path / "source", tmp_path / "out", tmp_path / "dense"
    hf.BertForPreTraining(hf.BertConfig(vocab_size=VOCABULARY, **shape)).save_pretrained(source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    report = compress(cli, source, "--k", 3, "--j", 5, "-o", out)
    assert cli("expand", out, "-o", dense).code == 0
    before = load_file(source / "model.safetensors")
    kept = [name for name in before if "word_embeddings" not in name]
    assert {"bert.pooler.dense.weight", "cls.seq_relationship.bias"} < set(kept)
    for folder in (out, dense):
        after = load_file(folder / "model.safetensors")
        assert all(torch.equal(after[name], before[name]) for name in kept)
    assert set(after) == set(before)
    assert report["model_bytes_dense"] == sum(t.numel() * t.element_size() for t in before.values())
    with_pooler = hf.AutoModel.from_pretrained(out)
    assert torch.equal(with_pooler.pooler.dense.weight, before["bert.pooler.dense.weight"])


def test_a_class_that_does_not_fit_the_tensors_is_not_taken(cli: Cli, tmp_path: Path) -> None:
    # As in all-mpnet-base-v2: config.json names the masked-LM model, the file holds the encoder with its pooler.
    import transformers as hf

    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    source, out = tmp_path / "source", tmp_path / "out"
    hf.MPNetModel(hf.MPNetConfig(vocab_size=VOCABULARY, **shape)).save_pretrained(source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["MPNetForMaskedLM"]}))
    compress(cli, source, "--k", 3, "--j", 5, "-o", out)  # without a warning on stderr
    before, after = (load_file(folder / "model.safetensors") for folder in (source, out))
    kept = [name for name in before if "word_embeddings" not in name]
    assert all(torch.equal(after[name], before[name]) for name in kept)
    assert len(after) == len(before) + 2  # bases and clusters
    assert json.loads((out / "config.json").read_text())["architectures"] == ["MPNetModel"]


def test_parameters_the_checkpoint_lacks_are_warned_about(cli: Cli, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tiny_model("bert").save_pretrained(tmp_path / "base")
    state = load_file(tmp_path / "base" / "model.safetensors")
    del state["bert.encoder.layer.0.output.dense.bias"]
    save_file(state, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    outcome = cli("compress", tmp_path / "base", "--k", 3, "--j", 5, "-o", tmp_path / "out", "--format", "json")
    assert outcome.code == 0
    assert outcome.err.startswith("warning: ")
    assert "newly initialised" in outcome.err
    assert outcome.json["k"] == 3


def test_overwrite_replaces_the_whole_folder(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compress(cli, tiny_folder, "--k", 3, "--j", 5, "-o", out)
    (out / "merges.txt").write_text("of the first run")
    report = compress(cli, tiny_folder, "--k", 2, "--j", 4, "-o", out, "--overwrite")
    assert report["k"] == json.loads((out / "config.json").read_text())["quantization_config"]["n_clusters"] == 2
    assert not (out / "merges.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "tiny-bert"}


def test_config_file_sets_options_and_flags_win(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text(f"model: {tiny_folder}\nk: 3\nj: 5\nmax-iter: 7\naffine: true\noutput: {tmp_path / 'a'}\n")
    report = compress(cli, "--config", config)
    assert (report["k"], report["j"], report["affine"]) == (3, 5, True)
    report = compress(cli, "--config", config, "--k", 2, "-o", tmp_path / "b")
    assert (report["k"], report["j"]) == (2, 5)
    report = compress(cli, "--config", config, "--ratio", 0.7, "-o", tmp_path / "c")  # against j of the file
    assert report["j"] != 5
    cli("compress", "--config", tmp_path / "c" / "projclust_options.yaml", "--overwrite")  # as it stands, ratio and all
    assert json.loads((tmp_path / "c" / "projclust_report.json").read_text())["j"] == report["j"]
    assert compress(cli, "--config", config, "--method", "svd", "-o", tmp_path / "e")["k"] == 1  # against k of the file
    # The options written beside a result make it again.
    again = compress(cli, "--config", tmp_path / "b" / "projclust_options.yaml", "-o", tmp_path / "d")
    assert again["cost_history"] == json.loads((tmp_path / "b" / "projclust_report.json").read_text())["cost_history"]
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "bd")
    assert first == second


def test_float_codes_are_dtypes_of_torch() -> None:
    assert all(hasattr(torch, codes) for codes in Codes if codes.is_float)


def test_defaults_of_the_command_line_are_those_of_the_library(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    compress(cli, tiny_folder, "--j", 5, "-o", tmp_path / "out")
    written = yaml.safe_load((tmp_path / "out" / "projclust_options.yaml").read_text())
    default = CompressOptions("", recipe=Recipe(j=5)).as_dict()
    for name, value in written.items():
        if name not in ("model", "output", "k", "weights"):  # those depend on others
            assert default[name.replace("-", "_")] == value, name
    stored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    library = ProjClustConfig().to_dict()
    for name in ("n_clusters", "seed", "restarts", "max_iter", "tol", "method", "codes", "affine"):
        assert stored[name] == library[name], name
    assert not {"ranks", "loss"} & set(stored)  # not stored where they are the library's defaults


@pytest.mark.parametrize(
    "target",
    [
        ("--j", 5),
        ("--ratio", 0.5),
        ("--bits", 5),
        ("--size", "1100B"),
        ("--ratio", 0.9, "--codes", "auto"),
        ("--bits", 9, "--codes", "int8", "--k", 2),
        ("--size", "3KB", "--codes", "float16"),
        ("--j", 5, "--method", "svd"),
        ("--bits", 20, "--method", "random", "--k", 3),
    ],
)
def test_the_written_options_make_the_same_folder_again(
    cli: Cli, tiny_folder: Path, tmp_path: Path, target: tuple[object, ...]
) -> None:
    quick = ("--restarts", 2, "--seed", 3) if "auto" not in target and target[0] not in ("--bits", "--size") else ()
    first = compress(cli, tiny_folder, *target, *quick, "--weights", "uniform", "-o", tmp_path / "a")
    again = compress(cli, "--config", tmp_path / "a" / "projclust_options.yaml", "-o", tmp_path / "b")
    times = {"fit_seconds", "total_seconds", "peak_memory_bytes", "output"}
    assert {name: first[name] for name in first.keys() - times} == {name: again[name] for name in again.keys() - times}
    assert snapshot(tmp_path / "a")["model.safetensors"] == snapshot(tmp_path / "b")["model.safetensors"]
    written = [yaml.safe_load((tmp_path / name / "projclust_options.yaml").read_text()) for name in "ab"]
    assert written[0] | {"output": ""} == written[1] | {"output": ""}


def test_python_gives_what_the_command_line_gives(cli: Cli, tiny_classifier: Path, tmp_path: Path) -> None:
    for name, options in (("bits", {"bits": 4.0}), ("size", {"size": "8KB"}), ("ranks", {"k": 3, "j": 5})):
        arguments = [item for key, value in options.items() for item in (f"--{key}", value)]
        report = compress(cli, tiny_classifier, *arguments, "-o", tmp_path / name)
        model = AutoModel.from_pretrained(tiny_classifier)
        compress_model(model, **options).save_pretrained(tmp_path / f"{name}-python")
        by_name = [load_file(tmp_path / f"{name}{end}" / "model.safetensors") for end in ("", "-python")]
        assert by_name[0].keys() == by_name[1].keys()
        assert all(torch.equal(tensor, by_name[1][key]) for key, tensor in by_name[0].items())
        config = ProjClustConfig(**options)  # while loading, too, with the weights of words
        loaded = AutoModel.from_pretrained(tiny_classifier, quantization_config=config)
        assert torch.equal(loaded.get_input_embeddings().dense_weight(), model.get_input_embeddings().dense_weight())
        stored = loaded.config.quantization_config
        assert stored.weights == report["weights"] == ("uniform" if name == "ranks" else "tokenizer")


def test_codes_without_weights_are_warned_about(tiny_classifier: Path) -> None:
    model = AutoModel.from_pretrained(tiny_classifier)
    model.config._name_or_path = ""
    model.name_or_path = ""
    with pytest.warns(UserWarning, match="all rows weigh the same"):
        compress_model(model, bits=4.0)


def test_two_processes_write_what_one_writes(tiny_folder: Path, tmp_path: Path) -> None:
    folders = {}
    for processes in (1, 2):
        folders[processes] = tmp_path / f"by-{processes}"
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "projclust", "compress", tiny_folder]
        command += ["--k", "3", "--j", "5", "-o", folders[processes], "--format", "json", "--device", "cpu"]
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
        assert json.loads(result.stdout)["output"] == str(folders[processes])  # printed once
    alone, together = (load_file(folder / "model.safetensors") for folder in folders.values())
    assert alone.keys() == together.keys()
    assert all(torch.allclose(alone[name].float(), together[name].float(), atol=1e-4) for name in alone)
    # A mistake is one line, however many processes make it.
    again = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode != 0
    assert again.stderr.count("error: ") == 1


def test_a_target_in_bits_or_bytes_is_met_from_below(cli: Cli, minilm: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = compress(cli, minilm, "--size", "400KB", "--weights", "uniform", "--metric", "none", "-o", out)
    assert 0.99 * 400_000 < report["bytes_stored"] <= 400_000
    assert report["codes"] == "auto"
    assert report["bytes_stored"] == sum(report["parts"].values())
    embedding = AutoModel.from_pretrained(out).get_input_embeddings()
    assert sum(part.numel() * part.element_size() for part in embedding.buffers()) == report["bytes_stored"]
    inspected = json.loads(cli("inspect", out, "--format", "json").out)
    for name in ("bytes_stored", "params_stored", "ranks", "row_bytes", "cluster_sizes", "k", "j", "relative_error"):
        assert inspected[name] == report[name], name


def test_other_codes_meet_targets_with_the_largest_rank_that_fits(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    for codes, bits in (("int8", 5), ("int4", 4), ("float16", 9), ("float32", 20)):
        out = tmp_path / codes
        report = compress(cli, tiny_folder, "--bits", bits, "--k", 2, "--codes", codes, "-o", out)
        n, d, j = report["n"], report["d"], report["j"]
        assert report["bytes_stored"] == FactoredShape(n, d, k=2, j=j).bytes(codes) <= bits * n * d / 8
        assert FactoredShape(n, d, k=2, j=j + 1).bytes(codes) > bits * n * d / 8


def test_words_weigh_the_rows_of_auto_codes(cli: Cli, minilm: Path, tmp_path: Path) -> None:
    report = compress(cli, minilm, "--bits", 0.5, "-o", tmp_path / "out", "--metric", "none")
    assert (report["weights"], report["weights_exponent"]) == ("wordfreq", DEFAULT_EXPONENT)
    # The most frequent rows come first and have the longest codes.
    assert report["row_bytes"] == sorted(report["row_bytes"], reverse=True)
    assert report["weighted_relative_error"] < report["relative_error"] < 1
    assert 0.495 < report["bits_per_weight"] <= 0.5
    assert report["model_bytes_stored"] < 45_000_000 < 90_000_000 < report["model_bytes_dense"]


def test_a_size_that_no_codes_can_use_is_told_of(cli: Cli, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    BertModel(BertConfig(vocab_size=2000, **shape)).save_pretrained(tmp_path / "model")
    for size, told in (("400KB", True), ("200KB", False)):
        arguments = ("--size", size, "--of", "model", "--weights", "uniform", "-o", tmp_path / size)
        outcome = cli("compress", tmp_path / "model", *arguments)
        assert outcome.code == 0, outcome
        assert ("MB are all that the model can use" in outcome.err) is told
