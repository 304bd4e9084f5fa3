"""transformer-jax shortlist: which target pieces each source piece may become."""

import dataclasses
from pathlib import Path

import tqdm

from transformer_jax.cli.lines import check_at_least_one, check_output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Learn from parallel text which target pieces each source piece may become.

    Writes a file for `translate --shortlist`, with which the model chooses each word
    among the candidates of the line's own pieces and the most frequent pieces, in place
    of all. Candidates are the likeliest by IBM model 1, and the target piece of the
    same spelling. The text should be what the run was trained on.
    """

    checkpoint: Path
    """The run whose tokenizer splits the text: the workdir of a training."""
    source: tuple[Path, ...]
    """Source sentences, one a line, plain or gzip."""
    target: tuple[Path, ...]
    """Their translations, one a line, plain or gzip."""
    output: Path | None = None
    """File for the shortlist. Default: shortlist.npz in the run's folder."""
    best: int = 50
    """Candidates of each source piece, at most."""
    frequent: int = 100
    """Most frequent target pieces, which every line may use."""
    passes: int = 5
    """Passes of expectation maximisation over the text."""
    progress: bool = True
    """A progress bar on stderr."""


def run(args: Args) -> int:
    """Learns, writes the file and says where it is."""
    from transformer_jax.checkpoint import CheckpointStore
    from transformer_jax.data.text import stream_pairs
    from transformer_jax.data.tokenizer import load_tokenizer
    from transformer_jax.translation.shortlist import Texts, build_shortlist

    check_at_least_one(best=args.best, frequent=args.frequent, passes=args.passes)
    output = args.output or args.checkpoint / "shortlist.npz"
    tokenizer = load_tokenizer(CheckpointStore(args.checkpoint).tokenizer_files())
    check_output(output, read=(*args.source, *args.target))
    pairs = stream_pairs(args.source, args.target)
    texts = Texts.of(
        (tokenizer.encode_source(source), tokenizer.encode_target(target))
        for source, target in tqdm.tqdm(pairs, unit=" lines", disable=not args.progress)
    )
    shortlist = build_shortlist(
        texts,
        tokenizer,
        best=args.best,
        frequent=args.frequent,
        passes=args.passes,
    )
    shortlist.save(output)
    print(f"wrote {output}: from {len(texts.source_lengths)} pairs of lines")
    return 0
