"""The first example of every Transformer tutorial, from text to text."""

import dataclasses
import os
import subprocess
import sys

from transformer_jax.data.sources import open_split
from transformer_jax.recipes import load_recipe
from transformer_jax.translation.translator import Translator


def test_the_copy_task_is_learnt(tmp_path):
    command = [sys.executable, "-m", "transformer_jax", "train", "--config"]
    command += ["copy_task", "--workdir", str(tmp_path)]
    # In programs as a user has them: running these takes longer than compiling them.
    quick = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {k: v for k, v in os.environ.items() if k not in quick}
    subprocess.run(
        [*command, "--train.evaluate-every=300"], env=environment, check=True
    )
    config = load_recipe("copy_task")
    test = open_split(config.data, "test", workdir=tmp_path)
    pairs = [test[index] for index in range(200)]
    translator = Translator.load(tmp_path)
    greedy = dataclasses.replace(config.search, method="greedy")
    found = translator.translate([pair.source for pair in pairs], search=greedy)
    right = [t.text == pair.target for t, pair in zip(found, pairs, strict=True)]
    assert sum(right) / len(right) >= 0.98
