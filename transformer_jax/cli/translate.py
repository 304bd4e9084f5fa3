"""transformer-jax translate: lines of text in, as many lines out."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tqdm
import tyro

from transformer_jax.cli.lines import (
    Chunk,
    check_at_least_one,
    check_output,
    check_readable,
    count_lines,
    file_chunks,
    json_line,
    lines_bar,
    one_line,
    output_to,
    stdin_chunks,
    with_lines_of,
)
from transformer_jax.cli.searching import AS_TRAINED, SearchOptions, chosen_search

if TYPE_CHECKING:
    from transformer_jax.translation.hypotheses import Hypothesis, Translation
    from transformer_jax.translation.translator import Translator


logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Translate lines of text, one sentence a line.

    As many lines come out as go in, in order: empty ones stay empty, and of those with
    more than 1024 pieces (or as many as a model with learned positions knows) only the
    beginning is translated, with a warning. Lines end at \\n or \\r\\n and nowhere
    else; bytes that are not UTF-8 are replaced, with a warning. Lines that come through
    a pipe or a terminal are answered as soon as it pauses.
    """

    checkpoint: Path
    """The run to load: the workdir of a training."""
    step: int | None = None
    """Checkpoint to load. Default: the best one if one was chosen, else the latest."""
    ensemble: tuple[Path, ...] = ()
    """Other runs, of any size but with the same vocabulary, that translate together
    with it, by the mean of their probabilities: each by its best checkpoint, or its
    latest."""
    input: Path | None = None
    """Text to translate, plain or gzip. Default: stdin."""
    target_prefix: Path | None = None
    """What the translations begin with: one line for each line of input, empty where a
    translation is free; plain or gzip."""
    require: Path | None = None
    """Words and phrases that the translations hold: one line for each line of input,
    with tabs between phrases, empty where nothing is asked; plain or gzip. By beam
    search."""
    output: Path | None = None
    """File for the translations; it appears when all is done. Default: stdout."""
    n_best: int | None = None
    """Translations for each line; of sampling, as many are drawn. Default: as the run's
    recipe says, usually one. With more than one, lines are "number ||| translation |||
    score", numbered from 0, unless --json is given."""
    json: bool = False
    """One object a line: translation, score (log-probability over length penalty; of
    --mbr, the mean likeness), log_probability (natural, end token included), tokens
    (pieces, end included), token_log_probabilities (of each piece); with --align also
    alignment; with --n-best also hypotheses, a list of such objects."""
    align: bool = False
    """Add " ||| 0-0 1-2" to each line: numbers from 0 of a source word and the word of
    the translation that attends to it most. With --json: alignment, a list of pairs."""
    align_layer: int | None = None
    """Decoder layer whose attention --align uses, from 0, or from the last: -1, -2.
    Default: the mean of all."""
    align_pieces: bool = False
    """Number the tokenizer's pieces in place of words."""
    shortlist: Path | None = None
    """File of `transformer-jax shortlist`: each line may use only the pieces that it
    names for the line's own. Faster with large vocabularies."""
    search: Annotated[SearchOptions, tyro.conf.arg(name="")] = AS_TRAINED
    draft: Path | None = None
    """The run of a smaller model with the same vocabulary, which guesses for --block.
    Default: the guesses come from the model itself."""
    batch_tokens: int | None = None
    """Source pieces that a device searches side by side, padding and beams counted."""
    batch_size: int | None = None
    """Lines that a device searches side by side, at most; a CPU takes no more than are
    fast, 150 beams in all. Default: as --batch-tokens says."""
    devices: int | None = None
    """Devices that work side by side; of a CPU, searches. Default: all; of a CPU, one
    for each core, up to eight."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Numbers that weights and caches are held in. bfloat16 is smaller and, on hardware
    that multiplies it, faster; some translations change. Default: as trained."""
    progress: bool = True
    """A progress bar on stderr, when --input is given."""


def run(args: Args) -> int:
    """Translates; warns on stderr."""
    check_at_least_one(
        n_best=args.n_best,
        batch_tokens=args.batch_tokens,
        batch_size=args.batch_size,
        devices=args.devices,
    )
    if args.input is not None:
        check_readable(args.input)
    beside = args.target_prefix, args.require
    for path in beside:
        if path is not None:
            check_readable(path)
    read = (args.input or Path("/dev/stdin"), *beside)
    check_output(args.output, read=read)
    from transformer_jax.translation.phrases import check_method
    from transformer_jax.translation.shortlist import Shortlist
    from transformer_jax.translation.translator import BATCH_TOKENS

    translator = _load(args)
    search = chosen_search(translator.search, args.search, n_best=args.n_best)
    if args.require is not None:
        check_method(search)
    aligned, shortlist = _aligner(args, translator), None
    if args.shortlist is not None:
        shortlist = Shortlist.load(args.shortlist)
        shortlist.check_fits(translator.tokenizer)
    several = search.n_best > 1
    done, damaged = 0, []
    with output_to(args.output) as out, _bar(args) as bar:
        for chunk, (prefixes, required) in with_lines_of(_chunks(args), *beside):
            translations = translator.translate(
                chunk.lines,
                search=search,
                batch_tokens=args.batch_tokens or BATCH_TOKENS,
                batch_size=args.batch_size,
                shortlist=shortlist,
                progress=bar.update,
                first_line=done + 1,
                prefixes=prefixes,
                phrases=required and [line.split("\t") for line in required],
                scores=args.json or several,
            )
            for place, translation in enumerate(aligned(chunk.lines, translations)):
                lines = output_lines(
                    translation, done + place, as_json=args.json, several=several
                )
                out.writelines(f"{line}\n" for line in lines)
            out.flush()
            damaged += [done + place + 1 for place in chunk.damaged]
            done += len(chunk.lines)
    _warn_of_damaged(damaged, done)
    return 0


def _warn_of_damaged(damaged: Sequence[int], count: int) -> None:
    """Says how many lines of `count` were."""
    if damaged:
        logger.warning(
            "%d of %d lines held bytes that are not UTF-8, which were replaced by "
            "U+FFFD. The first is line %d.",
            len(damaged),
            count,
            damaged[0],
        )


def _load(args: Args) -> "Translator":
    from transformer_jax.parallel import devices_side_by_side
    from transformer_jax.translation.translator import Translator

    devices = devices_side_by_side(args.devices)  # before jax is used
    draft = Translator.load(args.draft, dtype=args.dtype) if args.draft else None
    return Translator.load(
        args.checkpoint,
        step=args.step,
        ensemble=args.ensemble,
        devices=devices,
        dtype=args.dtype,
        draft=draft,
    )


def output_lines(
    translation: "Translation", number: int, *, as_json: bool, several: bool
) -> Iterator[str]:
    """What is written for line `number` of the input, counted from 0."""
    if as_json:
        value = to_json(translation)
        if translation.truncated:
            value["truncated"] = True
        if translation.missing:
            value["missing_phrases"] = list(translation.missing)
        if several:
            value["hypotheses"] = [to_json(each) for each in translation.hypotheses]
        yield json_line(value)
    elif several:
        for each in translation.hypotheses:
            score = f"{each.score:.6f}"
            yield " ||| ".join([str(number), one_line(each.text), score, *_links(each)])
    else:
        yield " ||| ".join([one_line(translation.text), *_links(translation)])


def to_json(hypothesis: "Hypothesis") -> dict[str, Any]:
    """What `--json` tells of a hypothesis."""
    value = {
        "translation": hypothesis.text,
        "score": hypothesis.score,
        "log_probability": hypothesis.log_probability,
        "tokens": list(hypothesis.tokens),
        "token_log_probabilities": list(hypothesis.token_log_probabilities),
    }
    if hypothesis.alignment is not None:
        value["alignment"] = [list(link) for link in hypothesis.alignment]
    return value


def _links(hypothesis: "Hypothesis") -> list[str]:
    """The column of `--align`, if it was asked for."""
    if hypothesis.alignment is None:
        return []
    return [" ".join(f"{source}-{target}" for source, target in hypothesis.alignment)]


def _aligner(args: Args, translator: "Translator") -> Callable[..., Any]:
    """Lines and their translations → these translations, aligned if asked for."""
    if not args.align:
        if args.align_layer is not None or args.align_pieces:
            raise ValueError(
                "--align-layer and --align-pieces say how to align: give --align too."
            )
        return lambda lines, translations: translations
    if args.ensemble:
        raise ValueError(
            "--align reads the attention of one model, and --ensemble gives several: "
            "leave out one of them."
        )
    from transformer_jax.translation.alignment import align, checked_layer
    from transformer_jax.translation.translator import BATCH_TOKENS

    checked_layer(args.align_layer, translator.model.config.num_decoder_layers)
    return functools.partial(
        align,
        translator,
        layer=args.align_layer,
        pieces=args.align_pieces,
        batch_tokens=args.batch_tokens or BATCH_TOKENS,
    )


def _chunks(args: Args) -> Iterator[Chunk]:
    return stdin_chunks() if args.input is None else file_chunks(args.input)


def _bar(args: Args) -> AbstractContextManager[tqdm.tqdm]:
    shown = args.input is not None and args.progress
    total = None
    if args.input is not None and shown and args.input.is_file():
        total = count_lines(args.input)
    return lines_bar(total, shown=shown)
