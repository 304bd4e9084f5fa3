"""Models and tokenizers from runs on disk, alone or several that work together."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.config import SearchConfig
from transformer_jax.data.tokenizer import Tokenizer, load_tokenizer
from transformer_jax.models.transformer import Transformer
from transformer_jax.recipes import config_from_json
from transformer_jax.translation.ensembles import AnyModel, Ensemble
from transformer_jax.types import Params

READING = ("source_bos", "source_eos", "decoder_start")
"""Settings that say what a model is fed, in which all must agree."""


class Loaded(NamedTuple):
    """What translating needs of runs."""

    model: Any
    """A Transformer, or an Ensemble."""
    params: Params
    tokenizer: Tokenizer
    search: SearchConfig


def load_runs(
    runs: Sequence[str | Path], *, step: int | None, dtype: str | None
) -> Loaded:
    """One run, at `step` or by its best or latest checkpoint; or an ensemble of it and
    others, each by its best or latest, with the tokenizer and the settings of the
    first."""
    loaded = [_load_run(runs[0], step, dtype)]
    loaded += [_load_run(run, None, dtype) for run in runs[1:]]
    if len(runs) == 1:
        return loaded[0]
    models = tuple(each.model for each in loaded)
    check_same_vocabulary(runs, [each.tokenizer for each in loaded])
    check_fed_alike(runs, models)
    params = tuple(each.params for each in loaded)
    return loaded[0]._replace(model=Ensemble(models), params=params)


def _load_run(run: str | Path, step: int | None, dtype: str | None) -> Loaded:
    store = CheckpointStore(Path(run))
    step = store.chosen_step(step)
    config = config_from_json(store.config_json(step))
    tokenizer = load_tokenizer(store.tokenizer_files(step))
    sizes = config.model
    model_config = dataclasses.replace(
        sizes,
        source_vocab_size=sizes.source_vocab_size or tokenizer.source_vocab_size,
        target_vocab_size=sizes.target_vocab_size or tokenizer.target_vocab_size,
    )
    params = store.restore_params(step=step)
    if dtype is not None:
        model_config = dataclasses.replace(model_config, dtype=dtype)
        params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    return Loaded(Transformer(model_config), params, tokenizer, config.search)


def check_draft(
    model: AnyModel, tokenizer: Tokenizer, draft: AnyModel, its_tokenizer: Tokenizer
) -> None:
    """Raises a ValueError unless both read and write the same ids at all positions."""
    names = ("The model", "its draft")
    check_same_vocabulary(names, (tokenizer, its_tokenizer))
    check_fed_alike(names, (model, draft))
    needed, longest = (each.config.num_positions for each in (model, draft))
    if longest < needed:
        raise ValueError(
            f"The draft knows {longest} positions and the model {needed}: train a "
            "draft with as many, or with sinusoidal positions."
        )


def check_fed_alike(names: Sequence[object], models: Sequence[AnyModel]) -> None:
    """Raises where the first model reads special tokens that another does not."""
    for name, model in zip(names[1:], models[1:], strict=True):
        for setting in READING:
            ours, theirs = (getattr(m.config, setting) for m in (models[0], model))
            if ours != theirs:
                raise ValueError(
                    f"{names[0]} and {name} differ in {setting}, which is {ours!r} and "
                    f"{theirs!r}: models that work together must be fed alike."
                )


def check_same_vocabulary(
    runs: Sequence[object], tokenizers: Sequence[Tokenizer]
) -> None:
    """Raises where an id of the first tokenizer means something else in another."""
    for run, tokenizer in zip(runs[1:], tokenizers[1:], strict=True):
        both = zip(_meanings(tokenizers[0]), _meanings(tokenizer), strict=True)
        for (what, ours), (_, theirs) in both:
            if ours != theirs:
                raise ValueError(
                    f"{runs[0]} and {run} have different vocabularies: {what} is "
                    f"{ours!r} and {theirs!r}. Models that work together must "
                    "share one: train them with the same tokenizer."
                )


def _meanings(tokenizer: Tokenizer) -> Iterator[tuple[str, object]]:
    """What the ids mean: sizes and special ids first, then piece after piece."""
    sizes = ("source_vocab_size", "target_vocab_size")
    for name in (*sizes, "pad_id", "bos_id", "eos_id", "unk_id"):
        yield name, getattr(tokenizer, name)
    source, target = (range(getattr(tokenizer, size)) for size in sizes)
    for i, piece in enumerate(tokenizer.source_pieces(source)):
        yield f"source piece {i}", piece
    for i, piece in enumerate(tokenizer.target_pieces(target)):
        yield f"target piece {i}", piece
