"""From a config and a folder to what a run works with: data, tokenizer, sizes."""

import dataclasses
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from transformer_jax.checkpoint import CheckpointStore
from transformer_jax.config import Config
from transformer_jax.data.examples import check_positions, make_example
from transformer_jax.data.sources import Pair, PairSource, open_split
from transformer_jax.data.tokenizer import (
    Tokenizer,
    load_tokenizer,
    train_sentencepiece,
)
from transformer_jax.processes import from_main, main_process_first
from transformer_jax.recipes import (
    changed_settings,
    check_same_run,
    config_from_json,
)
from transformer_jax.translation.evaluation import check_tokenizer
from transformer_jax.trees import params_sha256

Say = Callable[[str], None]


class Prepared(NamedTuple):
    """A run's settings with every size known, its tokenizer and its data."""

    config: Config
    tokenizer: Tokenizer
    train_pairs: PairSource
    dev_pairs: list[Pair]


def stored_config(store: CheckpointStore) -> Config | None:
    """The settings of the run in this folder, if there is one.

    One that was stopped before its first checkpoint has nothing to go on from: it gives
    way to a new run.
    """
    return config_from_json(store.config_json()) if store.steps() else None


def settle_config(
    config: Config, store: CheckpointStore, init_from: CheckpointStore | None
) -> Config:
    """`config` as this run uses it, checked against the run that is there already.

    A run that began with `init_from` keeps the model and the tokenizer it took then.
    """
    old = stored_config(store)
    if old is None:
        if init_from is None:
            return config
        origin = config_from_json(init_from.config_json())
        return dataclasses.replace(
            config, model=origin.model, tokenizer=origin.tokenizer
        )
    if init_from is not None:
        _check_origin(store, init_from)
        config = dataclasses.replace(config, model=old.model, tokenizer=old.tokenizer)
    sizes = (old.model.source_vocab_size, old.model.target_vocab_size)
    config = with_vocabulary(config, *sizes)
    check_same_run(old, config, store.workdir)
    return config


def _check_origin(store: CheckpointStore, init_from: CheckpointStore) -> None:
    """A run that is there already must have begun with the same --init-from."""
    noted = store.origin()
    if noted is None or "run" not in noted:
        raise ValueError(
            f"{store.workdir} holds a run that did not start from another one: "
            "--init-from comes too late for it. Leave it out to go on with that "
            "run, or give another --workdir."
        )
    same_place = Path(noted["run"]).resolve() == init_from.workdir.resolve()
    if (
        same_place
        or params_sha256(init_from.restore_params()) == noted["params_sha256"]
    ):
        return
    raise ValueError(
        f"{store.workdir} holds a run that started from {noted['run']}, and "
        f"--init-from is {init_from.workdir}, which has other weights. Give "
        f"{noted['run']} to go on with that run, or another --workdir to start anew."
    )


def with_vocabulary(config: Config, source_size: int, target_size: int) -> Config:
    """Fills in the vocabulary sizes that the recipe leaves to the tokenizer.

    >>> with_vocabulary(Config(), 90, 90).model.target_vocab_size
    90
    """
    model = config.model
    for side, rows, pieces in (
        ("source", model.source_vocab_size, source_size),
        ("target", model.target_vocab_size, target_size),
    ):
        if 0 < rows < pieces:
            raise ValueError(
                f"model.{side}_vocab_size is {rows}, but the tokenizer has {pieces} "
                f"pieces: raise it, or leave it out to take the tokenizer's size."
            )
    model = dataclasses.replace(
        model,
        source_vocab_size=model.source_vocab_size or source_size,
        target_vocab_size=model.target_vocab_size or target_size,
    )
    if model.source_is_target_table and (
        model.source_vocab_size != model.target_vocab_size
    ):
        raise ValueError(
            f"model.tied_embeddings is {model.tied_embeddings!r}, but the source has "
            f"{model.source_vocab_size} pieces and the target "
            f"{model.target_vocab_size}: one table needs one vocabulary."
        )
    return dataclasses.replace(config, model=model)


def prepare(
    config: Config,
    store: CheckpointStore,
    *,
    init_from: CheckpointStore | None = None,
    say: Say = print,
) -> Prepared:
    """Opens the data, trains or loads the tokenizer, and settles every size.

    `config` comes from `settle_config`.
    """
    check_row_lengths(config)
    if config.data.dev_split:
        check_tokenizer(config.evaluation.tokenize)
    say(f"data         {config.data.name}: opening {config.data.train_split}")
    with main_process_first("data"):
        train_pairs = open_split(
            config.data, config.data.train_split, workdir=store.workdir
        )
    dev_pairs = []
    if config.data.dev_split:
        dev = open_split(config.data, config.data.dev_split, workdir=store.workdir)
        dev_pairs = [dev[index] for index in range(len(dev))]
    if store.steps():
        tokenizer = load_tokenizer(store.tokenizer_files())
    elif init_from is not None:
        tokenizer = load_tokenizer(init_from.tokenizer_files())
    else:
        tokenizer = new_tokenizer(config, train_pairs, say)
    config = with_vocabulary(
        config, tokenizer.source_vocab_size, tokenizer.target_vocab_size
    )
    check_dev_lengths(config, tokenizer, dev_pairs)
    return Prepared(config, tokenizer, train_pairs, dev_pairs)


def check_row_lengths(config: Config) -> None:
    """A learned position table must be as long as the rows it is used on."""
    data, model = config.data, config.model
    longest = data.pack_length if data.batching == "pack" else max(data.bucket_lengths)
    if longest > model.num_positions:
        raise ValueError(
            f"Rows have {longest} positions, but the learned table has "
            f"{model.num_positions}: raise model.max_positions, or shorten the rows "
            "(data.pack_length, data.bucket_lengths)."
        )


def check_dev_lengths(config: Config, tokenizer: Tokenizer, pairs: list[Pair]) -> None:
    """A learned position table must hold every dev sentence: none is left out."""
    if config.model.positions != "learned":
        return
    for number, pair in enumerate(pairs, start=1):
        example = make_example(pair, tokenizer, config.model)
        name = f"Pair {number} of {config.data.dev_split}"
        check_positions(example, config.model, name=name)


def new_tokenizer(config: Config, pairs: PairSource, say: Say) -> Tokenizer:
    """SentencePiece, trained on the training split: once, for all processes."""
    settings, places = config.tokenizer, range(len(pairs))
    say(
        f"{'tokenizer':<13}training {settings.algorithm} with "
        f"{settings.vocab_size:,} pieces"
    )

    def files() -> bytes:
        made = train_sentencepiece(
            settings,
            (pairs[place].source for place in places),
            (pairs[place].target for place in places),
            seed=config.seed,
        )
        return pickle.dumps(made.files())

    return load_tokenizer(pickle.loads(from_main(files)))


def replaced_model_settings(asked: Config, used: Config) -> Mapping[str, object]:
    """Model and tokenizer settings that `--init-from` took from the other run."""
    return {
        change.name: change.new
        for change in changed_settings(asked, used)
        if change.name.startswith(("model.", "tokenizer."))
        and not change.name.endswith("vocab_size")
    }
