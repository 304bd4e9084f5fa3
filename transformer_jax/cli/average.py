"""transformer-jax average: one set of parameters from several checkpoints of a run."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformer_jax.checkpoint import CheckpointStore

LAST = 5
"""Checkpoints averaged unless told otherwise, as for the paper's base model (section
6.1)."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Average the parameters of several checkpoints.

    Writes a run of its own with one checkpoint, which translate, score, evaluate and
    train --init-from take as any other; it has no optimizer state, so that a training
    cannot go on from it. Where a run keeps an exponential average (EMA) of its
    parameters, that is what is averaged.
    """

    checkpoint: Path
    """The run whose checkpoints are averaged: the workdir of a training."""
    output: Path
    """The run to write; must not be there yet."""
    last: int | None = None
    """Average the last N checkpoints. This is the default, with N = 5."""
    best: int | None = None
    """Average the N best checkpoints by the run's train.best_metric on the dev split,
    among those that were kept."""
    steps: tuple[int, ...] = ()
    """Average the checkpoints of these steps."""


def run(args: Args) -> int:
    """Writes the average and says what it is of."""
    from transformer_jax.checkpoint import (
        CheckpointStore,
        average_params,
        params_sha256,
    )

    given = [args.last is not None, args.best is not None, bool(args.steps)]
    if sum(given) > 1:
        raise ValueError("Give one of --last, --best and --steps.")
    if args.output.exists() and (
        not args.output.is_dir() or any(args.output.iterdir())
    ):
        raise ValueError(
            f"{args.output} exists already: give the name of a new folder as --output."
        )
    store = CheckpointStore(args.checkpoint)
    steps = chosen_steps(store, args)
    params = average_params(store.restore_params(step=step) for step in steps)
    listed = ", ".join(map(str, steps))
    last = max(steps)
    output = CheckpointStore(args.output)
    output.write_run(
        store.config_json(last), store.tokenizer_files(last), origin=store.origin()
    )
    note = f"average of steps {listed} of {args.checkpoint}"
    output.save(last, {"params": params}, note=note)
    print(f"{args.output}: {note}, params_sha256 {params_sha256(params)[:16]}…")
    return 0


def chosen_steps(store: "CheckpointStore", args: Args) -> list[int]:
    """The steps that the options name, in order."""
    if args.steps:
        return sorted({store.chosen_step(step) for step in args.steps})
    store.config_json()  # Not a run? Then say so first.
    wanted = next(n for n in (args.best, args.last, LAST) if n is not None)
    if wanted < 1:
        raise ValueError(f"{wanted} checkpoints cannot be averaged: ask for 1 or more.")
    if args.best is None:
        ranked, kind = store.steps()[::-1], "checkpoints"
    else:
        metric, ranked = by_metric(store)
        kind = f"checkpoints with a dev {metric}"
    if len(ranked) < wanted:
        raise ValueError(
            f"{store.workdir} has {len(ranked)} {kind}, and {wanted} were to be "
            f"averaged: ask for {len(ranked)} or fewer, or train with a higher "
            "train.keep_checkpoints."
        )
    return sorted(ranked[:wanted])


def by_metric(store: "CheckpointStore") -> tuple[str, list[int]]:
    """The metric that chooses the run's best checkpoint, and its steps, best first."""
    from transformer_jax.recipes import config_from_json
    from transformer_jax.trainer.dev import LOWER_IS_BETTER

    metric = config_from_json(store.config_json()).train.best_metric
    values = {step: store.metrics(step).get(metric) for step in store.steps()}
    scored = {step: value for step, value in values.items() if value is not None}
    sign = 1 if LOWER_IS_BETTER[metric] else -1
    return metric, sorted(scored, key=lambda step: (sign * scored[step], -step))
