"""Every supported class: swap, save, load, tie, expand, train."""

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_models import (
    BUILDERS,
    CAUSAL,
    CODED,
    COMPRESSIONS,
    ENCODER_DECODERS,
    VOCABULARY,
    compressed_model,
    inputs_for,
    logits,
    tiny_model,
    uneven_model,
)

from projclust import ProjClustConfig, ProjclustError, ProjectiveEmbedding, compress_model, unfreeze
from projclust.options import Loss, Ranks
from projclust.tables import CodedTable, CompressedTable, FactorizedTable
from projclust.tables.lookup import EmbeddingLookup

ALL = sorted(BUILDERS)
ADAPTIVE = ("bert", "gemma3", "gpt2", "t5")
EVERY_RANKS = [*((name, "equal") for name in ALL), *((name, "adaptive") for name in ADAPTIVE)]
# Integer codes change nothing about ties and names: a few classes will do.
EVERY_WAY = [
    *((name, how) for name in ALL for how in ("equal", "equal affine", "auto")),
    *((name, how) for name in ADAPTIVE for how in ("adaptive", "adaptive affine", "int8", "int4")),
]


@pytest.mark.parametrize(("name", "how"), EVERY_WAY)
def test_save_load_save_is_bit_equal_and_expands_to_the_same_outputs(name: str, how: str, tmp_path: Path) -> None:
    dense = uneven_model(name) if "adaptive" in how else tiny_model(name)
    model = compress_model(copy.deepcopy(dense), **COMPRESSIONS[how])
    assert isinstance(model.get_input_embeddings(), CodedTable) == (how in CODED)
    if how not in CODED:
        assert (len(set(model.get_input_embeddings().ranks)) > 1) == ("adaptive" in how)
    out = logits(model, name)
    assert not torch.allclose(out, logits(dense, name), atol=1e-4)  # it is compressed
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
    assert not any(isinstance(module, CompressedTable) for module in expanded.modules())
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


@pytest.mark.parametrize(
    ("name", "how"), [(name, how) for name in ALL for how in ("auto",)] + [("t5", "int8"), ("gpt2", "int4")]
)
def test_coded_ties_survive_copies_and_what_is_unfrozen_trains(name: str, how: str, tmp_path: Path) -> None:
    model = compressed_model(name, how)
    out = logits(model, name)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.tie_weights()
        assert torch.equal(logits(twin, name), out)
        embedding = twin.get_input_embeddings()
        for module in twin.modules():
            if isinstance(module, CodedTable):
                assert module.primary is embedding.primary
    unfreeze(model).train()
    model(**inputs_for(name), labels=inputs_for(name)["input_ids"]).loss.backward()
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, CodedTable)
    trained = dict(embedding.primary.named_parameters())
    assert set(trained) >= {"latent_deviations", "latent_decoders"}
    for parameter_name, parameter in trained.items():
        assert parameter.grad is not None
        assert parameter.grad.any(), parameter_name
        parameter.data.add_(parameter.grad, alpha=-0.1 / float(parameter.grad.norm()))
    # What was trained is what is saved, in as many bytes.
    model.eval().save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    # What is frozen is read by compiled loops, which take sums in another order.
    assert torch.allclose(logits(loaded, name), logits(model, name), rtol=0, atol=1e-5)
    assert not torch.allclose(logits(model, name), out, atol=1e-4)
    assert loaded.get_input_embeddings().shape == embedding.shape


@pytest.mark.parametrize("ranks", ["equal", "adaptive", *CODED])
@pytest.mark.parametrize("name", [*CAUSAL, *ENCODER_DECODERS])
def test_generates_what_its_expanded_twin_generates(name: str, ranks: str) -> None:
    options = COMPRESSIONS[ranks] if ranks in CODED else {"k": 3, "j": 8, "ranks": ranks}
    model = compress_model(tiny_model(name), **options)
    dense = copy.deepcopy(model).dequantize()
    assert torch.allclose(logits(model, name), logits(dense, name), atol=1e-4)
    prompt = inputs_for(name)["input_ids"]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(prompt, **options), dense.generate(prompt, **options))


@pytest.mark.parametrize("how", ["equal", *CODED])
def test_an_untied_head_stays_dense_and_a_tied_one_does_not(how: str) -> None:
    untied = compressed_model("llama-untied", how)
    assert type(untied.get_output_embeddings()) is torch.nn.Linear
    tied = compressed_model("qwen3", how)
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


FOLDERS = ["compressed_folder", "coded_folder", "int8_folder", "int4_folder"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_one_folder_loads_in_every_class_of_the_model(folder: str, request: pytest.FixtureRequest) -> None:
    compressed_folder, embeddings = request.getfixturevalue(folder), []
    for auto in (hf.AutoModel, hf.AutoModelForSequenceClassification, hf.AutoModelForMaskedLM):
        model = auto.from_pretrained(compressed_folder)
        embedding = model.get_input_embeddings()
        assert isinstance(embedding, EmbeddingLookup)
        embeddings.append(embedding(torch.arange(VOCABULARY)))
    assert torch.equal(embeddings[0], embeddings[1])
    assert torch.equal(embeddings[0], embeddings[2])


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loads_and_casts(folder: str, dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    compressed_folder = request.getfixturevalue(folder)
    model = hf.AutoModelForMaskedLM.from_pretrained(compressed_folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model.get_input_embeddings()(torch.tensor([1])).dtype == dtype
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


@pytest.mark.parametrize(
    "fit", [{}, {"ranks": "adaptive"}, {"loss": "l1"}, {"codes": "int8"}, {"codes": "int4"}, COMPRESSIONS["auto"]]
)
def test_compresses_while_loading(tmp_path: Path, fit: dict[str, Any]) -> None:
    from projclust import ProjClustConfig

    uneven_model("bert").save_pretrained(tmp_path / "dense")
    auto = "bits" in fit
    config = ProjClustConfig(codes="auto", **fit) if auto else ProjClustConfig(n_clusters=3, rank=5, **fit)
    on_the_fly = hf.AutoModelForMaskedLM.from_pretrained(tmp_path / "dense", quantization_config=config)
    dense = hf.AutoModelForMaskedLM.from_pretrained(tmp_path / "dense")
    afterwards = compress_model(dense, **fit) if auto else compress_model(dense, k=3, j=5, **fit)
    assert torch.equal(logits(on_the_fly, "bert"), logits(afterwards, "bert"))
    on_the_fly.save_pretrained(tmp_path / "out")
    loaded = hf.AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(loaded, "bert"), logits(on_the_fly, "bert"))


@pytest.mark.parametrize("how", ["equal", *CODED])
@pytest.mark.parametrize("name", ["bart", "t5"])
def test_heads_of_tasks_on_encoder_decoders_share_the_factors(name: str, how: str, tmp_path: Path) -> None:
    # Their own tables of ties are empty: the entries are inherited from the model inside.
    compressed_model(name, how).save_pretrained(tmp_path)
    kind = hf.BartForSequenceClassification if name == "bart" else hf.T5ForTokenClassification
    model = kind.from_pretrained(tmp_path)
    tables = [module for module in model.modules() if isinstance(module, CompressedTable)]
    assert len(tables) >= 2
    for table in tables:
        assert table.primary is tables[0].primary
        if isinstance(table, CodedTable):
            assert torch.isfinite(table.dense_weight()).all()
            continue
        assert isinstance(table, FactorizedTable)
        assert table.bases is table.primary.bases
        assert torch.isfinite(table.bases).all()
    model.save_pretrained(tmp_path / "again")
    kind.from_pretrained(tmp_path / "again")


@pytest.mark.parametrize("options", [{"k": 3, "j": 15}, {"k": 3, "j": 15, "codes": "int8"}, COMPRESSIONS["auto"]])
def test_an_embedding_that_is_itself_tied_to_another(options: dict[str, Any], tmp_path: Path) -> None:
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
    model = compress_model(dense, **options)
    rebuilt = model.get_input_embeddings().dense_weight()
    assert (rebuilt - table).norm() < 0.3 * table.norm()
    model.save_pretrained(tmp_path)
    loaded = hf.MarianMTModel.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, "bart"), logits(model, "bart"))
    unfreeze(loaded).train()
    loaded(**inputs_for("bart"), labels=inputs_for("bart")["input_ids"]).loss.backward()
    learning = list(loaded.get_input_embeddings().primary.parameters())
    assert learning
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in learning)


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


@pytest.mark.parametrize("how", ["equal", *CODED])
def test_modes_and_random_numbers_are_left_alone(how: str) -> None:
    model = compressed_model("gemma3", how)
    assert not any(module.training for module in model.modules())
    state = torch.random.get_rng_state()
    dense = model.dequantize()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(module.training for module in dense.modules())
    assert compress_model(tiny_model("bert").train(), **COMPRESSIONS[how]).get_input_embeddings().training


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
    # T5Gemma 2 has a vector beside the table for one of the tokens.
    scaled = type("StrangeScaledWordEmbedding", (torch.nn.Embedding,), {"embed_scale": 4.0})(VOCABULARY, 16)
    scaled.eoi_embedding = torch.nn.Parameter(torch.zeros(16))
    model.set_input_embeddings(scaled)
    with pytest.raises(ProjclustError, match="StrangeScaledWordEmbedding, which is not supported"):
        compress_model(model, k=3, j=5)
    for how in ("equal", "auto", "int8"):
        with pytest.raises(ProjclustError, match="compressed already"):
            compress_model(compressed_model("bert", how), k=3, j=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 3, "j": 16}, "less than the"),
        ({"k": 121, "j": 5}, "at least as many rows"),
        ({"k": 3}, "exactly one of `j`, `ratio`, `bits` and `size`"),
        ({"k": 3, "j": 5, "ratio": 0.4}, "exactly one of `j`, `ratio`, `bits` and `size`"),
        ({"k": 3, "j": 5, "codes": "int3"}, "`codes` must be one of"),
        ({"k": 3, "j": 5, "method": "magic"}, "`method` must be one of"),
        ({"k": 3, "j": 5, "ranks": "magic"}, "`ranks` must be one of"),
        ({"k": 3, "j": 5, "loss": "magic"}, "`loss` must be one of"),
        ({"k": 1, "j": 5, "ranks": "adaptive"}, "adaptive ranks are of several subspaces"),
        ({"k": 3, "j": 5, "ranks": "adaptive", "loss": "l1"}, "use loss l2"),
        ({"k": 3, "j": 5, "method": "random", "loss": "l1"}, "its loss must be l2"),
        ({"bits": 6.0, "j": 5}, "exactly one of `j`, `ratio`, `bits` and `size`"),
        ({"j": 5, "codes": "auto"}, "choose ranks and codes themselves: drop `j`"),
        ({"bits": 0.1, "metric": "none"}, "24 bytes are too few: at least"),
        ({"bits": -1.0}, "`bits` must lie between 0 and 32"),
        ({"bits": float("nan")}, "`bits` must lie between 0 and 32"),
        ({"bits": 6.0, "method": "svd", "codes": "auto"}, "drop `method`"),
        ({"bits": 6.0, "metric": "magic"}, "`sensitivity` must be one of none, model"),
        ({"bits": 6.0, "metric": "none", "sample_weight": [1.0]}, r"shape \(120,\)"),
        ({"bits": 6.0, "sample_weight": torch.ones(200)}, r"shape \(120,\)"),
        ({"bits": 6.0, "sample_weight": -torch.ones(120)}, "not negative"),
        ({"bits": 6.0, "sample_weight": torch.zeros(120)}, "positive, finite sum"),
        ({"bits": 6.0, "affine": True}, "drop `affine`"),
        ({"bits": 6.0, "loss": "l1"}, "drop `loss`"),
        ({"bits": 6.0, "k": 7}, "drop `k`"),
        ({"bitz": 6.0}, "no option 'bitz'"),
        ({"size": "4 elephants"}, "`size` takes bytes"),
        ({"method": "pq", "bits": 6.0}, "a baseline that is measured, not stored"),
        ({"bits": 6.0, "k": 3, "codes": "int8", "ranks": "adaptive"}, "needs equal ranks"),
        ({"k": 3, "bits": 0.1, "codes": "int8"}, "too few"),
    ],
)
def test_a_refused_compression_leaves_the_model_as_it_was(options: dict[str, object], message: str) -> None:
    model = tiny_model("bert")
    out = logits(model, "bert")
    with pytest.raises(ProjclustError, match=message):
        compress_model(model, **options)  # type: ignore[arg-type]
    assert torch.equal(logits(model, "bert"), out)
    assert type(model.get_input_embeddings()) is torch.nn.Embedding


@pytest.mark.parametrize(
    "options",
    [
        {"codes": "auto", "bits": 6.0, "metric": "none"},
        {"n_clusters": 3, "rank": 5, "codes": "int8", "ranks": "adaptive"},
        {"n_clusters": 3, "rank": 5},
    ],
)
def test_a_config_serves_any_number_of_models(options: dict[str, Any], tmp_path: Path) -> None:
    uneven_model("bert").save_pretrained(tmp_path)
    config = ProjClustConfig(**options)
    before = config.to_dict()
    first, second = (hf.BertForMaskedLM.from_pretrained(tmp_path, quantization_config=config) for _ in range(2))
    assert config.to_dict() == before
    assert first.config.quantization_config.to_dict() == second.config.quantization_config.to_dict() != before
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_nan_in_the_table_and_factors_beyond_float16_are_refused() -> None:
    model = tiny_model("bert")
    with torch.no_grad():
        model.get_input_embeddings().weight[7, 3] = torch.nan
    for options in ({"k": 3, "j": 5}, COMPRESSIONS["auto"], COMPRESSIONS["int8"]):
        with pytest.raises(ProjclustError, match="row 7"):
            compress_model(model, **options)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(torch.randn(VOCABULARY, 16) * 1e6)
    with pytest.raises(ProjclustError, match="use codes bfloat16"):
        compress_model(model, k=3, j=5, codes="float16")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("how", CODED)
def test_a_half_precision_model_is_coded_and_keeps_its_dtype(how: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = compress_model(tiny_model("bert").to(dtype), **COMPRESSIONS[how])
    assert model.get_input_embeddings()(torch.tensor([1])).dtype == dtype
    model.save_pretrained(tmp_path)
    loaded = hf.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert loaded.get_input_embeddings().dtype == dtype
    assert torch.equal(logits(loaded, "bert"), logits(model, "bert"))
    assert model.dequantize().get_input_embeddings().weight.dtype == dtype


def test_the_size_of_a_coded_table_is_what_was_asked_for(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for options, most in (
        ({"bits": 5.0}, 1200),
        ({"ratio": 0.8}, 1536),
        ({"bits": 7.0, "k": 3, "codes": "int8"}, 1680),
        ({"bits": 7.0, "k": 2, "codes": "int4"}, 1680),
    ):
        model = compress_model(tiny_model("bert"), metric="none", codes=options.pop("codes", "auto"), **options)
        model.save_pretrained(tmp_path)
        stored = {name: t for name, t in load_file(tmp_path / "model.safetensors").items() if "word_embeddings" in name}
        taken = sum(tensor.nbytes for tensor in stored.values())
        assert taken <= most
        assert taken > most - 2 * VOCABULARY  # a byte more for every row does not fit
        buffers = [*model.get_input_embeddings().buffers(), *model.get_input_embeddings().parameters()]
        assert sum(tensor.nbytes for tensor in buffers) == taken


def test_row_weights_reach_the_codes() -> None:
    dense = tiny_model("bert")
    table = dense.get_input_embeddings().weight.detach().clone()
    errors = []
    for heavy in (slice(0, 60), slice(60, 120)):
        weights = torch.full((VOCABULARY,), 0.02)
        weights[heavy] = 1.0
        embedding = compress_model(
            copy.deepcopy(dense), bits=4.0, metric="none", sample_weight=weights
        ).get_input_embeddings()
        errors.append(float((embedding.dense_weight() - table)[:60].square().sum()))
    assert errors[0] < errors[1]
