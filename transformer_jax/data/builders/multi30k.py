"""Multi30k, task 1: image captions in English, German, French (and Czech).

Elliott et al., 2016, "Multi30K: Multilingual English-German Image Descriptions", and
Elliott et al., 2017, for the later test sets. Read from a folder, or downloaded from
where the authors publish it: https://github.com/multi30k/dataset.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
import tensorflow_datasets as tfds

from transformer_jax.config import DataConfig
from transformer_jax.data.text import fingerprint, stream_pairs

REPOSITORY = "https://raw.githubusercontent.com/multi30k/dataset/master"
"""Where the authors' files are downloaded from."""

SPLITS = {
    "train": "train",
    "validation": "val",
    "test_2016_flickr": "test_2016_flickr",
    "test_2017_flickr": "test_2017_flickr",
}
"""The authors' name of each split."""

_OPTIONAL = ("test_2016_flickr", "test_2017_flickr")
"""Splits that a folder may lack (the authors have no test_2017_flickr in Czech)."""

Files = dict[str, tuple[Path | str, Path | str]]
"""Path or address of each split's two files, in the order of the languages."""


@dataclasses.dataclass(kw_only=True, eq=False)
class Multi30kConfig(tfds.core.BuilderConfig):
    """Two languages, and where the files of each split are."""

    languages: tuple[str, str] = ("de", "en")
    files: Files = dataclasses.field(default_factory=dict)


class Multi30k(tfds.core.GeneratorBasedBuilder):
    """Multi30k for one pair of languages, raw or as its authors tokenised it."""

    VERSION = tfds.core.Version("1.0.0")

    @classmethod
    def from_settings(cls, config: DataConfig, folder: Path) -> "Multi30k":
        """The builder for a run's settings; its records go into `folder`.

        Both directions share their records. The contents of the files in `config.dir`
        are part of the name: changed files are prepared anew.
        """
        first, second = sorted((config.source_language, config.target_language))
        if first == second:
            raise ValueError(
                f"data.source_language and data.target_language are both {first!r}: "
                "choose two of en, de, fr, cs."
            )
        languages = (first, second)
        name = f"{first}-{second}-{'tok' if config.tokenized else 'raw'}"
        name = re.sub(r"[^\w-]", "_", name)
        if config.dir is None:
            files = online_files(languages, tokenized=config.tokenized)
        else:
            found = find_files(config.dir, languages, tokenized=config.tokenized)
            content = fingerprint([path for pair in found.values() for path in pair])
            name = f"{name}-{content}"
            files: Files = dict(found)
        made = Multi30kConfig(name=name, languages=languages, files=files)
        return cls(data_dir=folder, config=made, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        config: Any = self.builder_config
        return tfds.core.DatasetInfo(
            builder=self,
            description="Multi30k, task 1: translations of image captions.",
            homepage="https://github.com/multi30k/dataset",
            features=tfds.features.Translation(languages=config.languages),
            disable_shuffling=True,  # evaluation goes in the files' order
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        config: Any = self.builder_config
        if isinstance(address := config.files["train"][0], str):
            _check_network(address)
        files = {
            split: tuple(
                # Not extracted: our reader sees by itself what is compressed.
                place if isinstance(place, Path) else dl_manager.download(place)
                for place in pair
            )
            for split, pair in config.files.items()
        }
        return {split: self._generate_examples(*pair) for split, pair in files.items()}

    def _generate_examples(
        self, first: Path, second: Path
    ) -> Iterator[tuple[int, dict[str, str]]]:
        config: Any = self.builder_config
        for number, pair in enumerate(stream_pairs([Path(first)], [Path(second)])):
            yield number, dict(zip(config.languages, pair, strict=True))


def file_name(split: str, language: str, *, tokenized: bool) -> str:
    """The authors' name of a file, when it is not compressed.

    >>> file_name("validation", "de", tokenized=True)
    'val.lc.norm.tok.de'
    """
    return f"{SPLITS[split]}{'.lc.norm.tok' if tokenized else ''}.{language}"


def online_files(languages: tuple[str, str], *, tokenized: bool) -> Files:
    """The addresses of all files; the authors compress the raw ones only."""
    unknown = [language for language in languages if language not in _LANGUAGES]
    if unknown:
        raise ValueError(
            f"Multi30k has no language {unknown[0]!r}: choose two of "
            f"{', '.join(_LANGUAGES)}."
        )
    folder = f"{REPOSITORY}/data/task1/{'tok' if tokenized else 'raw'}"

    def address(split: str, language: str) -> str:
        name = file_name(split, language, tokenized=tokenized)
        return f"{folder}/{name}{'' if tokenized else '.gz'}"

    return {
        split: (address(split, languages[0]), address(split, languages[1]))
        for split in SPLITS
        if not (split == "test_2017_flickr" and "cs" in languages)
    }


_LANGUAGES = ("en", "de", "fr", "cs")


def find_files(
    folder: Path, languages: tuple[str, str], *, tokenized: bool
) -> dict[str, tuple[Path, Path]]:
    """The files of every split, in a folder of them or in the authors' repository.

    A test set may be missing in whole; anything else missing raises ValueError.
    """
    place = _folder_of_files(folder, languages, tokenized=tokenized)
    files: dict[str, tuple[Path, Path]] = {}
    for split in SPLITS:
        names = [
            file_name(split, language, tokenized=tokenized) for language in languages
        ]
        paths = [_plain_or_compressed(place / name) for name in names]
        if paths[0] and paths[1]:
            files[split] = (paths[0], paths[1])
        elif split not in _OPTIONAL or any(paths):
            missing = names[0] if paths[0] is None else names[1]
            raise ValueError(
                f"{place} has no {missing}.gz (nor {missing}): copy the file there, or "
                "leave --data.dir out to download Multi30k."
            )
    return files


def _folder_of_files(
    folder: Path, languages: tuple[str, str], *, tokenized: bool
) -> Path:
    """`folder` itself, or data/task1/raw or tok below it, whichever has the files."""
    if not folder.is_dir():
        raise ValueError(
            f"data.dir is {folder}, and there is no such folder. Give the folder with "
            "Multi30k's files, or leave --data.dir out to download them."
        )
    kind = "tok" if tokenized else "raw"
    places = [folder, *(folder / p / kind for p in ("", "task1", "data/task1"))]
    name = file_name("train", languages[0], tokenized=tokenized)
    names = [name, file_name("train", languages[1], tokenized=tokenized)]
    for place in places:
        if any(_plain_or_compressed(place / name) for name in names):
            return place
    other = file_name("train", languages[0], tokenized=not tokenized)
    hint = (
        f" It has the {'raw' if tokenized else 'tokenised'} text: set data.tokenized "
        f"to {not tokenized}."
        if _plain_or_compressed(folder / other)
        else ""
    )
    raise ValueError(
        f"data.dir is {folder}, but neither it nor data/task1/{kind} below it has "
        f"{name}.gz (or {name}).{hint} Give the folder with Multi30k's files, or leave "
        "--data.dir out to download them."
    )


def _check_network(address: str) -> None:
    """Asks once: without a network, TFDS would try again for some minutes."""
    try:
        requests.head(address, timeout=20)
    except requests.RequestException as error:
        raise ValueError(
            f"Multi30k could not be downloaded: {address} cannot be reached "
            f"({type(error).__name__}). Is there a network? A folder with its files "
            "can be given as --data.dir."
        ) from None


def _plain_or_compressed(path: Path) -> Path | None:
    compressed = path.with_name(f"{path.name}.gz")
    return next((p for p in (compressed, path) if p.is_file()), None)
