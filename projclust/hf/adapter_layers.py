"""peft's layers for compressed tables; imported once peft is there.

LoRA adds to what the table gives. `trainable_token_indices` puts rows of its own in the place of the table's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Embedding, Linear
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn

from projclust.tables.lookup import EmbeddingLookup


class EmbeddingLora(Embedding):
    """LoRA on a compressed embedding."""

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.num_embeddings, module.embedding_dim

    def _embed(self, input: Tensor, weight: Tensor, *hooks: Any, **more: Any) -> Tensor:
        return F.embedding(input, weight, self.base_layer.padding_idx)

    def _get_embed_scale(self) -> Tensor | None:
        table = self.base_layer
        return None if table.scale is None else torch.tensor(table.scale, dtype=table.dtype, device="cpu")


class HeadLora(Linear):
    """LoRA on a compressed output layer."""

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.in_features, module.out_features


class TokenRows(TrainableTokensLayer):
    """Rows that learn, (m, d), in the place of some of a compressed table's, for its embedding or its output layer."""

    def update_layer(
        self, adapter_name: str, config: Any = None, tied_adapter: nn.Module | None = None, **more: Any
    ) -> None:
        """Start from the table's rows; what is tied has those of the other."""
        if tied_adapter is not None:
            return
        table, wanted = self.get_base_layer(), more if config is None else vars(config)
        ids = self.token_indices[adapter_name] = wanted["token_indices"]
        with torch.no_grad():
            rows = table.primary.rows(torch.tensor(ids, device=table.weight.device))
        start = rows.clone() if wanted.get("init_weights", True) else torch.randn_like(rows)
        self.trainable_tokens_delta[adapter_name] = nn.Parameter(start)
        self.trainable_tokens_original[adapter_name] = rows

    def get_merged_weights(self, active_adapters: Any) -> Tensor:
        """What the table's weight tells: there is none to put rows into."""
        weight: Tensor = self.base_layer.weight
        return weight

    def forward_adapters(self, x: Tensor, active_adapters: Any, *args: Any, **kwargs: Any) -> Tensor:
        """What the table gives, but for the tokens that have rows here."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        self._check_overlapping_tokens(active_adapters)
        replace = self._in_lookup if isinstance(self.base_layer, EmbeddingLookup) else self._in_logits
        for name in active_adapters:
            ids = torch.tensor(self.token_indices[name], device=x.device)
            result = replace(x, result, ids, rows=self.trainable_tokens_delta[name])
        return result

    def _in_lookup(self, tokens: Tensor, found: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
        ids, order = ids.sort()
        place = torch.searchsorted(ids, tokens.to(ids.dtype)).clamp(max=len(ids) - 1)
        own = self.base_layer._scaled(F.embedding(order[place], rows).to(found.dtype))
        return torch.where((ids[place] == tokens).unsqueeze(-1), own, found)

    def _in_logits(self, hidden: Tensor, logits: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
        bias = self.base_layer.bias
        own = F.linear(hidden, rows.to(hidden.dtype), None if bias is None else bias[ids].to(hidden.dtype))
        return logits.index_copy(-1, ids, own.to(logits.dtype))
