"""Pushing to a server of ours that speaks the Hub's protocol: what arrives there, and what happens when it does not."""

import json
import os
import re
import shlex
import shutil
import socket
from pathlib import Path

import pytest
import yaml
from commandline import Outcome, snapshot
from hub_server import OWNER, READER, WRITER, Hub, Program
from tiny_models import tiny_model

from projclust import compress_model
from projclust.cli.app import run

REPO = f"{OWNER}/tiny"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    tiny_model("bert").save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"w{i}\n" for i in range(120)))
    return folder


@pytest.fixture(scope="module")
def written(program: Program, dense: Path) -> Path:
    """What `projclust compress` wrote."""
    folder = dense.with_name("written")
    outcome = program("compress", dense, "--k", 3, "--j", 5, "-o", folder)
    assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(written, tmp_path / "folder"))


def push(program: Program, *arguments: object, token: str = WRITER) -> Outcome:
    """A push that succeeds."""
    outcome = program("push", *arguments, "--format", "json", HF_TOKEN=token)
    assert outcome.code == 0, outcome.err
    return outcome


def one_line(outcome: Outcome, code: int) -> str:
    """The message of a run that failed."""
    assert outcome.code == code, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1, outcome.err
    return outcome.err


def files_at(hub: Hub, repo: str = REPO) -> dict[str, bytes]:
    """What the Hub has, but for the file it makes itself."""
    return {name: content for name, content in hub.repositories[repo].files.items() if name != ".gitattributes"}


def as_published(folder: Path) -> dict[str, bytes]:
    """The files of a folder, two of them without the folders of this machine that they name."""
    files = snapshot(folder)
    for name in {"projclust_options.yaml", "projclust_report.json"} & files.keys():
        files[name] = re.sub(rb'(?<=[ "])/[^\s"]*/', b"", files[name])
    return files


def test_nothing_that_is_pushed_names_a_folder_of_this_machine(
    hub: Hub, program: Program, dense: Path, tmp_path: Path
) -> None:
    counts = tmp_path / "secret-project" / "counts.txt"
    counts.parent.mkdir()
    counts.write_text("".join(f"{i + 1}\n" for i in range(120)))
    out = tmp_path / "secret-project" / "out"
    weights = ("--k", 3, "--j", 5, "--weights", f"counts:{counts}")
    outcome = program("compress", dense, *weights, "-o", out, "--push-to-hub", REPO, HF_TOKEN=WRITER)
    assert outcome.code == 0, outcome.err
    for name, content in files_at(hub).items():
        assert b"secret-project" not in content, name
        assert str(dense.parent).encode() not in content, name
    options = yaml.safe_load(files_at(hub)["projclust_options.yaml"])
    assert (options["model"], options["output"], options["weights"]) == ("tiny-bert", "out", "counts:counts.txt")
    report = json.loads(files_at(hub)["projclust_report.json"])
    assert (report["model"], report["output"]) == ("tiny-bert", "out")
    # A sentence that names one is no exception: why rows weigh the same, for want of a tokenizer.
    without = Path(shutil.copytree(dense, tmp_path / "secret-project" / "model"))
    (without / "vocab.txt").unlink()
    bits = ("--bits", 8, "--sensitivity", "none", "-o", tmp_path / "secret-project" / "bits")
    assert program("compress", without, *bits, "--push-to-hub", f"{OWNER}/bits", HF_TOKEN=WRITER).code == 0
    pushed = files_at(hub, f"{OWNER}/bits")
    assert "uniform: model has no tokenizer" in json.loads(pushed["projclust_report.json"])["weights_chosen"]
    assert not [name for name, content in pushed.items() if b"secret-project" in content]
    # Here they make the same folder again.
    assert yaml.safe_load((out / "projclust_options.yaml").read_text())["model"] == str(dense)
    (out / "projclust_options.yaml").write_text("- 1")
    assert "projclust_options.yaml is damaged" in one_line(program("push", out, REPO, HF_TOKEN=WRITER), 2)


def test_every_file_arrives_and_is_read_back(hub: Hub, program: Program, folder: Path, tmp_path: Path) -> None:
    outcome = push(program, folder, REPO)
    assert outcome.err == ""
    here = as_published(folder)
    assert files_at(hub) == here
    assert {"README.md", "vocab.txt", "projclust_fit.png", "model.safetensors"} < set(here)
    stored = hub.repositories[REPO]
    assert outcome.json == {
        "path": str(folder),
        "repo": REPO,
        "url": f"{hub.url}/{REPO}",
        "private": False,
        "files": [{"path": name, "bytes": len(content)} for name, content in here.items()],
        "bytes": sum(map(len, here.values())),
        "commit": stored.commits[-1],
        "changed": True,
        "dry_run": False,
    }
    assert len(stored.commits) == 2  # the repository's first, and one for all files

    shown = program("inspect", REPO, "--format", "json")
    assert (shown.json["compressed"], shown.json["k"], shown.json["j"]) == (True, 3, 5)
    assert program("expand", REPO, "-o", tmp_path / "dense").code == 0
    push(program, tmp_path / "dense", f"{OWNER}/dense")
    again = program("compress", f"{OWNER}/dense", "--k", 3, "--j", 5, "-o", tmp_path / "again")
    assert again.code == 0, again.err


def test_what_people_read(hub: Hub, program: Program, folder: Path) -> None:
    first = program("push", folder, REPO, HF_TOKEN=WRITER)
    assert first.code == 0, first.err
    assert f"pushed to               {hub.url}/{REPO} (public)\n" in first.out
    assert f"model.safetensors       {(folder / 'model.safetensors').stat().st_size:,} bytes\n" in first.out
    assert first.out.endswith(f"\nnext: projclust inspect {REPO}\n")
    assert f"unchanged at            {hub.url}/{REPO} (public)\n" in program("push", folder, REPO, HF_TOKEN=WRITER).out


def test_a_second_push_updates_and_uploads_what_changed(hub: Hub, program: Program, folder: Path) -> None:
    first = push(program, folder, REPO).json
    assert hub.uploads() == 2  # weights and plot
    hub.seen.clear()
    second = push(program, folder, REPO).json
    assert (second["changed"], second["commit"]) == (False, first["commit"])
    assert hub.uploads() == 0
    assert not [request for request in hub.seen if "/commit/" in request]

    compress_model(tiny_model("bert", seed=1), k=3, j=5).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Another\n")
    third = push(program, folder, REPO).json
    assert third["changed"] is True
    assert hub.uploads() == 1  # the weights
    assert files_at(hub) == as_published(folder)
    assert hub.repositories[REPO].commits[1:] == [first["commit"], third["commit"]]


def test_stale_weight_files_go_with_the_same_commit_and_nothing_else(
    hub: Hub, program: Program, folder: Path, tmp_path: Path
) -> None:
    sharded = tmp_path / "sharded"
    shutil.copytree(folder, sharded)
    (sharded / "model.safetensors").unlink()
    compress_model(tiny_model("bert"), k=3, j=5).save_pretrained(sharded, max_shard_size="10KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    push(program, sharded, REPO)
    theirs = {"notes.md": b"mine", "model.fp16.safetensors": b"a variant", "1_Dense/model.safetensors": b"a module"}
    hub.repositories[REPO].files |= theirs

    push(program, folder, REPO)
    assert files_at(hub) == as_published(folder) | theirs
    push(program, sharded, REPO)
    assert files_at(hub) == as_published(sharded) | theirs
    assert len(hub.repositories[REPO].commits) == 4


def test_private_repositories(hub: Hub, program: Program, folder: Path) -> None:
    secret = f"{OWNER}/secret"  # which no other test has downloaded
    created = push(program, folder, secret, "--private")
    assert hub.repositories[secret].private
    assert created.json["private"] is True
    assert created.err == ""
    assert program("inspect", secret).code == 2
    assert program("inspect", secret, HF_TOKEN=WRITER).code == 0

    unasked = push(program, folder, secret)
    assert unasked.json["private"] is True
    assert unasked.err.startswith(f"warning: {secret} is private: ")
    push(program, folder, f"{OWNER}/public")
    asked = program("push", folder, f"{OWNER}/public", "--private", HF_TOKEN=WRITER)
    assert "exists and is public: make it private in its settings" in one_line(asked, 2)
    assert unasked.err.count("\n") == 1


def test_a_dry_run_lists_the_files_and_asks_the_hub_nothing(hub: Hub, program: Program, folder: Path) -> None:
    outcome = push(program, folder, REPO, "--dry-run", token="")
    sizes = {name: len(content) for name, content in as_published(folder).items()}
    assert {file["path"]: file["bytes"] for file in outcome.json["files"]} == sizes
    assert outcome.json["bytes"] == sum(sizes.values())
    assert (outcome.json["commit"], outcome.json["dry_run"]) == (None, True)
    read = program("push", folder, REPO, "--dry-run")
    assert f"model.safetensors       {sizes['model.safetensors']:,} bytes\n" in read.out
    assert "all files" in read.out
    assert read.out.endswith("next: drop --dry-run to push it\n")
    assert hub.seen == []


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        ("", REPO, "needs a token with write access: set HF_TOKEN or run `hf auth login`"),
        ("hf_unknown", REPO, "the Hub does not know the token"),
        ("hf_wröng", REPO, "the token has characters that no token has"),
        (READER, REPO, "the token may only read"),
        (WRITER, "somebody-else/tiny", "the token may not write to somebody-else/tiny: use one with write access"),
    ],
)
def test_tokens(hub: Hub, program: Program, folder: Path, token: str, repo: str, message: str) -> None:
    assert message in one_line(program("push", folder, repo, HF_TOKEN=token), 2)
    assert hub.repositories == {}


def test_a_repository_of_somebody_else(hub: Hub, program: Program, folder: Path, dense: Path) -> None:
    hub.add("somebody-else/tiny", dense)
    message = one_line(program("push", folder, "somebody-else/tiny", HF_TOKEN=WRITER), 2)
    assert "the token may not write to somebody-else/tiny: use one with write access to somebody-else" in message
    assert hub.repositories["somebody-else/tiny"].files == snapshot(dense)


def test_a_refusal_that_the_newer_protocol_tells(hub: Hub, folder: Path, tmp_path: Path) -> None:
    # The other tests push without hf_xet, whose storage is no server of ours.
    program = Program(hub, tmp_path / "home", xet=True)
    hub.failing, hub.status = "xet-write-token", 403
    message = one_line(program("push", folder, REPO, HF_TOKEN=WRITER), 2)
    program.close()
    assert f"the token may not write to {REPO}" in message
    assert files_at(hub) == {}


def test_the_token_of_hf_auth_login(hub: Hub, program: Program, folder: Path) -> None:
    file = program.home / "token"
    file.write_text(WRITER)
    try:
        assert push(program, folder, REPO, token="").json["changed"] is True
    finally:
        file.unlink()


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "./tiny", "https://huggingface.co/a/b", "a/b--c", "a/b c", ""])
def test_repositories_that_cannot_be(hub: Hub, program: Program, folder: Path, repo: str) -> None:
    for more in ([], ["--dry-run"]):
        message = one_line(program("push", folder, repo, *more, HF_TOKEN=WRITER), 2)
        assert f"{repo!r} names no repository: give user/name" in message
    assert hub.seen == []


def test_folders_that_are_not_pushed(hub: Hub, program: Program, folder: Path, dense: Path, tmp_path: Path) -> None:
    def error(path: Path) -> str:
        return one_line(program("push", path, REPO, HF_TOKEN=WRITER), 2)

    assert "was not written by projclust" in error(dense)
    assert "there is no folder" in error(tmp_path / "absent")
    assert "there is no folder" in error(folder / "README.md")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-50])
    assert "not a readable safetensors file" in error(folder)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "1_Dense").mkdir()
    (folder / "1_Dense" / "model.safetensors").write_bytes(content[:50])
    assert "1_Dense/model.safetensors is not a readable safetensors file" in error(folder)
    shutil.rmtree(folder / "1_Dense")
    (folder / "config.json").rename(tmp_path / "config.json")
    assert "config.json is missing" in error(folder)
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    assert "config.json, which leads out of it" in error(folder)
    (folder / "config.json").unlink()
    (tmp_path / "config.json").rename(folder / "config.json")
    (folder / "pipe").symlink_to("nowhere")
    assert "pipe, which is neither a file nor a link to one" in error(folder)
    (folder / "pipe").unlink()
    os.mkfifo(folder / "pipe")
    assert "pipe, which is neither a file nor a link to one" in error(folder)
    (folder / "pipe").unlink()
    (folder / "model.safetensors").unlink()
    assert "holds no safetensors weights" in error(folder)
    assert hub.seen == []


def test_hidden_files_and_pickles_stay_here(hub: Hub, program: Program, folder: Path) -> None:
    public = as_published(folder)
    (folder / ".git").mkdir()
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    for name in (".git/config", ".cache/huggingface/lock", ".env", "training_args.bin", "optimizer.pt", "state.PKL"):
        (folder / name).write_bytes(b"private")
    (folder / "copy.md").symlink_to("README.md")  # a link inside the folder is a file
    outcome = push(program, folder, REPO)
    assert files_at(hub) == {**public, "copy.md": public["README.md"]}
    assert outcome.err == "warning: pickles are not pushed: optimizer.pt, state.PKL, training_args.bin\n"


def test_cards(hub: Hub, program: Program, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    message = one_line(program("push", folder, REPO, HF_TOKEN=WRITER), 2)
    assert "Invalid metadata in README.md. - bad indentation" in message
    assert files_at(hub) == {}
    (folder / "README.md").write_text("# Tiny\n")
    assert "empty or missing yaml metadata in repo card" in push(program, folder, REPO).err
    (folder / "README.md").unlink()
    assert push(program, folder, REPO).err == (
        f"warning: {folder} has no README.md: the repository will have no model card\n"
    )


def test_a_lost_connection_is_tried_again_and_then_told(hub: Hub, program: Program, folder: Path) -> None:
    hub.dropping = 1
    assert push(program, folder, REPO).json["changed"] is True
    assert hub.uploads() == 3
    before = dict(hub.repositories[REPO].files)

    compress_model(tiny_model("bert", seed=1), k=3, j=5).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Another\n")
    hub.dropping = 1000
    message = one_line(program("push", folder, REPO, HF_TOKEN=WRITER), 1)
    assert message.startswith("error: the Hub or the network failed: ")
    assert message.endswith("; run the same command again to complete the push\n")
    assert hub.repositories[REPO].files == before
    assert hub.uploads() > 5

    hub.dropping = 0
    assert push(program, folder, REPO).json["changed"] is True
    assert files_at(hub) == as_published(folder)


@pytest.mark.parametrize(
    "place", ["whoami", "repos/create", f"models/{REPO}", "validate-yaml", "preupload", "batch", "storage", "commit"]
)
def test_a_hub_that_fails(hub: Hub, program: Program, folder: Path, place: str) -> None:
    hub.failing = place
    message = one_line(program("push", folder, REPO, HF_TOKEN=WRITER), 1)
    assert "the Hub failed: HTTP status 502" in message or "the Hub or the network failed" in message
    assert "again" in message
    assert [request for request in hub.seen if place in request]
    assert REPO not in hub.repositories or files_at(hub) == {}
    hub.failing = ""
    push(program, folder, REPO)
    assert files_at(hub) == as_published(folder)


def test_an_upload_link_that_has_expired(hub: Hub, program: Program, folder: Path) -> None:
    hub.failing, hub.status = "storage", 403
    assert "run the same command again" in one_line(program("push", folder, REPO, HF_TOKEN=WRITER), 1)


def test_no_hub_at_all(folder: Path, tmp_path: Path) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        program = Program(Hub(f"http://127.0.0.1:{nobody_listens.getsockname()[1]}"), tmp_path / "home")
        message = one_line(program("push", folder, REPO, HF_TOKEN=WRITER), 1)
        program.close()
    assert "Connection refused" in message
    assert "again" in message


def test_offline(folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests' own process is offline.
    monkeypatch.setenv("HF_TOKEN", WRITER)
    assert run(["push", str(folder), REPO]) == 2
    assert capfd.readouterr().err == f"error: HF_HUB_OFFLINE is set: unset it to push to {REPO}\n"


def test_compress_pushes_what_it_wrote(hub: Hub, program: Program, dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("compress", dense, "--k", 3, "--j", 5, "-o", out, "--push-to-hub", REPO)
    foreseen = program(*arguments, "--dry-run", "--format", "json")
    assert foreseen.json["pushed_to"] is None
    assert hub.seen == []
    outcome = program(*arguments, "--private", "--format", "json", HF_TOKEN=WRITER)
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    assert outcome.json["pushed_to"] == f"{hub.url}/{REPO}"
    assert hub.repositories[REPO].private
    assert files_at(hub) == as_published(out)
    assert (
        json.loads((out / "projclust_report.json").read_text()) | {"pushed_to": outcome.json["pushed_to"]}
        == outcome.json
    )

    recorded = out / "projclust_options.yaml"
    assert "push-to-hub" not in yaml.safe_load(recorded.read_text())
    hub.seen.clear()
    again = program("compress", dense, "--config", recorded, "-o", tmp_path / "again")
    assert again.code == 0, again.err
    assert "pushed to" not in again.out
    assert hub.seen == []
    shown = program(*arguments, "--overwrite", HF_TOKEN=WRITER)
    assert f"pushed to          {hub.url}/{REPO}\n" in shown.out
    assert shown.out.endswith(f"next: projclust inspect {REPO}\n")


def test_a_push_that_fails_leaves_what_compress_wrote(hub: Hub, program: Program, dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    hub.failing = "repos/create"
    arguments = ("compress", dense, "--k", 3, "--j", 5, "-o", out, "--push-to-hub", REPO, "--private")
    message = one_line(program(*arguments, HF_TOKEN=WRITER), 1)
    assert f"{out} is written, but not pushed: the Hub failed: HTTP status 502; `" in message
    assert message.endswith("` tries again\n")
    assert program("inspect", out).code == 0
    hub.failing = ""
    _, *again = shlex.split(message.split("`")[1])
    assert program(*again, HF_TOKEN=WRITER).code == 0
    assert files_at(hub) == as_published(out)
    assert hub.repositories[REPO].private

    refused = program(*arguments[:-2], "somebody-else/tiny", "--overwrite", HF_TOKEN=WRITER)
    assert f"{out} is written, but not pushed: the token may not write to somebody-else/tiny" in one_line(refused, 2)


def test_compress_asks_for_what_a_push_needs_before_it_fits(
    hub: Hub, program: Program, dense: Path, tmp_path: Path
) -> None:
    def error(*more: object, code: int = 2, token: str = "") -> str:
        outcome = program("compress", dense, "--k", 3, "--j", 5, "-o", tmp_path / "out", *more, HF_TOKEN=token)
        assert not (tmp_path / "out").exists()
        return one_line(outcome, code)

    assert "needs a token" in error("--push-to-hub", REPO)
    assert "does not know the token" in error("--push-to-hub", REPO, token="hf_unknown")
    assert "names no repository" in error("--push-to-hub", "tiny", token=WRITER)
    assert "names no repository" in error("--push-to-hub", "tiny", "--dry-run")
    assert "--private is about the repository of --push-to-hub" in error("--private")
    hub.failing = "whoami"
    assert "again" in error("--push-to-hub", REPO, token=WRITER, code=1)
    assert hub.repositories == {}


def test_options_from_a_file(hub: Hub, program: Program, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "push.yaml").write_text("private: true\n")
    push(program, folder, REPO, "--config", tmp_path / "push.yaml")
    assert hub.repositories[REPO].private
