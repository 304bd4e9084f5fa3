"""The phrasebook: 40 000 German–English pairs that come with the package.

Generated, not downloaded: see `transformer_jax.data.phrasebook`.
"""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from transformer_jax.data.phrasebook.sentences import phrasebook_pairs


class Phrasebook(tfds.core.GeneratorBasedBuilder):
    """Features de and en; splits train, validation, test share no sentence."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First words."}  # noqa: RUF012 (TFDS's way)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Everyday German and English from a small grammar.",
            features=tfds.features.Translation(languages=("de", "en")),
            supervised_keys=("de", "en"),
            disable_shuffling=True,  # pairs are independent draws already
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        return {
            split: self._generate_examples(pairs)
            for split, pairs in phrasebook_pairs().items()
        }

    def _generate_examples(
        self, pairs: list[tuple[str, str]]
    ) -> Iterator[tuple[int, dict[str, str]]]:
        for number, (german, english) in enumerate(pairs):
            yield number, {"de": german, "en": english}
