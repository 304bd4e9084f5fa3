"""Other libraries' tokenizers: symbols by number, words split as they do it."""

import pickle

import pytest

from transformer_jax.data.tokenizer import load_tokenizer
from transformer_jax.data.vocabulary_tokenizer import (
    Side,
    VocabularyTokenizer,
    numbers_tokenizer,
)
from transformer_jax.testing import SENTENCES, tiny_tokenizer

IDS = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
CODES = b"#version: 0.2\nl o\nlo w</w>\ne r</w>\n"


def bpe_tokenizer() -> VocabularyTokenizer:
    side = Side((*SPECIAL, "low", "lo@@", "w@@", "er", "n@@"), "bpe", CODES)
    return VocabularyTokenizer(side, side, **IDS)


def sentencepiece_tokenizer() -> VocabularyTokenizer:
    """Pieces of one model, in another order than the model's own, and a language."""
    inside = tiny_tokenizer()
    model = inside.files()["joint.model"]
    pieces = inside.target_pieces(range(4, inside.target_vocab_size))
    side = Side((*SPECIAL, ">>deu<<", *reversed(pieces)), "sentencepiece", model)
    return VocabularyTokenizer(side, side, **IDS)


def test_bpe_codes_split_words_and_decoding_joins_them():
    tokenizer = bpe_tokenizer()
    ids = tokenizer.encode_source("low lower new")
    # By hand: low; lo w er, as "w" inside a word is not "w</w>"; n, then e and w.
    assert tokenizer.source_pieces(ids[:5]) == ["low", "lo@@", "w@@", "er", "n@@"]
    assert set(ids[5:]) == {3}
    assert tokenizer.decode_target([1, 4, 5, 6, 7, 2, 0]) == "low lower"


def test_sentencepiece_pieces_get_the_vocabularys_numbers():
    tokenizer = sentencepiece_tokenizer()
    text = SENTENCES[0][0]
    ids = tokenizer.encode_source(text)
    assert 3 not in ids
    assert tokenizer.decode_target(ids) == text
    assert ids != tiny_tokenizer().encode_source(text)
    assert tokenizer.encode_source(f">>deu<< {text}") == [4, *ids]


@pytest.mark.parametrize("make", [bpe_tokenizer, sentencepiece_tokenizer])
def test_files_and_pickles_give_the_same_tokenizer(make):
    tokenizer = make()
    for other in (
        load_tokenizer(tokenizer.files()),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert other.files() == tokenizer.files()
        assert other.encode_target("lower Bier") == tokenizer.encode_target(
            "lower Bier"
        )


def test_ids_beyond_the_list_are_unknown_and_numbers_are_text():
    tokenizer = numbers_tokenizer(9, 9, **IDS)
    assert tokenizer.encode_source("7 12 x") == [7, 3, 3]
    assert tokenizer.decode_target([7, 8, 2]) == "7 8"
    assert tokenizer.target_pieces([99]) == ["3"]


def test_special_numbers_beyond_the_list_are_an_error():
    side = Side(("a", "b"))
    with pytest.raises(ValueError, match="has 2 symbols, but a special one has number"):
        VocabularyTokenizer(side, side, **IDS)
