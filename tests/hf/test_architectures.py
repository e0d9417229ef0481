"""Every supported class: swap, save, load, tie, expand, train."""

import copy
import itertools
import pickle
from pathlib import Path

import pytest
import torch
import transformers as hf
from tiny_models import BUILDERS, CAUSAL, ENCODER_DECODERS, VOCABULARY, inputs_for, logits, tiny_model, uneven_model

from projclust import ProjclustError, ProjectiveEmbedding, compress_model
from projclust.clustering.ranks import Ranks
from projclust.clustering.robust import Loss
from projclust.modules import FactorizedTable

ALL = sorted(BUILDERS)
ADAPTIVE = ("bert", "gemma3", "gpt2", "t5")
EVERY_RANKS = [*((name, "equal") for name in ALL), *((name, "adaptive") for name in ADAPTIVE)]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("name", "ranks"), EVERY_RANKS)
def test_save_load_save_is_bit_equal_and_expands_to_the_same_outputs(
    name: str, ranks: str, affine: bool, tmp_path: Path
) -> None:
    dense = tiny_model(name) if ranks == "equal" else uneven_model(name)
    model = compress_model(copy.deepcopy(dense), k=3, j=5, affine=affine, ranks=ranks)
    assert (len(set(model.get_input_embeddings().ranks)) > 1) == (ranks == "adaptive")
    out = logits(model, name)
    assert not torch.allclose(out, logits(dense, name), atol=1e-3)  # it is compressed
    model.save_pretrained(tmp_path / "first")
    loaded, info = type(model).from_pretrained(tmp_path / "first", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    saved, read = model.state_dict(), loaded.state_dict()
    assert all(torch.equal(saved[key], read[key]) for key in saved)
    # Tensors mapped from a file lie at other addresses, and on some processors products then round differently.
    assert torch.allclose(logits(loaded, name), out, rtol=0, atol=1e-6)
    loaded.save_pretrained(tmp_path / "second")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()

    expanded = loaded.dequantize()
    assert [key for key, _ in expanded.named_parameters()] == [key for key, _ in dense.named_parameters()]
    assert not any(isinstance(module, FactorizedTable) for module in expanded.modules())
    assert type(expanded.get_input_embeddings()) is type(dense.get_input_embeddings())
    expanded.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in (tmp_path / "dense" / "config.json").read_text()
    stock = type(model).from_pretrained(tmp_path / "dense")
    assert torch.allclose(logits(stock, name), out, atol=1e-5)


@pytest.mark.parametrize(("name", "ranks"), EVERY_RANKS)
def test_ties_survive_copies_and_everything_trains(name: str, ranks: str) -> None:
    model = compress_model(uneven_model(name), k=3, j=5, affine=True, ranks=ranks)
    out = logits(model, name)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.tie_weights()
        assert torch.equal(logits(twin, name), out)
        embedding = twin.get_input_embeddings()
        for module in twin.modules():
            if isinstance(module, FactorizedTable):
                assert module.weight is embedding.weight
                assert module.bases is embedding.bases
                assert module.primary is embedding
    model.train()
    model(**inputs_for(name), labels=inputs_for(name)["input_ids"]).loss.backward()
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, ProjectiveEmbedding)
    for factor in embedding.factor_names():
        gradient = getattr(embedding, factor).grad
        assert gradient is not None
        assert gradient.any(), factor


@pytest.mark.parametrize("ranks", ["equal", "adaptive"])
@pytest.mark.parametrize("name", [*CAUSAL, *ENCODER_DECODERS])
def test_generates_what_its_expanded_twin_generates(name: str, ranks: str) -> None:
    model = compress_model(tiny_model(name), k=3, j=8, ranks=ranks)
    dense = copy.deepcopy(model).dequantize()
    prompt = inputs_for(name)["input_ids"]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(prompt, **options), dense.generate(prompt, **options))


def test_an_untied_head_stays_dense_and_a_tied_one_does_not() -> None:
    untied = compress_model(tiny_model("llama-untied"), k=3, j=5)
    assert type(untied.get_output_embeddings()) is torch.nn.Linear
    tied = compress_model(tiny_model("qwen3"), k=3, j=5)
    assert not any(p.shape[0] == VOCABULARY and p.dim() == 2 and p.shape[1] > 5 for p in tied.parameters())


def test_adaptive_ranks_take_no_more_parameters_and_lower_the_error() -> None:
    dense = uneven_model("bert")
    table = dense.get_input_embeddings().weight.detach().clone()
    errors, sizes = [], []
    for ranks in ("equal", Ranks.ADAPTIVE):
        embedding = compress_model(copy.deepcopy(dense), k=3, j=5, ranks=ranks).get_input_embeddings()
        errors.append(float((embedding.dense_weight() - table).square().sum()))
        sizes.append(sum(getattr(embedding, name).numel() for name in embedding.factor_names()))
    assert errors[1] < errors[0]
    assert sizes[1] <= sizes[0]


def test_a_robust_loss_bears_on_the_fit() -> None:
    bases = [compress_model(uneven_model("bert"), k=3, j=5, loss=loss).get_input_embeddings().bases for loss in Loss]
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(bases))


def test_one_folder_loads_in_every_class_of_the_model(compressed_folder: Path) -> None:
    embeddings = []
    for auto in (hf.AutoModel, hf.AutoModelForSequenceClassification, hf.AutoModelForMaskedLM):
        model = auto.from_pretrained(compressed_folder)
        embedding = model.get_input_embeddings()
        assert isinstance(embedding, ProjectiveEmbedding)
        embeddings.append(embedding(torch.arange(VOCABULARY)))
    assert torch.equal(embeddings[0], embeddings[1])
    assert torch.equal(embeddings[0], embeddings[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loads_and_casts(compressed_folder: Path, dtype: torch.dtype) -> None:
    model = hf.AutoModelForMaskedLM.from_pretrained(compressed_folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    reference = logits(hf.AutoModelForMaskedLM.from_pretrained(compressed_folder), "bert")
    assert torch.allclose(logits(model, "bert").float(), reference, atol=0.1)
    assert torch.allclose(logits(model.float(), "bert"), reference, atol=0.1)


def test_a_half_precision_model_is_compressed_in_its_own_dtype(tmp_path: Path) -> None:
    model = compress_model(tiny_model("bert").to(torch.bfloat16), k=3, j=5)
    embedding = model.get_input_embeddings()
    assert {getattr(embedding, name).dtype for name in embedding.factor_names()} == {torch.bfloat16}
    model.save_pretrained(tmp_path)
    loaded = hf.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, "bert"), logits(model, "bert"))


@pytest.mark.parametrize("ranks", ["equal", "adaptive"])
@pytest.mark.parametrize("codes", ["float16", "bfloat16"])
def test_narrow_codes_are_stored_narrow_and_load_exactly(codes: str, ranks: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = compress_model(uneven_model("bert"), k=3, j=5, codes=codes, ranks=ranks)
    model.save_pretrained(tmp_path / "first")
    stored = load_file(tmp_path / "first" / "model.safetensors")
    factors = {name: t.dtype for name, t in stored.items() if "word_embeddings" in name}
    prefix = "bert.embeddings.word_embeddings."
    assert factors == {
        f"{prefix}weight": getattr(torch, codes),
        f"{prefix}bases": getattr(torch, codes),
        f"{prefix}clusters": torch.uint8,
    }
    loaded = hf.AutoModelForMaskedLM.from_pretrained(tmp_path / "first")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(logits(loaded, "bert"), logits(model, "bert"))
    loaded.save_pretrained(tmp_path / "second")
    names = ("first", "second")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in names)
    assert first == second


@pytest.mark.parametrize("fit", [{}, {"ranks": "adaptive"}, {"loss": "l1"}])
def test_compresses_while_loading(tmp_path: Path, fit: dict[str, str]) -> None:
    from projclust import ProjClustConfig

    uneven_model("bert").save_pretrained(tmp_path / "dense")
    config = ProjClustConfig(n_clusters=3, rank=5, **fit)  # type: ignore[arg-type]
    on_the_fly = hf.AutoModelForMaskedLM.from_pretrained(tmp_path / "dense", quantization_config=config)
    afterwards = compress_model(hf.AutoModelForMaskedLM.from_pretrained(tmp_path / "dense"), k=3, j=5, **fit)  # type: ignore[arg-type]
    assert torch.equal(logits(on_the_fly, "bert"), logits(afterwards, "bert"))
    on_the_fly.save_pretrained(tmp_path / "out")
    loaded = hf.AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(loaded, "bert"), logits(on_the_fly, "bert"))


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_heads_of_tasks_on_encoder_decoders_share_the_factors(name: str, tmp_path: Path) -> None:
    # Their own tables of ties are empty: the entries are inherited from the model inside.
    compress_model(tiny_model(name), k=3, j=5).save_pretrained(tmp_path)
    kind = hf.BartForSequenceClassification if name == "bart" else hf.T5ForTokenClassification
    model = kind.from_pretrained(tmp_path)
    tables = [module for module in model.modules() if isinstance(module, FactorizedTable)]
    assert len(tables) >= 2
    for table in tables:
        assert table.bases is table.primary.bases
        assert torch.isfinite(table.bases).all()
    model.save_pretrained(tmp_path / "again")
    kind.from_pretrained(tmp_path / "again")


def test_an_embedding_that_is_itself_tied_to_another(tmp_path: Path) -> None:
    # Marian's input embedding is encoder.embed_tokens, but ties copy from shared.
    torch.manual_seed(0)
    sides = {
        f"{side}_{part}": n
        for side in ("encoder", "decoder")
        for part, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))
    }
    dense = hf.MarianMTModel(
        hf.MarianConfig(
            vocab_size=VOCABULARY,
            d_model=16,
            max_position_embeddings=40,
            pad_token_id=0,
            decoder_start_token_id=0,
            **sides,
        )
    ).eval()
    table = dense.get_input_embeddings().weight.detach().clone()
    model = compress_model(dense, k=3, j=15)
    rebuilt = model.get_input_embeddings().dense_weight()
    assert (rebuilt - table).norm() < 0.3 * table.norm()
    model.save_pretrained(tmp_path)
    loaded = hf.MarianMTModel.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, "bart"), logits(model, "bart"))


def test_a_state_dict_that_is_handed_over_is_what_is_saved(tmp_path: Path) -> None:
    # Under FSDP the model's own state is not complete; transformers drops the argument for quantized models.
    for codes in (None, "float16"):
        model = compress_model(tiny_model("bert"), k=3, j=5, codes=codes)
        state = {
            name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
        }
        model.save_pretrained(tmp_path, state_dict=state)
        loaded = hf.AutoModelForMaskedLM.from_pretrained(tmp_path)
        assert torch.allclose(loaded.get_input_embeddings().bases, model.get_input_embeddings().bases + 1, atol=2e-3)


def test_an_untied_copy_of_the_factors_expands_to_itself() -> None:
    model = compress_model(tiny_model("bert"), k=3, j=5)
    head = model.get_output_embeddings()
    head.bases = torch.nn.Parameter(head.bases.detach() * 2)
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    hidden = torch.randn(2, 16)
    with torch.no_grad():
        expected = head(hidden)
        model.config.tie_word_embeddings = False
        assert torch.allclose(model.dequantize().get_output_embeddings()(hidden), expected, atol=1e-5)


def test_modes_and_random_numbers_are_left_alone() -> None:
    model = compress_model(tiny_model("gemma3"), k=3, j=5)
    assert not any(module.training for module in model.modules())
    state = torch.random.get_rng_state()
    dense = model.dequantize()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(module.training for module in dense.modules())
    assert compress_model(tiny_model("bert").train(), k=3, j=5).get_input_embeddings().training


def test_codes_that_store_nothing_narrower_are_refused() -> None:
    for dtype, codes in ((torch.bfloat16, "float16"), (torch.float16, "bfloat16"), (torch.bfloat16, "float32")):
        with pytest.raises(ProjclustError, match="not narrower than the model's"):
            compress_model(tiny_model("bert").to(dtype), k=3, j=5, codes=codes)
    assert compress_model(tiny_model("bert"), k=3, j=5, codes="float32").dtype == torch.float32


def test_factors_that_outgrow_their_codes_are_not_saved(tmp_path: Path) -> None:
    model = compress_model(tiny_model("bert"), k=3, j=5, codes="float16")
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] = 1e6
    with pytest.raises(ProjclustError, match="has outgrown float16"):
        model.save_pretrained(tmp_path)


def test_refuses_by_name_what_it_cannot_compress() -> None:
    with pytest.raises(ProjclustError, match="ViTModel has no token embedding"):
        compress_model(
            hf.ViTModel(hf.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)),
            k=3,
            j=5,
        )
    config = hf.DebertaV2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        legacy=False,
    )
    with pytest.raises(ProjclustError, match="DebertaV2ForMaskedLM with legacy=False reads"):
        compress_model(hf.DebertaV2ForMaskedLM(config), k=3, j=5)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "embedding_size": 16,
        "intermediate_size": 32,
    }
    with pytest.raises(ProjclustError, match="MobileBertForMaskedLM reads"):
        compress_model(hf.MobileBertForMaskedLM(hf.MobileBertConfig(**shape)), k=3, j=5)
    model = tiny_model("bert")
    model.set_input_embeddings(type("StrangeEmbedding", (torch.nn.Embedding,), {})(VOCABULARY, 16))
    with pytest.raises(ProjclustError, match="StrangeEmbedding, which is not supported"):
        compress_model(model, k=3, j=5)
    with pytest.raises(ProjclustError, match="compressed already"):
        compress_model(compress_model(tiny_model("bert"), k=3, j=5), k=3, j=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 3, "j": 16}, "less than the"),
        ({"k": 121, "j": 5}, "at least as many rows"),
        ({"k": 3}, "exactly one of j and ratio"),
        ({"k": 3, "j": 5, "ratio": 0.4}, "exactly one of j and ratio"),
        ({"k": 3, "j": 5, "codes": "int3"}, "codes must be one of"),
        ({"k": 3, "j": 5, "method": "magic"}, "unknown option"),
        ({"k": 3, "j": 5, "ranks": "magic"}, "unknown option"),
        ({"k": 3, "j": 5, "loss": "magic"}, "unknown option"),
        ({"k": 1, "j": 5, "ranks": "adaptive"}, "adaptive ranks are of several subspaces"),
        ({"k": 3, "j": 5, "ranks": "adaptive", "loss": "l1"}, "use loss l2"),
        ({"k": 3, "j": 5, "method": "random", "loss": "l1"}, "its loss must be l2"),
    ],
)
def test_a_refused_compression_leaves_the_model_as_it_was(options: dict[str, object], message: str) -> None:
    model = tiny_model("bert")
    out = logits(model, "bert")
    with pytest.raises(ProjclustError, match=message):
        compress_model(model, **options)  # type: ignore[arg-type]
    assert torch.equal(logits(model, "bert"), out)
    assert type(model.get_input_embeddings()) is torch.nn.Embedding


def test_nan_in_the_table_and_factors_beyond_float16_are_refused() -> None:
    model = tiny_model("bert")
    with torch.no_grad():
        model.get_input_embeddings().weight[7, 3] = torch.nan
    with pytest.raises(ProjclustError, match="row 7"):
        compress_model(model, k=3, j=5)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(torch.randn(VOCABULARY, 16) * 1e6)
    with pytest.raises(ProjclustError, match="use codes bfloat16"):
        compress_model(model, k=3, j=5, codes="float16")
