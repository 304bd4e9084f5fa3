"""transformer-jax export: a run's weights as another library's model."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

Library = Literal[
    "marian",
    "ctranslate2",
    "torch",
    "annotated",
    "fairseq",
    "opennmt",
    "sockeye",
    "joeynmt",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Write a run's weights as another library's model, with its tokenizer.

    What the other library cannot express exactly is refused, with the list of what
    differs.

    CTranslate2 has no format that others write: `--to ctranslate2` makes a Marian
    folder for its own ct2-transformers-converter, which takes more for granted than
    Marian does.
    """

    checkpoint: Path
    """The run to export: the workdir of a training, or the output of import."""
    kind: Annotated[Library, tyro.conf.arg(name="to")]
    """The library that shall load it."""
    output: Path
    """The folder to write; must not be there yet."""
    step: int | None = None
    """Checkpoint to load. Default: the best one if one was chosen, else the latest."""


def run(args: Args) -> int:
    """Writes the folder and says what is in it."""
    from transformer_jax.interop.library import export_run

    export_run(args.kind, args.checkpoint, args.output, step=args.step)
    files = ", ".join(sorted(path.name for path in args.output.iterdir()))
    print(f"{args.output}: {files}")
    return 0
