"""`resize_token_embeddings` of a compressed model: rows that go take their codes along, rows that come are dense.

transformers resizes in many places: embeddings, heads and their biases, buffers of single classes, the config. So it
does all of that itself, to a model that is dense meanwhile; then the compressed table takes its place again.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from projclust.errors import ProjclustError
from projclust.hf.config import ProjClustConfig
from projclust.hf.swap import input_embedding, restore_dense, swap_embedding
from projclust.shapes import FactoredShape
from projclust.tables import CompressedTable

_MARK = "_projclust_heeds_tables"


def heed_resizes(model: PreTrainedModel) -> None:
    """Let `resize_token_embeddings` of a model and its parts know compressed tables.

    On their classes, where others call it by `super()`: a method of the instance would keep it alive, or would be that
    of another after a copy. Models without a compressed table are resized as ever.
    """
    for kind in {type(part) for part in model.modules() if isinstance(part, PreTrainedModel)}:
        if not hasattr(kind.__dict__.get("resize_token_embeddings"), _MARK):
            kind.resize_token_embeddings = _heeding(kind.resize_token_embeddings)


def _heeding(stock: Callable[..., Any]) -> Any:
    @wraps(stock)
    def resize(
        self: PreTrainedModel, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, **more: Any
    ) -> nn.Module:
        more |= {} if pad_to_multiple_of is None else {"pad_to_multiple_of": pad_to_multiple_of}
        own = partial(stock, self, new_num_tokens, **more)
        table = self.get_input_embeddings()
        if not isinstance(table, CompressedTable):
            return own()
        height = table.shape.height if new_num_tokens is None else new_num_tokens
        height = -(-height // pad_to_multiple_of) * pad_to_multiple_of if pad_to_multiple_of else height
        if height != table.shape.height:
            _resize(self, table.primary, height, own)
        return self.get_input_embeddings()

    resize.__dict__[_MARK] = True
    return resize


def _resize(model: PreTrainedModel, table: Any, height: int, stock: Callable[[], Any]) -> None:
    least = table.shape.k if isinstance(table.shape, FactoredShape) else table.shape.classes
    if height < least:
        raise ProjclustError(f"the vocabulary cannot have {height} tokens: its table has {least} clusters of rows")
    if any(tensor.is_meta for tensor in (*table.parameters(), *table.buffers())):
        raise ProjclustError("the embedding is offloaded: load the model without device_map to resize it")
    restore_dense(model)
    try:
        stock()
    finally:  # also a model that transformers does not resize stays compressed
        dense = input_embedding(model)[1]
        rows = dense.weight.detach()
        if len(rows) < table.shape.n:
            table.cut(len(rows))
        was_grown = table.added is not None
        table.set_added(rows[table.shape.n :])
        if table.added is not None and not was_grown:
            table.added.requires_grad_(dense.weight.requires_grad)
        table.num_embeddings, table.padding_idx = dense.num_embeddings, dense.padding_idx
        swap_embedding(model, table.shape, table)
        model.tie_weights()
        for holder in (model.config, model.hf_quantizer):
            if isinstance(config := getattr(holder, "quantization_config", None), ProjClustConfig):
                config.set_shape(table.shape)
