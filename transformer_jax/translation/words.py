"""Which word of a text each of its pieces belongs to.

Words lie between white space (blank, tab and the like in ASCII), as in fast_align and
Moses; they are counted from 0 in the text as it is given or printed. Tokenizers are not
asked how they mark words: longer and longer beginnings of the text are compared, which
holds for all of them.
"""

import re
from collections.abc import Sequence

import numpy as np

from transformer_jax.data.tokenizer import Tokenizer

_WORD = re.compile(r"[^ \t\n\v\f\r]+")


def source_words(tokenizer: Tokenizer, text: str, pieces: int) -> list[int]:
    """The word of each of the first `pieces` pieces of a source text.

    A piece that reaches over several words belongs to the first; what follows the last
    word belongs to it. A text without words has -1 for all.
    """
    counts, most = [0], 0
    for word in _WORD.finditer(text):
        if most >= pieces:
            break
        most = max(most, len(tokenizer.encode_source(text[: word.end()])))
        counts.append(most)
    numbers = np.searchsorted(counts[1:], np.arange(pieces), side="right")
    return np.minimum(numbers, len(counts) - 2).tolist()


def target_words(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """The word of each target id in the text that they decode to; -1 for pad, start and
    end, which are no part of it.

    An id that shows nothing by itself, as a bare mark of a word's start, belongs to the
    word that follows.
    """
    special = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)
    numbers: list[int] = []
    before: list[str] = []
    for end, each in enumerate(ids, start=1):
        if each in special:
            numbers.append(-1)
            continue
        words = _WORD.findall(tokenizer.decode_target(ids[:end]))
        numbers.append(len(words) - (words != before))
        before = words
    return [min(number, len(before) - 1) for number in numbers]
