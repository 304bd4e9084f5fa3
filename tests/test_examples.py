"""Teacher forcing, and the training filter."""

from typing import Any

import numpy as np
import pytest

from transformer_jax.config import DataConfig, ModelConfig
from transformer_jax.data.examples import FilterCounts, fits, judge, make_example


class _Letters:
    """Ids of a text are its letters' numbers, a = 10; `seed` is put behind them."""

    pad_id, bos_id, eos_id, unk_id = 0, 1, 2, 3
    source_vocab_size = target_vocab_size = 36

    def encode_source(self, text, *, seed=None):
        return [int(letter, 36) for letter in text] + ([] if seed is None else [seed])

    encode_target = encode_source


LETTERS: Any = _Letters()  # no whole Tokenizer, but all that is asked of it here


def test_decoder_inputs_are_the_targets_moved_behind_the_start_token():
    example = make_example(("abc", "xy"), LETTERS, ModelConfig())
    a, b, c, x, y = 10, 11, 12, 33, 34
    start, end = LETTERS.bos_id, LETTERS.eos_id
    assert example["inputs"].tolist() == [a, b, c, end]
    assert example["decoder_inputs"].tolist() == [start, x, y]
    assert example["targets"].tolist() == [x, y, end]
    for array in (example["inputs"], example["decoder_inputs"], example["targets"]):
        assert array.dtype == np.int32


@pytest.mark.parametrize(("name", "start"), [("bos", 1), ("eos", 2), ("pad", 0)])
def test_each_convention_has_its_start_token(name, start):
    example = make_example(("a", "x"), LETTERS, ModelConfig(decoder_start=name))
    assert example["decoder_inputs"].tolist() == [start, 33]


def test_the_source_ends_without_end_token_if_so_chosen():
    example = make_example(("a", "x"), LETTERS, ModelConfig(source_eos=False))
    assert example["inputs"].tolist() == [10]


def test_the_source_begins_with_a_start_token_if_so_chosen():
    example = make_example(("a", "x"), LETTERS, ModelConfig(source_bos=True))
    assert example["inputs"].tolist() == [1, 10, 2]


def test_the_seed_reaches_both_sides():
    example = make_example(("a", "x"), LETTERS, ModelConfig(), seed=7)
    assert example["inputs"].tolist() == [10, 7, 2]
    assert example["targets"].tolist() == [33, 7, 2]


@pytest.mark.parametrize(
    ("source", "target", "verdict"),
    [
        ("abc", "xyz", "kept"),
        ("abcdefg", "xyz", "kept"),  # 8 with the end, as allowed
        ("abcdefgh", "xyz", "too_long"),
        ("abc", "stuvwxyz", "too_long"),
        ("abcdef", "x", "too_uneven"),  # 7 > 3 · 2
        ("abcde", "x", "kept"),  # 6 = 3 · 2
        ("a", "uvwxyz", "too_uneven"),
        ("", "xyz", "empty"),
        ("abc", "", "empty"),
        ("", "", "empty"),
    ],
)
@pytest.mark.parametrize(
    ("source_bos", "source_eos"), [(False, True), (False, False), (True, False)]
)
def test_the_filter_says_why(source, target, verdict, source_bos, source_eos):
    model = ModelConfig(source_bos=source_bos, source_eos=source_eos)
    if not model.source_specials and source in ("abcdefgh", "abcdef", "abcde"):
        source += "a"  # the end token's place
    example = make_example((source, target), LETTERS, model)
    data = DataConfig(max_length=8, max_length_ratio=3)
    assert judge(example, data) == verdict
    assert fits(example, data) == (verdict == "kept")


def test_a_source_of_only_start_and_end_is_empty():
    example = make_example(("", "xyz"), LETTERS, ModelConfig(source_bos=True))
    assert judge(example, DataConfig()) == "empty"


def test_counts_add_up():
    counts = FilterCounts()
    for verdict in ("kept", "empty", "kept", "too_long", "too_uneven"):
        counts = counts.add(verdict)
    assert counts == FilterCounts(kept=2, too_long=1, too_uneven=1, empty=1)
