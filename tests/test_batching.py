"""Padding, packing, buckets: each drawn as rows a reader can check by eye."""

import numpy as np
import pytest

from transformer_jax.config import Config, DataConfig
from transformer_jax.data.batching import (
    Buckets,
    Packer,
    Placed,
    batch_shapes,
    num_rows,
    stack_rows,
)
from transformer_jax.data.examples import Example
from transformer_jax.testing import log_normal_lengths, real_share


def example(inputs, targets, *, start=1):
    return Example(
        inputs=np.array(inputs, np.int32),
        decoder_inputs=np.array([start, *targets[:-1]], np.int32),
        targets=np.array(targets, np.int32),
    )


def sized(position, S, T):
    """An example of a given size, whose tokens tell its position."""
    return Placed(position, example([position] * S, [position] * T))


def test_packed_pairs_have_the_same_segment_on_both_sides():
    first = example([11, 12, 2], [21, 2])
    second = example([13, 2], [22, 23, 24, 2])
    alone = example([14, 2], [25, 2])
    batch = stack_rows([[first, second], [alone]], (3, 6, 7), pad_id=9)
    drawn = {
        "inputs": [
            [11, 12, 2, 13, 2, 9],
            [14, 2, 9, 9, 9, 9],
            [9, 9, 9, 9, 9, 9],
        ],
        "input_segment_ids": [
            [1, 1, 1, 2, 2, 0],
            [1, 1, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
        ],
        "input_positions": [
            [0, 1, 2, 0, 1, 0],
            [0, 1, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
        ],
        "decoder_inputs": [
            [1, 21, 1, 22, 23, 24, 9],
            [1, 25, 9, 9, 9, 9, 9],
            [9, 9, 9, 9, 9, 9, 9],
        ],
        "targets": [
            [21, 2, 22, 23, 24, 2, 9],
            [25, 2, 9, 9, 9, 9, 9],
            [9, 9, 9, 9, 9, 9, 9],
        ],
        "target_segment_ids": [
            [1, 1, 2, 2, 2, 2, 0],
            [1, 1, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0],
        ],
        "target_positions": [
            [0, 1, 0, 1, 2, 3, 0],
            [0, 1, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0],
        ],
    }
    assert {name: array.tolist() for name, array in batch._asdict().items()} == drawn
    assert {array.dtype for array in batch} == {np.dtype(np.int32)}


def test_no_rows_and_empty_rows_are_padding_and_too_full_ones_an_error():
    for rows in ([], [[]]):
        batch = stack_rows(rows, (2, 3, 3), pad_id=9)
        assert (batch.inputs == 9).all()
        assert not batch.target_segment_ids.any()
    pair = example([11, 2], [21, 2])
    with pytest.raises(ValueError, match=r"4 tokens on a side.* 3 places"):
        stack_rows([[pair, pair]], (1, 3, 9), pad_id=9)


def test_packing_starts_with_the_oldest_pair_and_then_fills_best():
    packer = Packer((1, 10, 10), window=5)
    for placed in (
        sized(0, 4, 4),
        sized(1, 7, 7),  # too large beside the first
        sized(2, 4, 5),
        sized(3, 5, 5),  # the most that fits
        sized(4, 1, 1),  # and the last place
    ):
        assert packer.pop(0) is None
        packer.add(placed)
    ready = packer.pop(5)
    assert ready is not None
    assert [[placed.position for placed in row] for row in ready.rows] == [[0, 3, 4]]
    assert packer.pending() == [[1, 2]]


def test_packing_evens_the_sides():
    packer = Packer((1, 10, 10), window=3)
    packer.add(sized(0, 4, 6))
    packer.add(sized(1, 4, 4))  # leaves room for 2 and 0
    packer.add(sized(2, 4, 3))  # leaves room for 2 and 1: smaller, but more even
    ready = packer.pop(3)
    assert ready is not None
    assert [placed.position for placed in ready.rows[0]] == [0, 2]


def test_buckets_hold_pairs_by_their_longer_side():
    buckets = Buckets([(2, 4, 4), (1, 8, 8)], max_wait=100)
    buckets.add(sized(0, 4, 2))
    assert buckets.pop(1) is None
    buckets.add(sized(1, 2, 5))
    ready = buckets.pop(2)
    assert ready is not None
    assert (ready.num_rows, ready.length) == (1, 8)
    assert [[placed.position for placed in row] for row in ready.rows] == [[1]]
    buckets.add(sized(2, 1, 1))
    ready = buckets.pop(3)
    assert ready is not None
    assert (ready.num_rows, ready.length) == (2, 4)
    assert [[placed.position for placed in row] for row in ready.rows] == [[0], [2]]


def test_a_rare_length_waits_an_epoch_and_takes_shorter_pairs_along():
    buckets = Buckets([(3, 4, 4), (3, 8, 8)], max_wait=10)
    buckets.add(sized(0, 8, 8))
    buckets.add(sized(8, 2, 2))
    assert buckets.pop(9) is None
    ready = buckets.pop(10)
    assert ready is not None
    assert (ready.num_rows, ready.length) == (3, 8)
    assert [[placed.position for placed in row] for row in ready.rows] == [[0], [8]]
    assert buckets.pending() == [[], []]


def test_a_pair_that_waited_half_an_epoch_goes_along_in_a_longer_batch():
    buckets = Buckets([(3, 4, 4), (2, 8, 8)], max_wait=10)
    buckets.add(sized(0, 2, 2))
    buckets.add(sized(4, 3, 3))
    buckets.add(sized(5, 8, 8))
    buckets.add(sized(6, 8, 8))
    ready = buckets.pop(7)
    assert ready is not None
    assert [[placed.position for placed in row] for row in ready.rows] == [[0], [5]]
    assert buckets.pending() == [[4], [6]]


def test_rows_fill_the_budget_in_whole_multiples():
    data = DataConfig(
        batching="bucket", bucket_lengths=(8, 16, 24, 48), max_length=20,
        batch_tokens=200,
    )  # fmt: skip
    # The bucket of 48 would stay empty: 24 holds every pair of up to 20.
    assert batch_shapes(Config(data=data), rows_multiple=4) == [
        (24, 8, 8),
        (12, 16, 16),
        (8, 24, 24),
    ]
    packed = DataConfig(pack_length=64, max_length=64, batch_tokens=1000)
    assert batch_shapes(Config(data=packed), rows_multiple=3) == [(15, 64, 64)]


def test_default_lengths_suit_the_fused_kernel():
    """It takes even lengths alone."""
    data = Config().data
    assert not [n for n in (*data.bucket_lengths, data.pack_length) if n % 2]


def test_a_budget_too_small_for_the_devices_names_the_way_out():
    with pytest.raises(ValueError, match=r"batch_tokens.* at least 1024"):
        num_rows(1000, length=128, rows_multiple=8)


@pytest.mark.parametrize(
    "batcher", [Buckets([(1, 4, 4)], max_wait=9), Packer((1, 4, 4))]
)
def test_a_pair_that_no_row_holds_is_an_error(batcher):
    with pytest.raises(ValueError, match=r"5 pieces.*4.*max_length"):
        batcher.add(sized(0, 5, 1))


@pytest.mark.parametrize("batching", ["pack", "bucket"])
@pytest.mark.parametrize(
    ("mean", "spread", "pieces"), [(2.65, 0.3, 15), (3.18, 0.6, 29)], ids=str
)
def test_nine_of_ten_places_hold_tokens(batching, mean, spread, pieces):
    """Of captions and of news text, with the default lengths."""
    sizes = log_normal_lengths(40_000, mean, spread)
    assert round(sizes.mean()) == pieces
    config = Config(data=DataConfig(batching=batching, batch_tokens=4096))
    shapes = batch_shapes(config, rows_multiple=8)
    assert len(shapes) <= 24
    buckets = Buckets(shapes, max_wait=sizes.shape[1])
    batcher = Packer(shapes[0]) if batching == "pack" else buckets
    source, target = real_share(batcher, sizes)
    assert (source + target) / 2 >= 0.9
    assert min(source, target) >= 0.88
