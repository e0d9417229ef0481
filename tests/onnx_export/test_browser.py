"""The page of examples/browser in a headless Chromium: its vectors are PyTorch's."""

import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import onnx_graphs  # noqa: F401, which skips where torch is too old
import pytest
import torch
import transformers as hf
from coded_tables import falling_weights
from torch import Tensor

from projclust import compress_model
from projclust.jobs.export import export_checkpoint
from projclust.jobs.options import ExportOptions

ROOT = Path(__file__).parents[2]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{row}" for row in range(5, 2000))]
SENTENCES = ["w5 w6 w7", "w1999 w1000", "w12 w700 w13 w14 w1500 w600 w9", "w8"]
# Tables of several classes, of several decoders, of float factors, and none.
MODELS: dict[str, dict[str, Any] | None] = {
    "auto": {"bits": 2.0, "metric": "none", "sample_weight": falling_weights(len(WORDS))},
    "int8": {"k": 3, "j": 12, "codes": "int8"},
    "adaptive": {"k": 3, "j": 12, "ranks": "adaptive", "affine": True},
    "dense": None,
}
# Asks every model for its vectors, then looks at the page itself, and tells the server.
CHECK = """<!doctype html><body><script type="module">
import { load } from "./search.js";
const found = {};
try {
  for (const model of MODELS) {
    for (const dtype of ["fp32", "q8"]) {
      const embed = await load(model, dtype);
      found[`${model} ${dtype}`] = (await embed(SENTENCES)).map((vector) => [...vector]);
    }
  }
  const frame = document.createElement("iframe");
  frame.src = "index.html?model=auto&query=w1999%20w1000";
  document.body.append(frame);
  const look = (id) => frame.contentDocument?.getElementById(id)?.textContent ?? "";
  while (!look("answering")) await new Promise((done) => setTimeout(done, 100));
  found.page = [...frame.contentDocument.querySelectorAll("#results li")].map((item) => item.textContent);
  found.bytes = look("bytes");
} catch (error) {
  found.error = String(error?.stack ?? error);
}
await fetch("/found", { method: "POST", body: JSON.stringify(found) });
</script>"""


def program(*names: str) -> str:
    """The first of these programs that is installed."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"needs {names[0]}")
    return found


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser."""
    return program("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with tiny models, and transformers.js from npm."""
    program("node"), program("npm")
    folder = tmp_path_factory.mktemp("site")
    for name in ("index.html", "search.js"):
        shutil.copyfile(ROOT / "examples" / "browser" / name, folder / name)
    command = ["bash", str(ROOT / "scripts" / "browser_vendor.sh"), str(folder / "vendor")]
    fetched = subprocess.run(command, capture_output=True, text=True)
    if fetched.returncode:
        pytest.skip(f"npm cannot fetch transformers.js: {fetched.stderr.strip()[-200:]}")
    (folder / "sentences.txt").write_text("\n".join(SENTENCES) + "\n")
    (folder / "check.html").write_text(
        CHECK.replace("MODELS", json.dumps(list(MODELS))).replace("SENTENCES", json.dumps(SENTENCES))
    )
    return folder


def save_model(options: dict[str, Any] | None, folder: Path) -> hf.PreTrainedModel:
    """A tiny encoder with a tokenizer, compressed where there are options."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = hf.BertModel(hf.BertConfig(vocab_size=len(WORDS), initializer_range=0.2, **shape)).eval()
    if options is not None:
        compress_model(model, **options)
    model.save_pretrained(folder)
    hf.BertTokenizer(vocab={word: row for row, word in enumerate(WORDS)}).save_pretrained(folder)
    return model


@torch.no_grad()
def vectors_of(model: hf.PreTrainedModel, folder: Path) -> Tensor:
    """(sentences, d) what PyTorch makes of the sentences."""
    tokens = hf.AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    mask = tokens["attention_mask"].unsqueeze(-1)
    hidden = model(**tokens).last_hidden_state
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, "queue.Queue[dict[str, Any]]"]]:
    """The folder on this machine: its address, and what pages post."""
    posted: queue.Queue[dict[str, Any]] = queue.Queue()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def do_POST(self) -> None:
            posted.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", posted
        server.shutdown()


FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)


def test_vectors_in_a_browser_are_those_of_pytorch(chromium: str, site: Path, tmp_path: Path) -> None:
    expected = {}
    for name, options in MODELS.items():
        model = save_model(options, tmp_path / name)
        export_checkpoint(
            ExportOptions(str(tmp_path / name), output=str(site / "models" / name), body="float32,int8", overwrite=True)
        )
        expected[name] = vectors_of(model, tmp_path / name)
    with served(site) as (address, posted):
        profile = tmp_path / "profile"
        command = [chromium, *FLAGS.split(), f"--user-data-dir={profile}", f"{address}/check.html"]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            found = posted.get(timeout=200)
        finally:
            browser.terminate()
            browser.wait(timeout=20)
    assert "error" not in found, found["error"]
    for name, vectors in expected.items():
        assert torch.allclose(torch.tensor(found[f"{name} fp32"]), vectors, atol=1e-4), name
        similar = torch.cosine_similarity(torch.tensor(found[f"{name} q8"]), vectors)
        assert float(similar.min()) > 0.98, name
    assert found["page"][0] == "1.00 w1999 w1000"
    assert len(found["page"]) == len(SENTENCES)
    assert found["bytes"].startswith("model 0.")
