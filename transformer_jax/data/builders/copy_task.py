"""The copy task: say again what was said. Every Transformer tutorial starts with it."""

import itertools
import string
from collections.abc import Iterator
from random import Random
from typing import Any

import tensorflow_datasets as tfds

TOKENS = string.digits + string.ascii_lowercase[:10]
"""Single characters, written with spaces between them."""
SPLIT_SIZES = {"train": 20_000, "validation": 500, "test": 500}
MIN_LENGTH, MAX_LENGTH = 4, 12


def copy_task_lines(seed: int = 0) -> dict[str, list[str]]:
    """Random token strings by split; none comes twice, anywhere.

    >>> copy_task_lines()["train"][0].split()[:3]
    ['f', '8', '5']
    """
    rng = Random(seed)
    lines: dict[str, None] = {}
    while len(lines) < sum(SPLIT_SIZES.values()):
        length = rng.randint(MIN_LENGTH, MAX_LENGTH)
        lines[" ".join(rng.choices(TOKENS, k=length))] = None
    remaining = iter(lines)
    return {
        split: list(itertools.islice(remaining, size))
        for split, size in SPLIT_SIZES.items()
    }


class CopyTask(tfds.core.GeneratorBasedBuilder):
    """Features source and target, always equal; splits train, validation, test."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First strings."}  # noqa: RUF012 (TFDS's way)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Random strings of digits and letters, to be copied.",
            features=tfds.features.Translation(languages=("source", "target")),
            supervised_keys=("source", "target"),
            disable_shuffling=True,  # strings are independent draws already
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        return {
            split: self._generate_examples(lines)
            for split, lines in copy_task_lines().items()
        }

    def _generate_examples(
        self, lines: list[str]
    ) -> Iterator[tuple[int, dict[str, str]]]:
        for number, line in enumerate(lines):
            yield number, {"source": line, "target": line}
