"""transformer-jax score: how likely a model finds given translations."""

import dataclasses
import sys
from pathlib import Path

from transformer_jax.cli.lines import (
    check_at_least_one,
    check_output,
    json_line,
    lines_bar,
    output_to,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Log-probabilities of given translations, as one JSON object a line.

    Keys: log_probability (natural, summed over the target's tokens, end included),
    tokens (its pieces, end included), token_log_probabilities (of each piece). Line n
    of the source goes with line n of the target. No line is cut or left out.
    """

    checkpoint: Path
    """The run to load: the workdir of a training."""
    source: Path
    """Source sentences, one a line, plain or gzip."""
    target: Path
    """Their translations, one a line, plain or gzip."""
    output: Path | None = None
    """File for the scores; it appears when all is done. Default: stdout."""
    step: int | None = None
    """Checkpoint to load. Default: the best one if one was chosen, else the latest."""
    batch_tokens: int = 4096
    """Target pieces scored together, padding counted."""
    progress: bool = True
    """A progress bar on stderr."""


def run(args: Args) -> int:
    """Scores each pair of lines."""
    from transformer_jax.data.text import read_pairs
    from transformer_jax.translation.scoring import score_pairs
    from transformer_jax.translation.translator import Translator

    check_at_least_one(batch_tokens=args.batch_tokens)
    check_output(args.output, read=(args.source, args.target))
    sources, targets = read_pairs([args.source], [args.target])
    translator = Translator.load(args.checkpoint, step=args.step)
    # A bar between lines of output on the same screen helps nobody.
    shown = args.progress and (args.output is not None or not sys.stdout.isatty())
    with (
        output_to(args.output) as out,
        lines_bar(len(sources), shown=shown) as bar,
    ):
        scores = score_pairs(
            translator.model,
            translator.params,
            translator.tokenizer,
            list(zip(sources, targets, strict=True)),
            batch_tokens=args.batch_tokens,
            progress=bar.update,
        )
        for score in scores:
            print(json_line(dataclasses.asdict(score)), file=out)
    return 0
