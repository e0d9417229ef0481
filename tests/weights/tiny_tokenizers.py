"""Tokenizers of the three kinds with vocabularies small enough to count by hand."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast


def wordpiece(*words: str, lower: bool = True) -> PreTrainedTokenizerBase:
    """BERT's, with the rows [PAD] [UNK] [CLS] [SEP] [MASK] before those of `words`."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    return BertTokenizer(vocab={word: row for row, word in enumerate(vocabulary)}, do_lower_case=lower)


def byte_level(*words: str) -> PreTrainedTokenizerBase:
    """GPT-2's, with a row for each of `words` (a space is Ġ) beside those of the single bytes and <end>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary, merges = {letter: row for row, letter in enumerate(alphabet)}, []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def sentencepiece(*words: str) -> PreTrainedTokenizerBase:
    """T5's, with the rows <unk> and </s> before those of `words` (a space is ▁); the first words are preferred."""
    pieces = [("<unk>", -100.0), ("</s>", -100.0), *((word, -1.0 - row) for row, word in enumerate(words))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
