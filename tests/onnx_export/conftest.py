"""Exports of tiny models."""

from collections.abc import Callable

import pytest
import transformers as hf
from onnx_graphs import Done
from tiny_models import COMPRESSIONS, VOCABULARY, tiny_model, uneven_model

from projclust import compress_model
from projclust.jobs.export import export_checkpoint
from projclust.jobs.options import ExportOptions

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{row}" for row in range(5, VOCABULARY))]


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Done]:
    """Save a model, compressed in one of the ways of tiny_models, with a tokenizer, and export it."""

    def call(name: str | hf.PreTrainedModel, how: str, body: str = "float32") -> Done:
        root = tmp_path_factory.mktemp("export")
        if isinstance(name, str):
            model = uneven_model(name) if "adaptive" in how else tiny_model(name)
        else:
            model = name.eval()
        if how != "dense":
            compress_model(model, **COMPRESSIONS[how])
        model.save_pretrained(root / "model")
        hf.BertTokenizer(vocab={word: row for row, word in enumerate(WORDS)}).save_pretrained(root / "model")
        options = ExportOptions(str(root / "model"), output=str(root / "exported"), body=body)
        return Done(model, root / "exported", export_checkpoint(options))

    return call
