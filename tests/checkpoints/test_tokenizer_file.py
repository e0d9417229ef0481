"""The tokenizer's JSON is written without its spaces, and tokenizes as before."""

import json
import subprocess
from pathlib import Path
from shutil import which

import pytest
from commandline import snapshot
from tiny_models import VOCABULARY, tiny_model
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from weights.tiny_tokenizers import byte_level, sentencepiece, wordpiece

from projclust.checkpoints.save import copy_side_files
from projclust.cli.app import run

# What a rewrite of JSON could get wrong: spaces, quotes, line ends, other planes, numbers in full precision.
WORDS = ["▁the", "▁", "a b", '"', "\\", "\n", " ", "\u2028", "日本", "😀", "é", ": ", ", ", "�"]
TEXT = 'the日本 a b "\\" é 😀: , \n\u2028 xyz'


def written(tokenizer: PreTrainedTokenizerBase, folder: Path) -> tuple[Path, Path]:
    """A folder with the tokenizer's JSON as tokenizers writes it, and a copy of ours."""
    source, target = folder / "source", folder / "target"
    tokenizer.save_pretrained(source)
    tokenizer.backend_tokenizer.save(str(source / "tokenizer.json"), pretty=True)
    target.mkdir()
    copy_side_files(source, target)
    return source / "tokenizer.json", target / "tokenizer.json"


def scored() -> PreTrainedTokenizerBase:
    """Pieces with scores that need all their digits."""
    tokenizer = sentencepiece(*WORDS)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = [[piece, score / 3 - 1e-17] for piece, score in vocabulary]
    tokenizer.backend_tokenizer.model = Tokenizer.from_str(json.dumps(content)).model
    return tokenizer


@pytest.mark.parametrize("kind", ["wordpiece", "byte level", "sentencepiece"])
def test_the_same_tokenizer_in_fewer_bytes(kind: str, tmp_path: Path) -> None:
    make = {
        "wordpiece": lambda: wordpiece(*WORDS),
        "byte level": lambda: byte_level("the", "Ġa"),
        "sentencepiece": scored,
    }
    before, after = written(make[kind](), tmp_path)
    assert after.stat().st_size < 0.8 * before.stat().st_size
    assert Tokenizer.from_file(str(after)).to_str() == Tokenizer.from_file(str(before)).to_str()
    assert json.loads(after.read_bytes()) == json.loads(before.read_bytes())
    old, new = (AutoTokenizer.from_pretrained(path.parent) for path in (before, after))
    assert new(TEXT)["input_ids"] == old(TEXT)["input_ids"]
    assert new.get_vocab() == old.get_vocab()


def test_javascript_reads_the_same(tmp_path: Path) -> None:
    if which("node") is None:
        pytest.skip("needs node")
    before, after = written(scored(), tmp_path)
    same = "const [a, b] = process.argv.slice(1).map((p) => JSON.parse(require('fs').readFileSync(p)));"
    subprocess.run(["node", "-e", f"{same} require('assert').deepStrictEqual(a, b)", before, after], check=True)


@pytest.mark.parametrize("content", [b"{", b'{"a": "\\ud800"}', b'{"a": 1e999}', b"[" * 100_000, b"\xff\xfe\xff"])
def test_what_cannot_be_rewritten_is_copied(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "source" / "tokenizer.json").write_bytes(content)
    (tmp_path / "source" / "tokenizer_config.json").write_bytes(b'{ "a" : 1 }')
    copy_side_files(tmp_path / "source", tmp_path / "target")
    assert snapshot(tmp_path / "target") == snapshot(tmp_path / "source")


def test_compress_and_expand_write_it_so(tmp_path: Path) -> None:
    tokenizer = wordpiece(*(f"w{row}" for row in range(5, VOCABULARY)))
    tiny_model("bert").save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    tokenizer.backend_tokenizer.save(str(tmp_path / "dense" / "tokenizer.json"), pretty=True)
    kept = (tmp_path / "dense" / "tokenizer.json").read_bytes()
    assert run(["compress", str(tmp_path / "dense"), "--k", "3", "--j", "5", "-o", str(tmp_path / "out")]) == 0
    assert run(["expand", str(tmp_path / "out"), "-o", str(tmp_path / "again")]) == 0
    for folder in ("out", "again"):
        assert len((tmp_path / folder / "tokenizer.json").read_bytes()) < 0.8 * len(kept)
        found = AutoTokenizer.from_pretrained(tmp_path / folder)
        assert found("w7 w100 nothing")["input_ids"] == tokenizer("w7 w100 nothing")["input_ids"]
    assert (tmp_path / "dense" / "tokenizer.json").read_bytes() == kept
