"""Evaluation keeps every pair, knows the lines, and meets few shapes."""

from typing import Any

import pytest
from test_pipeline import NUMBERS, make_pairs, sentence

from transformer_jax.config import ModelConfig
from transformer_jax.data.pipeline import eval_batches, round_length


@pytest.mark.parametrize("rows_multiple", [1, 4])
def test_evaluation_drops_nothing_and_knows_the_lines(rows_multiple):
    pairs = [*make_pairs(50), ("", "7"), ("5", ""), ("", "")]
    pairs.append((sentence(77, 200), sentence(77, 3)))  # longer than the budget
    found = {}
    for batch, indices in eval_batches(
        pairs, NUMBERS, ModelConfig(), batch_tokens=64, rows_multiple=rows_multiple
    ):
        assert len(batch.inputs) == len(indices)
        assert len(indices) % rows_multiple == 0
        for b, line in enumerate(indices.tolist()):
            ids = batch.inputs[b][batch.input_segment_ids[b] == 1]
            targets = batch.targets[b][batch.target_segment_ids[b] == 1]
            if line < 0:
                assert len(ids) == len(targets) == 0
                continue
            assert line not in found
            found[line] = (ids.tolist(), targets.tolist())
    expected = [
        tuple([*NUMBERS.encode_source(side), NUMBERS.eos_id] for side in pair)
        for pair in pairs
    ]
    assert [found[line] for line in range(len(pairs))] == expected


def test_evaluation_meets_few_shapes_and_one_row_count_for_each():
    pairs = make_pairs(300)
    batches = list(eval_batches(pairs, NUMBERS, ModelConfig(), batch_tokens=256))
    shapes = {batch.inputs.shape for batch, _ in batches}
    assert shapes == {(256 // length, length) for length in (8, 16)}
    assert {batch.targets.shape for batch, _ in batches} == shapes


def test_lengths_are_rounded_up_by_at_most_a_quarter_past_32():
    rounded = [round_length(n) for n in range(1, 2000)]
    assert all(r >= n for n, r in enumerate(rounded, start=1))
    assert all(r <= 1.25 * n + 1 for n, r in enumerate(rounded, start=1) if n > 32)
    assert len(set(rounded)) < 32


def test_evaluation_rows_stay_inside_a_learned_position_table():
    model = ModelConfig(positions="learned", max_positions=13, position_offset=2)
    pairs: Any = [(sentence(0, 10), sentence(0, 2))]
    (only,) = eval_batches(pairs, NUMBERS, model, batch_tokens=64)
    assert only.batch.inputs.shape[1] == 11


def test_a_pair_that_a_learned_position_table_cannot_hold_is_named():
    model = ModelConfig(positions="learned", max_positions=13, position_offset=2)
    pairs: Any = [(sentence(0, 10), "5"), (sentence(1, 3), sentence(1, 11)), ("5", "5")]
    with pytest.raises(ValueError, match=r"Line 2 has 12 pieces.*table has 11"):
        next(eval_batches(pairs, NUMBERS, model, batch_tokens=64))
