"""Compressed modules in the place of stock ones, and back."""

from typing import Any

import pytest
import torch
from coded_tables import coded
from torch import Tensor, nn

from projclust import CodedEmbedding, CodedLMHead, ProjectiveEmbedding, ProjectiveLMHead
from projclust.shapes import CodedShape, FactoredShape
from projclust.tables.lookup import is_known_lookup

SHAPES: dict[str, FactoredShape | CodedShape] = {
    "equal": FactoredShape(300, 12, 3, 4, affine=True),
    "unequal": FactoredShape(300, 12, 3, 5, ranks=(5, 1, 2), sizes=(150, 100, 50)),
    "coded": coded().shape,
}


class TinyScaledWordEmbedding(nn.Embedding):
    """As Gemma's and BART's."""

    def __init__(self, n: int, d: int, padding_idx: int | None, embed_scale: float = 1.0) -> None:
        super().__init__(n, d, padding_idx)
        self.embed_scale = embed_scale

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.embed_scale


class OtherEmbedding(nn.Embedding):
    """Does nobody knows what."""


def embedding_for(old: nn.Embedding, shape: FactoredShape | CodedShape, primary: Any = None) -> Any:
    kind: Any = CodedEmbedding if isinstance(shape, CodedShape) else ProjectiveEmbedding
    return kind.from_dense(old, shape, primary)


def head_for(old: nn.Linear, shape: FactoredShape | CodedShape, primary: Any) -> Any:
    kind: Any = CodedLMHead if isinstance(shape, CodedShape) else ProjectiveLMHead
    return kind.from_dense(old, shape, primary)


def fill(embedding: Any) -> None:
    if isinstance(embedding, CodedEmbedding):
        embedding.set_stored(coded().stored)
    else:
        labels = torch.arange(3).repeat_interleave(torch.tensor([150, 100, 50]))
        embedding.set_factors(labels, torch.randn(300, 5), torch.randn(3, 5, 12), torch.randn(3, 12))


@pytest.mark.parametrize("how", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True])
def test_an_embedding_and_back(training: bool, dtype: torch.dtype, how: str) -> None:
    old = nn.Embedding(300, 12, padding_idx=7, dtype=dtype).train(training)
    new = embedding_for(old, SHAPES[how])
    assert (new.padding_idx, new.scale, new.dtype, new.training) == (7, None, dtype, training)
    fill(new)
    weight = nn.Parameter(new.dense_weight())
    state = torch.get_rng_state()
    back = new.to_dense(weight)
    assert torch.equal(torch.get_rng_state(), state)  # nobody's random numbers are touched
    assert type(back) is nn.Embedding
    assert back.weight is weight
    assert (back.num_embeddings, back.embedding_dim, back.padding_idx, back.training) == (300, 12, 7, training)
    ids = torch.arange(300)
    assert torch.allclose(back(ids).float(), new(ids).float(), atol=0.05 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("how", SHAPES)
def test_a_scaled_embedding_and_back(how: str) -> None:
    new = embedding_for(TinyScaledWordEmbedding(300, 12, 0, embed_scale=3.5), SHAPES[how])
    fill(new)
    back = new.to_dense(nn.Parameter(new.dense_weight()))
    assert isinstance(back, TinyScaledWordEmbedding)
    assert (new.scale, back.embed_scale) == (3.5, 3.5)
    assert torch.allclose(back(torch.arange(300)), new(torch.arange(300)), atol=1e-4)


def test_a_scale_without_data_is_read_from_the_number_beside_it() -> None:
    old: Any = TinyScaledWordEmbedding(300, 12, 0)
    old.embed_scale, old.scalar_embed_scale = torch.empty((), device="meta"), 2.5
    assert embedding_for(old, SHAPES["equal"]).scale == 2.5


@pytest.mark.parametrize("how", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_head_and_back(bias: bool, how: str) -> None:
    embedding = embedding_for(nn.Embedding(300, 12), SHAPES[how])
    fill(embedding)
    old = nn.Linear(12, 300, bias=bias).eval()
    new = head_for(old, SHAPES[how], embedding)
    assert new.bias is old.bias  # the parameter itself
    assert new.primary is embedding
    assert not new.training
    if isinstance(new, ProjectiveLMHead):
        new.weight, new.bases, new.means = embedding.weight, embedding.bases, embedding.means
    weight = nn.Parameter(new.dense_weight())
    back = new.to_dense(weight)
    assert type(back) is nn.Linear
    assert back.weight is weight
    assert back.bias is old.bias
    assert (back.in_features, back.out_features, back.training) == (12, 300, False)
    hidden = torch.randn(5, 12)
    assert torch.allclose(back(hidden), new(hidden), atol=1e-4)


@pytest.mark.parametrize("how", SHAPES)
def test_modules_without_data_stay_without(how: str) -> None:
    embedding = embedding_for(nn.Embedding(300, 12, device="meta"), SHAPES[how])
    head = head_for(nn.Linear(12, 300, device="meta"), SHAPES[how], embedding)
    for module in (embedding, head):
        assert all(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def test_which_modules_are_known() -> None:
    assert is_known_lookup(nn.Embedding(3, 2))
    assert is_known_lookup(TinyScaledWordEmbedding(3, 2, 0))
    assert not is_known_lookup(OtherEmbedding(3, 2))
    assert not is_known_lookup(nn.Linear(3, 2))
    unknown: Any = TinyScaledWordEmbedding(3, 2, 0)
    unknown.embed_scale = torch.ones(2)  # a scale for each column
    assert not is_known_lookup(unknown)
