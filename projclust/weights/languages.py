"""Which languages a model's vocabulary was made for, as far as `wordfreq` has dictionaries of them."""

from itertools import islice

from transformers import PreTrainedTokenizerBase

from projclust.weights.tally import tokenize

# Of each dictionary every third of these words is looked at: less frequent ones than those that vocabularies of other
# languages hold by chance.
_FROM, _UP_TO, _EVERY = 300, 2000, 3
# A vocabulary knows a language when it cuts these words into few pieces, or into a few more where those are long. On
# English ones a word of French takes 2.0 pieces of 3.2 letters, of Vietnamese 1.6 of 2.1; on that of XLM-R one of
# Greek takes 1.8 of 3.6, and of Korean 1.4 of 1.4.
_PIECES, _LETTERS = (1.45, 1.9), 2.7
# The share of words with an unknown letter, at most.
_UNKNOWN = 0.05

# Between words of these languages there is no space.
UNSPACED = ("zh", "ja")


def known_languages(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The codes of the languages that a vocabulary knows; none where `wordfreq` is not installed."""
    try:
        import wordfreq
    except ImportError:
        return []
    known = []
    for code in sorted(wordfreq.available_languages("small")):
        words = list(islice(wordfreq.iter_wordlist(code, "small"), _FROM, _UP_TO, _EVERY))
        if _knows(tokenizer, words, code not in UNSPACED):
            known.append(code)
    return known


def _knows(tokenizer: PreTrainedTokenizerBase, words: list[str], after_space: bool) -> bool:
    head = "a " if after_space else ""
    beside = len(tokenize(tokenizer, ["a" if after_space else ""], special_tokens=False)[0])
    cut = tokenize(tokenizer, [head + word for word in words], special_tokens=False)
    # SentencePiece puts a piece of its own before a text that begins with none.
    space = tokenizer.convert_tokens_to_ids("▁")
    pieces = sum(len(ids) - beside - (not after_space and ids[:1] == [space]) for ids in cut) / len(words)
    unknown = sum(tokenizer.unk_token_id in ids for ids in cut) / len(words)
    letters = sum(map(len, words)) / len(words) / max(pieces, 1e-9)
    return unknown < _UNKNOWN and (pieces < _PIECES[0] or (pieces < _PIECES[1] and letters > _LETTERS))
