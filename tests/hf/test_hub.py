"""A model by its Hub id, downloaded over HTTP from a server of ours that speaks the few endpoints the client uses."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

COMMIT = "0" * 40
REPO = "someone/tiny-bert"


def hub_of(folder: Path) -> type[BaseHTTPRequestHandler]:
    """A request handler that serves one model repository."""

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            if path.startswith(f"/api/models/{REPO}/revision/") or path == f"/api/models/{REPO}":
                names = [{"rfilename": file.name, "size": file.stat().st_size} for file in sorted(folder.iterdir())]
                self.send(json.dumps({"id": REPO, "sha": COMMIT, "siblings": names}).encode(), body)
            elif path.startswith(f"/api/models/{REPO}/tree/"):
                tree = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": COMMIT} for f in folder.iterdir()
                ]
                self.send(json.dumps(tree).encode(), body)
            elif path.startswith(f"/{REPO}/resolve/") and (folder / path.rpartition("/")[2]).is_file():
                self.send((folder / path.rpartition("/")[2]).read_bytes(), body)
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def send(self, content: bytes, body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.end_headers()
            if body:
                self.wfile.write(content)

    return Hub


@pytest.fixture
def hub(tiny_folder: Path) -> Iterator[str]:
    (tiny_folder / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n# Tiny\n")
    (tiny_folder / "pytorch_model.bin").write_bytes(b"a pickle nobody should download")
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub_of(tiny_folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def projclust(hub: str, home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    program = [sys.executable, "-c", "from projclust.cli import main; main()", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_a_model_on_the_hub_is_downloaded_compressed_and_named_in_the_card(hub: str, tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    result = projclust(hub, home, "compress", REPO, "--k", 3, "--j", 5, "-o", out, "--format", "json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert json.loads(result.stdout)["model"] == REPO
    card = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
    assert card["base_model"] == REPO
    assert card["base_model_relation"] == "quantized"
    assert (card["license"], card["language"]) == ("mit", "en")
    assert f"(https://huggingface.co/{REPO})" in (out / "README.md").read_text()
    assert (out / "vocab.txt").is_file()
    assert not list(home.rglob("*.bin"))
    shown = projclust(hub, home, "inspect", REPO, "--format", "json")
    assert json.loads(shown.stdout)["compressed"] is False


def test_a_model_the_hub_does_not_have(hub: str, tmp_path: Path) -> None:
    result = projclust(hub, tmp_path / "home", "compress", "someone/absent", "--j", 5, "-o", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.startswith("error: someone/absent is neither a local folder nor a model on the Hub")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
