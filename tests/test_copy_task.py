"""The copy task: what goes in comes out, and no string comes twice."""

import sys
from typing import Any

from transformer_jax.data.builders.copy_task import (
    MAX_LENGTH,
    MIN_LENGTH,
    SPLIT_SIZES,
    TOKENS,
    CopyTask,
    copy_task_lines,
)


def test_splits_have_their_sizes_and_share_nothing():
    lines = copy_task_lines()
    assert {split: len(found) for split, found in lines.items()} == SPLIT_SIZES
    everything = [line for found in lines.values() for line in found]
    assert len(set(everything)) == len(everything)


def test_strings_are_tokens_of_every_length():
    lengths, tokens = set(), set()
    for line in copy_task_lines()["train"]:
        lengths.add(len(line.split()))
        tokens.update(line.split())
    assert lengths == set(range(MIN_LENGTH, MAX_LENGTH + 1))
    assert tokens == set(TOKENS)


def test_the_seed_decides():
    assert copy_task_lines(1) == copy_task_lines(1)
    assert copy_task_lines(1) != copy_task_lines(2)


def test_the_builder_writes_equal_sides_and_reads_them_back(tmp_path):
    builder: Any = CopyTask(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    for split, lines in copy_task_lines().items():
        records = builder.as_data_source(split)
        assert len(records) == len(lines)
        for index in range(0, len(lines), 99):
            record = records[index]
            assert record["source"] == record["target"] == lines[index].encode()
    assert "tensorflow" not in sys.modules
