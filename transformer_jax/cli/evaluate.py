"""transformer-jax evaluate: BLEU, chrF and TER of a run, or of a file."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from transformer_jax.cli.lines import (
    check_at_least_one,
    check_output,
    json_line,
    lines_bar,
    one_line,
    output_to,
)
from transformer_jax.cli.searching import AS_TRAINED, SearchOptions, chosen_search


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """BLEU, chrF and TER by sacreBLEU, with signatures, as one JSON object.

    Either a run translates the source, or the translations are given as a file. Keys:
    bleu, bleu_signature, chrf, chrf_signature, ter, ter_signature, sentences.
    """

    reference: Path
    """Reference translations, one a line, plain or gzip."""
    checkpoint: Path | None = None
    """The run to evaluate: the workdir of a training."""
    source: Path | None = None
    """What the run translates, one sentence a line, plain or gzip."""
    hypothesis: Path | None = None
    """Translations to evaluate, in place of a run and a source."""
    output: Path | None = None
    """File for the run's translations. Default: they are not kept."""
    step: int | None = None
    """Checkpoint to load. Default: the best one if one was chosen, else the latest."""
    search: Annotated[SearchOptions, tyro.conf.arg(name="")] = AS_TRAINED
    lowercase: bool = False
    """Ignore case in BLEU and chrF; TER always does."""
    tokenize: Literal["13a", "none", "char", "zh", "intl", "ja-mecab", "ko-mecab"] = (
        "13a"
    )
    """BLEU's tokenizer; none for text that is tokenised already."""
    batch_tokens: int | None = None
    """Source pieces translated together, padding and beams counted."""
    progress: bool = True
    """A progress bar on stderr."""


def run(args: Args) -> int:
    """Prints the metrics."""
    from transformer_jax.data.text import read_pairs
    from transformer_jax.translation.evaluation import (
        check_tokenizer,
        evaluate_translation,
    )

    check_tokenizer(args.tokenize)
    check_at_least_one(batch_tokens=args.batch_tokens)
    check_output(args.output, read=(args.source, args.reference))
    if (args.hypothesis is None) == (args.checkpoint is None):
        raise ValueError("Give either --checkpoint with --source, or --hypothesis.")
    if args.hypothesis is not None:
        _refuse_options_of_a_run(args)
        hypotheses, references = read_pairs([args.hypothesis], [args.reference])
    elif args.source is not None:
        sources, references = read_pairs([args.source], [args.reference])
        hypotheses = _translations(args, sources)
    else:
        raise ValueError("--source is missing: it says what the run translates.")
    scores = evaluate_translation(
        hypotheses, references, lowercase=args.lowercase, tokenize=args.tokenize
    )
    print(json_line({**scores, "sentences": len(references)}))
    return 0


def _refuse_options_of_a_run(args: Args) -> None:
    """Options that would do nothing are mistakes."""
    given = {"source": args.source, "output": args.output, "step": args.step}
    names = [f"--{name}" for name, value in given.items() if value is not None]
    if names or args.search != AS_TRAINED:
        raise ValueError(
            f"{', '.join(names) or 'A search option'} goes with --checkpoint: with "
            "--hypothesis nothing is translated. Leave out the one or the other."
        )


def _translations(args: Args, sources: list[str]) -> list[str]:
    from transformer_jax.translation.translator import BATCH_TOKENS, Translator

    translator = Translator.load(args.checkpoint or "", step=args.step)
    search = chosen_search(translator.search, args.search)
    with lines_bar(len(sources), shown=args.progress) as bar:
        found = translator.translate(
            sources,
            search=search,
            batch_tokens=args.batch_tokens or BATCH_TOKENS,
            progress=bar.update,
            scores=False,
        )
    texts = [one_line(translation.text) for translation in found]
    if args.output is not None:
        with output_to(args.output) as out:
            out.writelines(text + "\n" for text in texts)
    return texts
