"""The training stream loses nothing, resumes exactly and splits by process."""

import itertools
import json
import multiprocessing
import random
import time
from collections import Counter
from contextlib import closing
from typing import Any

import chex
import numpy as np
import pytest

from transformer_jax.config import Config, DataConfig, TokenizerConfig
from transformer_jax.data.examples import FilterCounts
from transformer_jax.data.pipeline import (
    batch_shapes,
    eval_batches,
    train_batches,
)
from transformer_jax.data.stream import ExampleStream
from transformer_jax.testing import NumberTokenizer

NUMBERS = NumberTokenizer()


def sentence(number, words):
    """Begins with the pair's number, so that batches tell who is in them."""
    return " ".join([str(number + 1000)] + ["5"] * (words - 1))


def make_pairs(count, seed=0) -> Any:
    draw = random.Random(seed)
    sizes = [draw.randint(1, 11) for _ in range(count)]
    return [
        (sentence(n, size), sentence(n, max(1, size + draw.randint(-1, 1))))
        for n, size in enumerate(sizes)
    ]


def make_config(batching, *, sampling=0.0, **data):
    return Config(
        tokenizer=TokenizerConfig(sampling=sampling),
        data=DataConfig(
            **{
                "batching": batching,
                "batch_tokens": 96,
                "pack_length": 24,
                "bucket_lengths": (4, 8, 16, 24),
                "max_length": 24,
                **data,
            }
        ),
    )


def open_batches(config, pairs, **options):
    return closing(train_batches(pairs, NUMBERS, config, **options))


def take(batches, count):
    return list(itertools.islice(batches, count))


def numbers(ids):
    """The pairs that a batch's ids tell of."""
    return Counter((ids[ids >= 1000] - 1000).tolist())


each_batching = pytest.mark.parametrize("batching", ["pack", "bucket"])


@each_batching
def test_every_pair_comes_once_an_epoch(batching):
    # What was read has come, or waits: each pair as often as it was read.
    pairs = make_pairs(150)
    with open_batches(make_config(batching), pairs) as batches:
        seen = Counter()
        while batches.epoch < 3:
            seen += numbers(next(batches).targets)
        state = batches.get_state()
    stream = ExampleStream(pairs, NUMBERS, make_config(batching))
    for position in itertools.chain.from_iterable(state["pending"]):
        seen += numbers(stream[position]["targets"])
    read = Counter()
    for position in range(state["position"]):
        read += numbers(stream[position]["targets"])
    assert seen == read
    assert set(read.values()) <= {3, 4}


@each_batching
def test_sides_of_a_pair_stay_together(batching):
    with open_batches(make_config(batching), make_pairs(80)) as batches:
        for batch in take(batches, 12):
            for b in range(len(batch.inputs)):
                for segment in range(1, batch.target_segment_ids[b].max() + 1):
                    ids = batch.inputs[b][batch.input_segment_ids[b] == segment]
                    targets = batch.targets[b][batch.target_segment_ids[b] == segment]
                    assert numbers(ids) == numbers(targets)
                    assert sum(numbers(ids).values()) == 1


@each_batching
def test_decoder_inputs_are_targets_one_place_later_in_each_segment(batching):
    with open_batches(make_config(batching), make_pairs(80)) as batches:
        for batch in take(batches, 12):
            first = batch.target_positions == 0
            real = batch.target_segment_ids > 0
            assert (batch.decoder_inputs[first & real] == NUMBERS.bos_id).all()
            np.testing.assert_array_equal(
                np.where(first, 0, batch.decoder_inputs)[:, 1:],
                np.where(first[:, 1:], 0, batch.targets[:, :-1]),
            )
            last = np.append(first[:, 1:], np.ones((len(first), 1), bool), axis=1)
            assert (batch.targets[last & real] == NUMBERS.eos_id).all()


@each_batching
def test_places_without_a_token_are_padding(batching):
    with open_batches(make_config(batching), make_pairs(80)) as batches:
        for batch in take(batches, 12):
            for ids, segments, positions in (
                (batch.inputs, batch.input_segment_ids, batch.input_positions),
                (batch.targets, batch.target_segment_ids, batch.target_positions),
            ):
                np.testing.assert_array_equal(segments == 0, ids == NUMBERS.pad_id)
                assert (positions[segments == 0] == 0).all()
                assert (positions < segments.shape[1]).all()


@each_batching
def test_every_shape_was_announced_and_rows_are_whole_multiples(batching):
    config = make_config(batching, batch_tokens=192)
    shapes = batch_shapes(config, rows_multiple=4)
    assert all(B % 4 == 0 for B, _, _ in shapes)
    with open_batches(config, make_pairs(100), rows_multiple=4) as batches:
        met = {
            (*batch.inputs.shape, batch.targets.shape[1]) for batch in take(batches, 40)
        }
    assert met <= set(shapes)
    assert batching == "pack" or len(met) > 1


@each_batching
@pytest.mark.parametrize("sampling", [0.0, 0.3])
def test_resuming_at_any_batch_goes_on_alike(batching, sampling):
    config = make_config(batching, sampling=sampling)
    pairs = make_pairs(60)
    with open_batches(config, pairs) as batches:
        states = [batches.get_state()]
        expected = []
        for batch in itertools.islice(batches, 30):
            expected.append(batch)
            states.append(json.loads(json.dumps(batches.get_state())))
    for stopped, state in enumerate(states[:25]):
        with open_batches(config, pairs) as batches:
            batches.set_state(state)
            assert batches.get_state() == state
            chex.assert_trees_all_equal(
                take(batches, 5), expected[stopped : stopped + 5]
            )
            assert batches.get_state() == states[stopped + 5]


def test_going_back_with_batches_read_ahead():
    config = make_config("bucket")
    with open_batches(config, make_pairs(60)) as batches:
        take(batches, 3)
        state = batches.get_state()
        expected = take(batches, 4)
        batches.set_state(state)
        chex.assert_trees_all_equal(take(batches, 4), expected)


@each_batching
def test_reading_ahead_does_not_move_the_state(batching):
    with open_batches(make_config(batching), make_pairs(60)) as batches:
        next(batches)
        state = json.dumps(batches.get_state())
        time.sleep(0.1)
        assert json.dumps(batches.get_state()) == state


@pytest.mark.parametrize("num_workers", [1, 3])
def test_worker_processes_change_nothing(num_workers):
    config = make_config("pack", sampling=0.3)
    workers = make_config("pack", sampling=0.3, num_workers=num_workers)
    pairs = make_pairs(60)
    with (
        open_batches(config, pairs) as here,
        open_batches(workers, pairs) as there,
    ):
        take(here, 3)
        there.set_state(here.get_state())
        chex.assert_trees_all_equal(take(there, 10), take(here, 10))
        assert there.get_state() == here.get_state()
        there.set_state(here.get_state())
        chex.assert_trees_all_equal(take(there, 2), take(here, 2))


def test_batches_of_a_process_beside_end_with_it_and_tell_of_its_errors():
    config = make_config("bucket", num_workers=1, max_length=1)
    before = set(multiprocessing.active_children())
    with (
        open_batches(config, make_pairs(60)) as batches,
        pytest.raises(Exception, match="None of the 60 training pairs passes"),
    ):
        next(batches)
    config = make_config("bucket", num_workers=1)
    with open_batches(config, make_pairs(60)) as batches:
        next(batches)
        assert set(multiprocessing.active_children()) - before
    assert not set(multiprocessing.active_children()) - before


@each_batching
def test_rows_are_what_masks_take_them_for(batching):
    """Of one sentence, where they are said to be, and padding behind it."""
    config = make_config(batching)
    pairs = make_pairs(60)
    with open_batches(config, pairs) as batches:
        formed = take(batches, 8)
    if batching == "bucket":
        formed += [
            each.batch
            for each in eval_batches(pairs, NUMBERS, config.model, batch_tokens=96)
        ]
    for batch in formed:
        for ids in (batch.input_segment_ids, batch.target_segment_ids):
            words = ids > 0
            assert (words[:, 1:] <= words[:, :-1]).all()
            assert (ids.max() == 1) == (batching == "bucket")


def test_closed_batches_say_so_and_keep_their_state():
    batches = train_batches(make_pairs(60), NUMBERS, make_config("pack"))
    next(batches)
    state = batches.get_state()
    batches.close()
    batches.close()
    assert batches.get_state() == state
    with pytest.raises(ValueError, match="closed"):
        next(batches)


@each_batching
def test_processes_share_out_the_rows_of_the_same_batches(batching):
    config = make_config(batching)
    pairs = make_pairs(60)
    with (
        open_batches(config, pairs, rows_multiple=4) as whole,
        open_batches(
            config, pairs, rows_multiple=4, shares=(0,), num_shares=2
        ) as first,
        open_batches(
            config, pairs, rows_multiple=4, shares=(1,), num_shares=2
        ) as second,
    ):
        for _ in range(12):
            halves = next(first), next(second)
            joined = [np.concatenate(arrays) for arrays in zip(*halves, strict=True)]
            chex.assert_trees_all_equal(joined, list(next(whole)))
        assert first.get_state() == whole.get_state() == second.get_state()


@each_batching
def test_more_processes_go_on_from_the_same_position(batching):
    config = make_config(batching)
    pairs = make_pairs(60)
    with (
        open_batches(config, pairs, rows_multiple=2) as whole,
        open_batches(
            config, pairs, rows_multiple=2, shares=(1,), num_shares=2
        ) as second,
    ):
        take(whole, 7)
        second.set_state(whole.get_state())
        for _ in range(5):
            lower = [array[len(array) // 2 :] for array in next(whole)]
            chex.assert_trees_all_equal(list(next(second)), lower)


@each_batching
def test_smaller_batches_go_on_from_the_same_position_without_a_loss(batching):
    # As when the mesh, and with it the multiple of rows, has changed.
    config = make_config(batching)
    pairs = make_pairs(60)
    with (
        open_batches(config, pairs, rows_multiple=4) as before,
        open_batches(config, pairs, rows_multiple=3) as after,
    ):
        seen = Counter()
        for batch in take(before, 9):
            seen += numbers(batch.targets)
        after.set_state(before.get_state())
        for batch in take(after, 9):
            seen += numbers(batch.targets)
        state = after.get_state()
    waiting = sum(len(group) for group in state["pending"])
    assert sum(seen.values()) + waiting == state["position"]


def test_epochs_and_seeds_differ_in_order():
    pairs = make_pairs(40)

    def order(seed):
        config = make_config("bucket", bucket_lengths=(24,), batch_tokens=24)
        with open_batches(Config(data=config.data, seed=seed), pairs) as batches:
            return [next(iter(numbers(b.targets))) for b in take(batches, 80)]

    one, two = order(1), order(2)
    assert sorted(one[:40]) == sorted(one[40:]) == sorted(two[:40]) == list(range(40))
    assert len({tuple(o) for o in (one[:40], one[40:], two[:40], two[40:])}) == 4
    assert order(1) == one


def test_sampling_cuts_a_pair_anew_in_each_epoch():
    pairs: Any = [(sentence(0, 20), sentence(0, 20))]
    config = make_config(
        "bucket", sampling=0.3, bucket_lengths=(48,), max_length=48, batch_tokens=48
    )
    with open_batches(config, pairs) as batches:
        rows = {tuple(batch.inputs[0].tolist()) for batch in take(batches, 10)}
    assert len(rows) > 5


def test_the_filter_is_counted_once():
    pairs: Any = [
        ("5 6", "7 8"),
        ("", "7"),
        ("5", ""),
        ("5 " * 30, "7 " * 30),
        ("5 " * 20, "7"),
    ]
    with open_batches(make_config("pack", max_length_ratio=3), pairs) as batches:
        take(batches, 5)
        assert batches.epoch > 1
        assert batches.counts == FilterCounts(kept=1, too_long=1, too_uneven=1, empty=2)


def test_a_data_set_smaller_than_a_batch_comes_whole_each_epoch():
    pairs = make_pairs(5)
    config = make_config("bucket", batch_tokens=240)
    with open_batches(config, pairs) as batches:
        seen = Counter()
        for batch in take(batches, 10):
            seen += numbers(batch.targets)
    assert max(seen.values()) - min(seen.values()) <= 2


@each_batching
def test_nothing_left_to_train_on_is_an_error(batching):
    with (
        open_batches(make_config(batching), [("", "7"), ("5", "")]) as batches,
        pytest.raises(ValueError, match=r"None of the 2 training pairs.*empty=2"),
    ):
        next(batches)
    with pytest.raises(ValueError, match=r"holds no pairs.*train_split"):
        train_batches([], NUMBERS, make_config(batching))


@each_batching
def test_a_process_may_have_shares_that_lie_apart(batching):
    config = make_config(batching)
    pairs = make_pairs(60)
    with (
        open_batches(config, pairs, rows_multiple=4) as whole,
        open_batches(
            config, pairs, rows_multiple=4, shares=(0, 3), num_shares=4
        ) as outer,
    ):
        for _ in range(12):
            batch, ours = next(whole), next(outer)
            quarters = [np.split(array, 4) for array in batch]
            wanted = [np.concatenate([parts[0], parts[3]]) for parts in quarters]
            chex.assert_trees_all_equal(list(ours), wanted)


def test_rows_that_processes_cannot_share_are_an_error():
    with pytest.raises(ValueError, match=r"3.*2 equal shares"):
        train_batches(
            make_pairs(5),
            NUMBERS,
            make_config("pack"),
            rows_multiple=3,
            num_shares=2,
        )


def test_a_position_of_other_data_is_an_error():
    with open_batches(make_config("pack"), make_pairs(30)) as batches:
        state = batches.get_state()
    with (
        open_batches(make_config("pack"), make_pairs(31)) as batches,
        pytest.raises(ValueError, match=r"num_pairs 30.*31"),
    ):
        batches.set_state(state)
