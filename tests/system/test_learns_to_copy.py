"""The first example of every Transformer tutorial, from text to text."""

import dataclasses
import functools

import jax
import pytest

from transformer_jax import parallel
from transformer_jax.data.sources import open_split
from transformer_jax.recipes import load_recipe
from transformer_jax.trainer.loop import train
from transformer_jax.translation.translator import Translator


@pytest.fixture
def optimised():
    """A real training: here what is compiled takes longer than compiling it."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def test_the_copy_task_is_learnt(tmp_path, monkeypatch, optimised):
    one_device = functools.partial(parallel.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(parallel, "make_mesh", one_device)
    config = load_recipe("copy_task")
    once = dataclasses.replace(config.train, evaluate_every=config.train.steps)
    train(dataclasses.replace(config, train=once), tmp_path)
    test = open_split(config.data, "test", workdir=tmp_path)
    pairs = [test[index] for index in range(200)]
    translator = Translator.load(tmp_path)
    greedy = dataclasses.replace(config.search, method="greedy")
    found = translator.translate([pair.source for pair in pairs], search=greedy)
    right = [t.text == pair.target for t, pair in zip(found, pairs, strict=True)]
    assert sum(right) / len(right) >= 0.98
