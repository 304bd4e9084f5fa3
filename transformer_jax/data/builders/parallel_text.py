"""Any pair of text files, one sentence a line, as a TFDS data set."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from transformer_jax.config import DataConfig
from transformer_jax.data.text import fingerprint, stream_pairs

Files = dict[str, tuple[Sequence[Path], Sequence[Path]]]
"""Source and target files of each split."""


@dataclasses.dataclass(kw_only=True, eq=False)
class ParallelTextConfig(tfds.core.BuilderConfig):
    """Two languages, and the files of each split."""

    languages: tuple[str, str] = ("source", "target")
    files: Files = dataclasses.field(default_factory=dict)


class ParallelText(tfds.core.GeneratorBasedBuilder):
    """Line n of the source files and line n of the target files, in that order."""

    VERSION = tfds.core.Version("1.0.0")

    @classmethod
    def from_settings(cls, config: DataConfig, folder: Path) -> "ParallelText":
        """The builder for a run's settings; its records go into `folder`.

        The files' contents are part of its name: changed files are prepared anew.
        """
        files: Files = {"train": (config.train_source, config.train_target)}
        if config.dev_source or config.dev_target:
            files["validation"] = (config.dev_source, config.dev_target)
        for split, (source, target) in files.items():
            flag = {"train": "train", "validation": "dev"}[split]
            if not source or not target:
                raise ValueError(
                    f"data.{flag}_source names {len(source)} files and "
                    f"data.{flag}_target {len(target)}: give both, as "
                    f"--data.{flag}-source FILE --data.{flag}-target FILE."
                )
        languages = (config.source_language, config.target_language)
        if languages[0] == languages[1]:
            raise ValueError(
                "data.source_language and data.target_language are both "
                f"{languages[0]!r}: records are kept by language, so name them apart, "
                "for example en and en_simple."
            )
        content = fingerprint(
            [path for sides in files.values() for side in sides for path in side]
        )
        # Which side and split a file belongs to matters as much as what is in it.
        counts = "-".join(str(len(side)) for sides in files.values() for side in sides)
        name = re.sub(r"[^\w-]", "_", f"{'-'.join(languages)}-{counts}-{content}")
        made = ParallelTextConfig(name=name, languages=languages, files=files)
        return cls(data_dir=folder, config=made, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        config: Any = self.builder_config
        return tfds.core.DatasetInfo(
            builder=self,
            description="Parallel text files, one sentence a line.",
            features=tfds.features.Translation(languages=config.languages),
            disable_shuffling=True,  # evaluation goes in the files' order
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        config: Any = self.builder_config
        return {
            split: self._generate_examples(*sides)
            for split, sides in config.files.items()
        }

    def _generate_examples(
        self, source: Sequence[Path], target: Sequence[Path]
    ) -> Iterator[tuple[int, dict[str, str]]]:
        config: Any = self.builder_config
        for number, pair in enumerate(stream_pairs(source, target)):
            yield number, dict(zip(config.languages, pair, strict=True))
