"""transformer-jax attention: heat maps of what each head looks at in a sentence."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

FILES = ("encoder_self.png", "decoder_self.png", "cross.png")


@dataclasses.dataclass(frozen=True)
class Args:
    """Draw what attention looks at in a sentence.

    Writes three pictures into a folder: encoder_self.png, source words looking at
    source words; decoder_self.png, translation looking at what is written already;
    cross.png, translation looking at source. Each is a grid with one row a layer and
    one column a head, counted from 0. In a panel, each row is a word that looks, dark
    where it looks. Words that the tokenizer splits show as their pieces; a dot marks
    what goes on a word.
    """

    checkpoint: Path
    """The run to load: the workdir of a training."""
    sentence: str
    """The source sentence."""
    output: Path
    """Folder for the three pictures; made when it is not there."""
    translation: str | None = None
    """A translation to look at, right or wrong. Default: the model's own."""
    layer: int | None = None
    """Draw this layer only. Default: all."""
    head: int | None = None
    """Draw this head only. Default: all."""
    step: int | None = None
    """Checkpoint to load. Default: the best one if one was chosen, else the latest."""


class Picture(NamedTuple):
    """One of the three pictures."""

    title: str
    weights: np.ndarray
    """[layers, N, T, S]."""
    rows: list[str]
    columns: list[str]


def run(args: Args) -> int:
    """Writes the pictures and says where they are."""
    from transformer_jax.analysis.attention import attention_maps, axis_labels
    from transformer_jax.analysis.plots import plot_attention
    from transformer_jax.translation.translator import Translator

    if not args.sentence.strip():
        raise ValueError("--sentence is empty: give a sentence that has words.")
    translator = Translator.load(args.checkpoint, step=args.step)
    translation = args.translation
    if translation is None:
        (found,) = translator.translate([args.sentence], scores=False)
        translation = found.text
    maps = attention_maps(
        translator.model,
        translator.params,
        translator.tokenizer,
        args.sentence,
        translation,
    )
    source = axis_labels(maps.source)
    fed, written = axis_labels(maps.decoder_inputs), axis_labels(maps.targets)
    pictures = (
        Picture("Encoder self-attention", maps.encoder_self, source, source),
        Picture("Decoder self-attention", maps.decoder_self, fed, fed),
        Picture("Cross-attention", maps.cross, written, source),
    )
    chosen = [choose(each, layer=args.layer, head=args.head) for each in pictures]
    print(f"source       {args.sentence}\ntranslation  {translation}")
    for picture, file, (layers, heads) in zip(pictures, FILES, chosen, strict=True):
        path = args.output / file
        plot_attention(
            picture.weights[np.ix_(layers, heads)],
            picture.rows,
            picture.columns,
            path,
            title=picture.title,
            layers=layers,
            heads=heads,
        )
        print(f"wrote        {path}")
    return 0


def choose(
    picture: Picture, *, layer: int | None, head: int | None
) -> tuple[Sequence[int], Sequence[int]]:
    """The layers and heads to draw; an error when a number is not there."""
    chosen = []
    for name, number, count in zip(
        ("layer", "head"), (layer, head), picture.weights.shape, strict=False
    ):
        if number is not None and not 0 <= number < count:
            raise ValueError(
                f"--{name} is {number}, but the {picture.title.lower()} of this model "
                f"has {count} {name}s: give a number from 0 to {count - 1}."
            )
        chosen.append(range(count) if number is None else [number])
    return chosen[0], chosen[1]
