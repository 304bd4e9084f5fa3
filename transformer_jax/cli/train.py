"""transformer-jax train: a recipe, settings on top of it, and a folder for the run."""

import argparse
import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from transformer_jax.allocation import keep_freed_memory
from transformer_jax.config import Config
from transformer_jax.recipes import find_recipe, load_recipe, recipe_names


@dataclasses.dataclass(frozen=True)
class Processes:
    """Where several processes train together and no launcher (SLURM, Open MPI,
    Kubernetes, TPU slice) says so: the same to all, but for the index."""

    coordinator: str | None = None
    """HOST:PORT of process 0, free and within reach of all, or
    JAX_COORDINATOR_ADDRESS."""
    count: int | None = None
    """Processes, or JAX_NUM_PROCESSES; 1 trains alone under any launcher."""
    index: int | None = None
    """Which one this is, from 0, or JAX_PROCESS_ID."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Train a model, or go on with a training that was stopped.

    The recipe gives the settings, and every option below overrides one of them. With
    the same command again, a run that was stopped goes on from its last checkpoint.
    """

    config: str
    """Recipe: a name, or the path of a Python file with get_config()."""
    settings: Annotated[Config, tyro.conf.arg(name="")]
    workdir: Path | None = None
    """Folder of the run: checkpoints, tokenizer, logs. Default: runs/<recipe>."""
    init_from: Path | None = None
    """Another run: a new run starts with its weights, model settings and tokenizer."""
    processes: Processes = Processes()


def parse(argv: Sequence[str], *, prog: str = "transformer-jax train") -> Args:
    """The recipe that --config names, with the other options on top of it."""
    first = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    name = first.parse_known_args(argv)[0].config
    default = Args(
        config=tyro.MISSING if name is None else name,
        settings=Config() if name is None else load_recipe(name),
    )
    names = ", ".join(recipe_names())
    description = f"{inspect.getdoc(Args)}\n\nRecipes: {names}."
    return tyro.cli(
        Args, prog=prog, args=list(argv), default=default, description=description
    )


def run(args: Args) -> int:
    """Trains; 128 + the signal's number when a signal stopped it."""
    if args.settings.data.batching == "pack":
        keep_freed_memory()
    from transformer_jax.processes import join_processes
    from transformer_jax.trainer.loop import train

    join_processes(**dataclasses.asdict(args.processes))
    workdir = args.workdir or Path("runs") / find_recipe(args.config).stem
    return train(args.settings, workdir, init_from=args.init_from).exit_code
