"""The first example of every Transformer tutorial, from text to text."""

import dataclasses
from pathlib import Path

from transformer_jax.data.sources import open_split
from transformer_jax.recipes import load_recipe
from transformer_jax.trainer.loop import train
from transformer_jax.translation.translator import Translator


def test_the_copy_task_is_learnt(tmp_path: Path):
    config = load_recipe("copy_task")
    config = dataclasses.replace(
        config, parallel=dataclasses.replace(config.parallel, data=1)
    )
    train(config, tmp_path)
    split = open_split(config.data, config.data.dev_split, workdir=tmp_path)
    pairs = [split[index] for index in range(min(len(split), 200))]
    translator = Translator.load(tmp_path)
    greedy = dataclasses.replace(config.search, method="greedy")
    found = translator.translate([pair.source for pair in pairs], search=greedy)
    right = [t.text == pair.target for t, pair in zip(found, pairs, strict=True)]
    assert sum(right) / len(right) >= 0.98
