"""Where sentence pairs come from: any TFDS translation set, ours among them.

Records are prepared once, as ArrayRecord, and read at random places without
TensorFlow.
"""

import contextlib
import difflib
import importlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core.utils import tqdm_utils

from transformer_jax.config import DataConfig

OWN_BUILDERS = {
    "phrasebook": "Phrasebook",
    "copy_task": "CopyTask",
    "multi30k": "Multi30k",
    "parallel_text": "ParallelText",
}
"""Our own data sets: module in `builders`, and class. One that depends on settings has
`from_settings(config, folder)`."""


class Pair(NamedTuple):
    """A sentence and its translation."""

    source: str
    target: str


class PairSource(Protocol):
    """Pairs by number."""

    def __len__(self) -> int:
        """How many pairs there are."""
        ...

    def __getitem__(self, index: int, /) -> Pair:
        """Pair number `index`, from 0."""
        ...


class TfdsPairs:
    """The pairs of one split of a prepared TFDS data set; can be pickled.

    `name` tells them from others: data set, settings, version, split, direction.
    """

    def __init__(
        self, records: Any, source_language: str, target_language: str, *, name: str
    ):
        self._records = records
        self.name = name
        self._source_language = source_language
        self._target_language = target_language

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int, /) -> Pair:
        record = self._records[index]
        return Pair(
            _text(record[self._source_language]), _text(record[self._target_language])
        )


def open_split(config: DataConfig, split: str, *, workdir: Path) -> PairSource:
    """The pairs of a split (`train`, `train[:1%]`, …), prepared at first use.

    Our own data sets are prepared in `config.prepared_dir`, or else workdir/data;
    others in `config.prepared_dir`, or else in TFDS's usual folder.
    """
    builder: Any = prepared_builder(config, workdir=workdir)
    _check_languages(builder, config)
    try:
        records = builder.as_data_source(split=split)
    except NotImplementedError:
        raise ValueError(
            f"{builder.data_dir} holds {config.name} as "
            f"{builder.info.file_format.value}, which has no random access. Give "
            "another folder as --data.prepared-dir; it is prepared there anew."
        ) from None
    except ValueError as error:
        raise ValueError(
            f"{config.name} has no split {split!r}; it has "
            f"{', '.join(builder.info.splits) or 'none'}. {_split_hint(config, split)}"
        ) from error
    if not len(records):
        raise ValueError(f"The split {split!r} of {config.name} holds no sentences.")
    source, target = config.source_language, config.target_language
    name = f"{builder.info.full_name} {split} {source}-{target}"
    return TfdsPairs(records, source, target, name=name)


def prepared_builder(config: DataConfig, *, workdir: Path) -> tfds.core.DatasetBuilder:
    """The TFDS builder of a data set, its records on disk."""
    own = config.name in OWN_BUILDERS
    with _without_chatter(own):
        builder = _builder(config, workdir)
        if builder.is_prepared():
            return builder
        try:
            builder.download_and_prepare(file_format="array_record")
        except ValueError:
            raise  # bad input, already in our words
        except Exception as error:
            # Another process may have been quicker; its records are as good.
            builder = _builder(config, workdir)
            if not builder.is_prepared():
                raise ValueError(_not_prepared(config, error)) from error
        return builder


def _builder(config: DataConfig, workdir: Path) -> Any:
    if config.name in OWN_BUILDERS:
        return _own_builder(config, config.prepared_dir or workdir / "data")
    return _tfds_builder(config)


def _own_builder(config: DataConfig, folder: Path) -> Any:
    module = importlib.import_module(f"transformer_jax.data.builders.{config.name}")
    builder = getattr(module, OWN_BUILDERS[config.name])
    if hasattr(builder, "from_settings"):
        return builder.from_settings(config, folder)
    return builder(data_dir=folder, file_format="array_record")


def _tfds_builder(config: DataConfig) -> Any:
    # TFDS registers its translation sets only when their modules are imported.
    importlib.import_module("tensorflow_datasets.translate")
    try:
        return tfds.builder(config.name, data_dir=config.prepared_dir)
    except tfds.core.DatasetNotFoundError:
        names = [*OWN_BUILDERS, *tfds.list_builders(with_community_datasets=False)]
        close = difflib.get_close_matches(config.name.split("/")[0], names, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(
            f"There is no data set {config.name!r}.{hint} Ours are "
            f"{', '.join(OWN_BUILDERS)}; any TFDS translation set goes by its name, as "
            "wmt14_translate/de-en."
        ) from None
    except ValueError as error:
        raise ValueError(
            f"data.name is {config.name!r}, which TFDS does not accept: {error}"
        ) from error


def _check_languages(builder: tfds.core.DatasetBuilder, config: DataConfig) -> None:
    features: Any = builder.info.features
    known = list(features.keys()) if hasattr(features, "keys") else []
    for setting in ("source_language", "target_language"):
        language = getattr(config, setting)
        if language not in known:
            raise ValueError(
                f"data.{setting} is {language!r}, but {config.name} has "
                f"{', '.join(known) or 'no named features'}. Choose among these."
            )


def _text(value: bytes | str) -> str:
    """Records hold bytes; TFDS's mock data holds str."""
    return value if isinstance(value, str) else value.decode("utf-8")


def _split_hint(config: DataConfig, split: str) -> str:
    if config.name == "parallel_text" and split.startswith("validation"):
        return (
            "Give --data.dev-source and --data.dev-target, or --data.dev-split '' to "
            "train without evaluation."
        )
    return "Set data.train_split or data.dev_split to one of these, or a part of one."


def _not_prepared(config: DataConfig, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}"
    ways = (
        "Is there a network? A folder with its files can be given as --data.dir."
        if config.name == "multi30k" and config.dir is None
        else "Is there a network, and room on the disk? Records that were prepared "
        "elsewhere can be given as --data.prepared-dir."
    )
    return f"The data set {config.name} could not be prepared: {reason} {ways}"


@contextlib.contextmanager
def _without_chatter(own: bool) -> Iterator[None]:
    """Keeps TFDS off stdout, and silent about our own sets, which take a second."""
    verbosity, progress = logging.get_verbosity(), tqdm_utils._active
    if own:
        logging.set_verbosity(logging.ERROR)
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO() if own else sys.stderr):
            yield
    finally:
        logging.set_verbosity(verbosity)
        tfds.display_progress_bar(progress)
