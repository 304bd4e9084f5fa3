"""transformer-jax compare: two implementations layer by layer."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transformer_jax.cli.lines import file_chunks, json_line

if TYPE_CHECKING:
    from transformer_jax.analysis.compare import Difference, Ids
    from transformer_jax.translation.translator import Translator

IDS = ("inputs", "decoder_inputs")
"""Names of the token ids in a file of activations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Compare what two models compute, layer by layer, on the same token ids.

    The other model is a run (--other), or what another library computed
    (--activations): a safetensors file with the ids as inputs [B, S] and
    decoder_inputs [B, T], and any of source_embedding, encoder_layer_0 …,
    encoder_final, target_embedding, decoder_layer_0 …, decoder_final [B, S or T, D]
    and logits [B, T, V]. Padding is left out. Ends with 0 if all agree, else with 1.
    """

    checkpoint: Path
    """The run to load: the workdir of a training."""
    other: Path | None = None
    """A second run; it reads the ids that the first one's tokenizer makes."""
    activations: Path | None = None
    """What another library computed, instead of a second run."""
    write: Path | None = None
    """A file to be written with the first run's activations, in that format."""
    source: Path | None = None
    """Source sentences, one a line, plain or gzip."""
    target: Path | None = None
    """Their translations, one a line."""
    input: Path | None = None
    """Source sentences whose translations the first run makes itself."""
    lines: int = 16
    """How many lines are compared, from the first one."""
    tolerance: float = 1e-4
    """The largest absolute difference that counts as agreement."""
    step: int | None = None
    """Checkpoint of the first run. Default: the best one if one was chosen, else the
    latest."""
    json: bool = False
    """Write one JSON object."""


def run(args: Args) -> int:
    """Prints each place with its difference, and the first that is too large."""
    from transformer_jax.analysis.compare import activations, differences, first_beyond
    from transformer_jax.interop.files import write_tensors
    from transformer_jax.translation.translator import Translator

    _check(args)
    first = Translator.load(args.checkpoint, step=args.step)
    ids, theirs = _ids_and_theirs(args, first)
    ours = activations(first.model.config, first.params, ids)
    if args.write:
        numbers = {name: getattr(ids, name) for name in IDS}
        write_tensors(args.write, {**numbers, **ours})
        print(f"wrote {args.write}", file=sys.stderr)
    if args.other:
        other = Translator.load(args.other)
        theirs = activations(other.model.config, other.params, ids)
    if not (args.other or args.activations):
        return 0
    lacking = sorted(ours.keys() ^ theirs.keys()) if args.other else []
    _check_places(set(ours), set(theirs), lacking)
    found = differences(ours, theirs, ids)
    place = first_beyond(found, args.tolerance)
    agree = place is None and not lacking
    facts = {
        "agree": agree,
        "tolerance": args.tolerance,
        "first": place,
        "lacking": lacking,
        "places": [each._asdict() for each in found],
    }
    print(json_line(facts) if args.json else in_words(found, facts))
    return 0 if agree else 1


def in_words(found: "list[Difference]", facts: dict) -> str:
    """A line for each place, then the verdict."""
    width = max(len(each.place) for each in found)
    text = [f"{'place':<{width}}  max abs   max rel"]
    text += [f"{d.place:<{width}}  {d.max_abs:.1e}   {d.max_rel:.1e}" for d in found]
    if facts["lacking"]:
        text.append(
            f"the two differ: only one of them has {', '.join(facts['lacking'])}"
        )
    if facts["first"] is None:
        which = "the places of both" if facts["lacking"] else "all of these"
        text.append(f"{which} agree within {facts['tolerance']:g}")
    else:
        text.append(
            f"first to differ by more than {facts['tolerance']:g}: {facts['first']}"
        )
    return "\n".join(text)


def _check(args: Args) -> None:
    if args.other and args.activations:
        raise ValueError("--other and --activations are both given: choose one.")
    if not (args.other or args.activations or args.write):
        raise ValueError(
            "There is nothing to compare with: give --other RUN or --activations FILE "
            "(or --write FILE)."
        )
    sentences = (args.source, args.target, args.input)
    if args.activations and any(sentences):
        raise ValueError(
            f"{args.activations} has its own ids: leave --source, --target and --input "
            "out."
        )
    pair = bool(args.source) and bool(args.target) and not args.input
    alone = bool(args.input) and not (args.source or args.target)
    if not (args.activations or pair or alone):
        raise ValueError("Give --source and --target, or --input, to be read.")
    if args.lines < 1:
        raise ValueError(f"--lines is {args.lines}: at least 1 is needed.")


def _check_places(ours: set[str], theirs: set[str], lacking: list[str]) -> None:
    unknown = sorted(theirs - ours)
    if unknown and not lacking:
        raise ValueError(
            f"This model has no {', '.join(unknown)}. Its places are "
            f"{', '.join(sorted(ours))}."
        )
    if not ours & theirs:
        raise ValueError(f"None of {', '.join(sorted(ours))} is there to compare.")


def _ids_and_theirs(
    args: Args, first: "Translator"
) -> "tuple[Ids, dict[str, np.ndarray]]":
    """The ids to read, and another library's activations if these are given."""
    from transformer_jax.analysis.compare import ids_with_padding
    from transformer_jax.interop.files import read_tensors

    if args.activations is None:
        return _ids(_pairs(args, first), first), {}
    theirs = read_tensors(args.activations)
    missing = [name for name in IDS if name not in theirs]
    if missing:
        raise ValueError(
            f"{args.activations} has no {' and no '.join(missing)}: both models must "
            "read the same ids, so they must be in it."
        )
    inputs, decoder_inputs = (theirs.pop(name) for name in IDS)
    return ids_with_padding(inputs, decoder_inputs, first.tokenizer.pad_id), theirs


def _pairs(args: Args, first: "Translator") -> list[tuple[str, str]]:
    from transformer_jax.data.text import read_pairs

    if args.source and args.target:
        sources, targets = read_pairs([args.source], [args.target])
        return list(zip(sources, targets, strict=True))[: args.lines]
    chunks = file_chunks(args.input) if args.input else ()
    lines = [line for chunk in chunks for line in chunk.lines]
    lines = [line for line in lines[: args.lines] if line.strip()]
    made = first.translate(lines, scores=False)
    return [(line, each.text) for line, each in zip(lines, made, strict=True)]


def _ids(pairs: list[tuple[str, str]], first: "Translator") -> "Ids":
    """The pairs as one batch, padded to the longest."""
    from transformer_jax.analysis.compare import Ids
    from transformer_jax.data.batching import stack_rows
    from transformer_jax.data.examples import make_example

    if not pairs:
        raise ValueError("There are no sentences to compare on.")
    tokenizer = first.tokenizer
    examples = [make_example(pair, tokenizer, first.model.config) for pair in pairs]
    longest = [max(len(each[name]) for each in examples) for name in IDS]
    shape = (len(examples), longest[0], longest[1])
    batch = stack_rows([[each] for each in examples], shape, tokenizer.pad_id)
    return Ids(
        batch.inputs,
        batch.decoder_inputs,
        batch.input_segment_ids,
        batch.target_segment_ids,
    )
