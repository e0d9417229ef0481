"""Every wrong input: one line that says what to do next, exit code 2, nothing written."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commandline import Cli, snapshot
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

import projclust

Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--k", "3"], "exactly one of --j, --ratio, --bits and --size"),
        (["--k", "3", "--j", "5", "--ratio", "0.4"], "exactly one of --j, --ratio, --bits and --size"),
        (["--k", "3", "--j", "16"], "less than the embedding's width 16"),
        (["--k", "3", "--j", "0"], "at least 1"),
        (["--k", "3", "--j", "-4"], "at least 1"),
        (["--k", "0", "--j", "5"], "--k must be at least 1"),
        (["--k", "121", "--j", "5"], "at least as many rows"),
        (["--k", "3", "--ratio", "1"], "between 0 and 1"),
        (["--k", "3", "--ratio", "nan"], "between 0 and 1"),
        (["--k", "3", "--ratio", "0.99"], "no room"),
        (["--k", "3", "--j", "five"], "valid integer"),
        (["--k", "3", "--j", "5", "--method", "magic"], "magic"),
        (["--k", "3", "--j", "5", "--method", "svd"], "drop --k"),
        (["--k", "3", "--j", "5", "--ranks", "unequal"], "unequal"),
        (["--k", "3", "--j", "5", "--loss", "l3"], "l3"),
        (["--k", "1", "--j", "5", "--ranks", "adaptive"], "adaptive ranks are of several subspaces"),
        (["--j", "5", "--ranks", "adaptive", "--method", "svd"], "adaptive ranks are of several subspaces"),
        (["--j", "5", "--ranks", "adaptive", "--method", "random"], "adaptive ranks are of several subspaces"),
        (["--j", "5", "--ranks", "adaptive", "--loss", "l1"], "use loss l2"),
        (["--j", "5", "--method", "random", "--loss", "huber"], "its loss must be l2"),
        (["--k", "3", "--j", "5", "--codes", "int3"], "Invalid value for '--codes': 'int3' is not one of"),
        (["--k", "3", "--j", "5", "--weights", "zipf"], "counts:FILE, text:SOURCE or uniform"),
        (["--k", "3", "--j", "5", "--weights", "counts:absent.txt"], "cannot read the counts file"),
        (["--k", "3", "--j", "5", "--restarts", "0"], "restarts"),
        (["--k", "3", "--j", "5", "--seed", "-1"], "seed"),
        (["--k", "3", "--j", "5", "--seed", str(2**64)], "seed"),
        (["--k", "3", "--j", "5", "--bits", "0.5"], "bits"),
        (["--k", "3", "--j", "5", "--config", "absent.yaml"], "cannot read the config file"),
        (["--k", "3", "--j", "5", "--revision", "main"], "--revision is for models on the Hub"),
    ],
)
def test_options(refused: Refused, tiny_folder: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in refused("compress", tiny_folder, "-o", tmp_path / "out", *arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there(refused: Refused, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "sees no CUDA device" in refused("compress", tiny_folder, "--j", 5, "--device", "cuda", "-o", out)


def test_commands_and_arguments(refused: Refused, cli: Cli) -> None:
    assert "MODEL" in refused("compress")
    assert "no-such-command" in refused("no-such-command").lower()
    assert "PATH" in refused("inspect")
    assert "--output" in refused("expand", "x")
    assert cli("--version").out == f"projclust {projclust.__version__}\n"
    for command in ("compress", "plan", "glue-eval", "report", "inspect", "expand", "export", "push"):
        outcome = cli(command, "--help")
        assert outcome.code == 0
        assert f"Example: projclust {command}" in outcome.out


def test_a_checkpoint_without_its_embedding(refused: Refused, tiny_folder: Path, tmp_path: Path) -> None:
    # A newly initialised embedding must not be compressed as if it were the model's.
    file = tiny_folder / "model.safetensors"
    state = load_file(file)
    for name in [key for key in state if key.endswith(("word_embeddings.weight", "decoder.weight"))]:
        del state[name]
    save_file(state, file, metadata={"format": "pt"})
    message = "holds no weights for its embedding bert.embeddings.word_embeddings"
    assert message in refused("compress", tiny_folder, "--k", 3, "--j", 5, "-o", tmp_path / "out")
    assert message in refused("inspect", tiny_folder)


def test_a_damaged_report(refused: Refused, cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    cli("compress", tiny_folder, "--k", 3, "--j", 5, "-o", tmp_path / "out")
    file = tmp_path / "out" / "projclust_report.json"
    report = json.loads(file.read_text())
    for name, value in (("versions", None), ("relative_error", "x"), ("model", 3)):
        file.write_text(json.dumps({**report, name: value}))
        assert f"projclust_report.json is damaged: {name}" in refused("inspect", tmp_path / "out")


def test_options_that_exclude_each_other_are_refused_before_the_model_is_looked_for(refused: Refused) -> None:
    message = refused("compress", "no/such-model", "--j", 5, "--ranks", "adaptive", "--loss", "l1")
    assert "use loss l2" in message


def test_weights_that_are_not_of_the_stated_ranks(refused: Refused, adaptive_folder: Path) -> None:
    file = adaptive_folder / "config.json"
    config = json.loads(file.read_text())
    stored = config["quantization_config"]
    for fields, message in (
        ({"cluster_ranks": [rank + 1 for rank in stored["cluster_ranks"]]}, "is damaged"),
        ({"cluster_ranks": [1]}, "damaged checkpoint: quantization_config has cluster_ranks"),
        ({"num_embeddings": 121, "cluster_sizes": [121, 0, 0]}, "but its factors 121 x 16"),
    ):
        file.write_text(json.dumps({**config, "quantization_config": {**stored, **fields}}))
        assert message in refused("inspect", adaptive_folder)


def test_names_too_long_and_empty(refused: Refused, tiny_folder: Path, tmp_path: Path) -> None:
    long = "x" * 300
    assert "cannot use" in refused("compress", tiny_folder, "--j", 5, "-o", tmp_path / long)
    assert refused("inspect", long)
    assert "MODEL is empty" in refused("inspect", "")


def test_interrupted(tiny_folder: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    program = (
        "import os, signal, projclust.hf.compression as c\n"
        # Shells start what they run in the background with the signal ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "c.swap_fitted = lambda *a: os.kill(os.getpid(), signal.SIGINT)\n"
        f"from projclust.cli.app import run; import sys; sys.exit(run(['compress', {str(tiny_folder)!r}, '--j', '5', '-o', {str(tmp_path / 'out')!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "error: interrupted\n")
    assert snapshot(tmp_path) == before


def test_models(refused: Refused, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def error(model: object) -> str:
        for command in (["compress", model, "--k", 3, "--j", 5, "-o", out], ["inspect", model]):
            message = refused(*command)
        return message

    assert "no model folder" in error(tmp_path / "absent")
    assert "Hub cannot be reached" in error("projclust-tests/absent")
    (tmp_path / "empty").mkdir()
    assert "holds no config.json" in error(tmp_path / "empty")
    ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)).save_pretrained(
        tmp_path / "vit"
    )
    assert "ViTModel has no token embedding" in error(tmp_path / "vit")
    config = json.loads((tiny_folder / "config.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    (other / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    assert "gptq" in error(other)
    (other / "config.json").write_text("{")
    assert "config.json is damaged" in error(other)


def test_damaged_weights(refused: Refused, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = tiny_folder / "model.safetensors"
    content = file.read_bytes()
    for damage in (content[:-50], content[:4], b"", b"\xff" * 100):
        file.write_bytes(damage)
        assert "not a readable safetensors file" in refused("compress", tiny_folder, "--j", 5, "-o", out)
        assert "not a readable safetensors file" in refused("inspect", tiny_folder)
    file.write_bytes(content)
    state = load_file(file)
    state["bert.embeddings.word_embeddings.weight"][3, 1] = torch.nan
    save_file(state, file, metadata={"format": "pt"})
    assert "NaN or infinite entries, the first in row 3" in refused("compress", tiny_folder, "--j", 5, "-o", out)


def test_checkpoints_that_cannot_be_expanded_or_compressed_again(
    refused: Refused, tiny_folder: Path, compressed_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert "there is nothing to expand" in refused("expand", tiny_folder, "-o", out)
    assert "projclust expand makes it dense" in refused("compress", compressed_folder, "--j", 5, "-o", out)
    config = json.loads((compressed_folder / "config.json").read_text())
    config["quantization_config"]["version"] = 99
    (compressed_folder / "config.json").write_text(json.dumps(config))
    assert "upgrade projclust" in refused("expand", compressed_folder, "-o", out)
    assert "upgrade projclust" in refused("inspect", compressed_folder)


def test_outputs(
    refused: Refused, cli: Cli, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(out: object, *more: object) -> str:
        return refused("compress", tiny_folder, "--k", 3, "--j", 5, "-o", out, *more)

    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    assert "exists: choose another --output or pass --overwrite" in error(tmp_path / "taken")
    assert "was not written by projclust" in error(tmp_path / "taken", "--overwrite")
    assert "is not a folder" in error(tmp_path / "taken" / "thesis.txt", "--overwrite")
    assert "overlap" in error(tiny_folder, "--overwrite")
    assert "overlap" in error(tiny_folder / "inside")
    monkeypatch.chdir(tiny_folder)
    assert "overlap" in refused("compress", ".", "--j", 5, "-o", ".", "--overwrite")
    monkeypatch.chdir(tmp_path)
    cli("compress", tiny_folder, "--k", 3, "--j", 5, "-o", "good")
    assert "overlap" in refused("expand", "good", "-o", "good", "--overwrite")


def test_config_files(refused: Refused, tiny_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"

    def error(text: str) -> str:
        config.write_text(text)
        return refused("compress", tiny_folder, "-o", tmp_path / "out", "--config", config)

    assert "'colour', which is no option" in error("colour: red\n")
    assert "not valid YAML" in error("k: [1\n")
    assert "must hold options" in error("- k\n")
    assert "valid integer" in error("k: abc\nj: 5\n")
    assert "exactly one of --j, --ratio, --bits and --size" in error("k: 3\n")


def in_a_process(arguments: list[object], **options: object) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from projclust.cli import main; main()", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, timeout=120, check=False, **options)  # type: ignore[call-overload]


def test_a_full_disk_leaves_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    # A limit on the size of files stops the weights in the middle, as a full disk would.
    before = snapshot(tmp_path)
    size = (tiny_folder / "model.safetensors").stat().st_size // 2
    result = in_a_process(
        ["compress", tiny_folder, "--k", 3, "--j", 5, "-o", tmp_path / "out"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: cannot write {tmp_path / 'out'}: ")
    assert result.stderr.count("\n") == 1
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_parent(refused: Refused, tiny_folder: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert "is not writable" in refused("compress", tiny_folder, "--k", 3, "--j", 5, "-o", locked / "out")


def test_a_parent_that_takes_no_folders(refused: Refused, tiny_folder: Path) -> None:
    # Root passes every permission check; the kernel refuses all the same.
    message = refused("compress", tiny_folder, "--k", 3, "--j", 5, "-o", "/proc/self/out")
    assert "not writable" in message or "cannot write" in message or "has 0 MB free" in message


def test_failures_of_the_machine_have_another_code(
    cli: Cli, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import projclust.jobs.compress as job

    def fails(*_: object) -> None:
        raise RuntimeError("the GPU fell off\nthe bus")

    monkeypatch.setattr(job, "load_dense", fails)
    arguments = ("compress", tiny_folder, "--k", 3, "--j", 5, "-o", tmp_path / "out")
    outcome = cli(*arguments)
    assert outcome.code == 1
    assert outcome.err == "error: RuntimeError: the GPU fell off the bus (--debug shows where)\n"
    assert "Traceback" in cli(*arguments, "--debug").err


def test_a_closed_stdout_is_no_traceback(tiny_folder: Path) -> None:
    program = f"{sys.executable} -c 'from projclust.cli import main; main()' inspect {tiny_folder} | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert result.stderr == ""
    assert result.stdout == "1\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "exactly one of --j, --ratio, --bits and --size"),
        (("--bits", 0.5, "--j", 3), "exactly one of --j, --ratio, --bits and --size"),
        (("--bits", 0), "--bits must lie between 0 and 32"),
        (("--bits", 40), "--bits must lie between 0 and 32"),
        (("--size", "4 elephants"), "--size takes bytes as 400KB"),
        (("--size", "0KB"), "at least one byte"),
        (("--bits", 4, "--k", 3), "drop --k"),
        (("--bits", 4, "--affine"), "drop --affine"),
        (("--bits", 4, "--codes", "auto", "--method", "svd"), "drop --method"),
        (("--codes", "auto", "--j", 3), "drop --j"),
        (("--bits", 4, "--metric", "l2"), "l2"),
        (("--bits", 4, "--restarts", 3), "drop --restarts"),
        (("--size", "1GB", "--dry-run"), "too many"),
        (("--size", "100B", "--dry-run"), "too few"),
        (("--bits", 4, "--codes", "int8", "--ranks", "adaptive"), "needs equal ranks"),
        (("--bits", 4, "--weights", "uniform", "--weights-exponent", 0.3), "drop --weights-exponent"),
        (("--bits", 0.05, "--weights", "uniform"), "too few"),
        (("--bits", 0.05, "--codes", "int8"), "too few"),
        (("--bits", 4, "--weights", "wordfreq:klingon"), "klingon"),
        (("--bits", 4, "--weights-exponent", -1, "--weights", "wordfreq"), "exponent"),
    ],
)
def test_targets_and_codes_that_cannot_be(
    refused: Refused, tiny_classifier: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    assert message in refused("compress", tiny_classifier, *arguments, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_bits_than_codes_can_use_are_no_mistake(cli: Cli, tiny_classifier: Path, tmp_path: Path) -> None:
    arguments = ("compress", tiny_classifier, "--metric", "none", "--format", "json", "--bits")
    assert cli(*arguments, 6, "-o", tmp_path / "six").err == ""
    outcome = cli(*arguments, 20, "-o", tmp_path / "twenty")
    assert outcome.code == 0
    assert 8 < outcome.json["bits_per_weight"] < 20
    assert outcome.err.startswith("warning: codes have at most 8 bits: ")


def test_a_tokenizer_that_fails_is_named(refused: Refused, tiny_folder: Path, tmp_path: Path) -> None:
    error = refused("compress", tiny_folder, "--bits", 8, "--weights", "wordfreq", "-o", tmp_path / "out")
    assert "tokenizer fails: WordPiece error: Missing [UNK]" in error


def test_a_model_without_a_tokenizer_is_coded_with_uniform_weights(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    (tiny_folder / "vocab.txt").unlink()
    outcome = cli("compress", tiny_folder, "--bits", 8, "--metric", "none", "-o", tmp_path / "out", "--format", "json")
    assert outcome.code == 0
    assert outcome.json["weights"] == "uniform"
    assert outcome.err.startswith("warning: all rows weigh the same")
