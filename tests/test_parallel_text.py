"""Files become splits in order, changed files are prepared anew, mistakes are named."""

import gzip
import pickle
from pathlib import Path

import pytest

from transformer_jax.config import DataConfig
from transformer_jax.data.sources import Pair, open_split, prepared_builder

SOURCE = ["zwei Hunde", "", "ein\u2028Satz", "我爱你", "Grüße …"]
TARGET = ["two dogs", "nothing", "one\u2028line", "ik hou van je", "greetings"]


def write(path: Path, lines: list[str], *, compress: bool = False) -> Path:
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if compress else content)
    return path


def settings(folder: Path, **changes) -> DataConfig:
    """Training on five pairs in two files a side, one of them compressed."""
    files = {
        "train_source": (
            write(folder / "1.de", SOURCE[:2]),
            write(folder / "2.de.gz", SOURCE[2:], compress=True),
        ),
        "train_target": (
            write(folder / "1.en.gz", TARGET[:2], compress=True),
            write(folder / "2.en", TARGET[2:]),
        ),
        "dev_source": (write(folder / "dev.de", ["ja", "nein"]),),
        "dev_target": (write(folder / "dev.en", ["yes", "no"]),),
    }
    return DataConfig(name="parallel_text", **{**files, **changes})


def pairs(config: DataConfig, split: str, workdir: Path) -> list[Pair]:
    source = open_split(config, split, workdir=workdir)
    return [source[index] for index in range(len(source))]


def test_pairs_come_as_written_and_in_order(tmp_path):
    config = settings(tmp_path)
    splits = prepared_builder(config, workdir=tmp_path).info.splits
    sizes = {name: split.num_examples for name, split in splits.items()}
    assert sizes == {"train": 5, "validation": 2}
    assert pairs(config, "train", tmp_path) == list(map(Pair, SOURCE, TARGET))
    assert pairs(config, "validation", tmp_path) == [("ja", "yes"), ("nein", "no")]
    assert pairs(config, "train[1:3]", tmp_path) == list(map(Pair, SOURCE, TARGET))[1:3]


def test_records_lie_in_the_workdir_or_where_asked(tmp_path):
    prepared_builder(settings(tmp_path), workdir=tmp_path / "run")
    assert list((tmp_path / "run/data/parallel_text").glob("*/*/*array_record*"))
    config = settings(tmp_path, prepared_dir=tmp_path / "there")
    prepared_builder(config, workdir=tmp_path / "other")
    assert list((tmp_path / "there/parallel_text").glob("*/*/*array_record*"))
    assert not (tmp_path / "other").exists()


def test_unchanged_files_are_prepared_once_and_changed_ones_anew(tmp_path):
    config = settings(tmp_path)
    prepared_builder(config, workdir=tmp_path)
    records = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*record*")
    }
    prepared_builder(config, workdir=tmp_path)
    assert records == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*record*")
    }
    # As many bytes, so that only the content tells.
    write(tmp_path / "dev.en", ["yep", "na"])
    assert pairs(config, "validation", tmp_path) == [("ja", "yep"), ("nein", "na")]


def test_the_same_files_in_another_role_are_another_data_set(tmp_path):
    a, b = write(tmp_path / "a", ["x", "y"]), write(tmp_path / "b", ["1", "2"])
    roles = [
        ((a,), (b,), (a,), (b,)),
        ((a,), (b,), (b,), (a,)),
        ((a, b), (a, b), (), ()),
        ((a,), (b,), (), ()),
    ]
    seen = []
    for train_source, train_target, dev_source, dev_target in roles:
        config = DataConfig(
            name="parallel_text",
            train_source=train_source,
            train_target=train_target,
            dev_source=dev_source,
            dev_target=dev_target,
        )
        splits = prepared_builder(config, workdir=tmp_path).info.splits
        seen.append([pairs(config, split, tmp_path) for split in splits])
    train, swapped = [("x", "1"), ("y", "2")], [("1", "x"), ("2", "y")]
    copied = [("x", "x"), ("y", "y"), ("1", "1"), ("2", "2")]
    assert seen == [[train, train], [train, swapped], [copied], [train]]


def test_pair_sources_can_be_pickled(tmp_path):
    source = open_split(settings(tmp_path), "train", workdir=tmp_path)
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 5
    assert copy[4] == source[4] == ("Grüße …", "greetings")


def test_nothing_is_printed_on_stdout(tmp_path, capsys):
    open_split(settings(tmp_path), "train", workdir=tmp_path)
    assert capsys.readouterr() == ("", "")


def test_different_line_counts_stop_the_preparation(tmp_path):
    short = write(tmp_path / "short.en", ["yes"])
    config = settings(tmp_path, dev_target=(short,))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"dev\.de has 2 .*short\.en has 1:"):
            open_split(config, "train", workdir=tmp_path)
    left = [path.name for path in (tmp_path / "data/parallel_text").glob("*/*")]
    assert left == []


def test_invalid_utf8_stops_the_preparation(tmp_path):
    (tmp_path / "bad.en").write_bytes(b"yes\nn\xff\n")
    config = settings(tmp_path, dev_target=(tmp_path / "bad.en",))
    with pytest.raises(ValueError, match=r"^\S*bad\.en, line 2: byte 2"):
        open_split(config, "train", workdir=tmp_path)


def test_missing_files_are_named(tmp_path):
    config = settings(tmp_path, train_source=(tmp_path / "gone.de",))
    with pytest.raises(ValueError, match=r"no file \S*gone\.de"):
        open_split(config, "train", workdir=tmp_path)


def test_missing_settings_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"--data\.train-source FILE --data"):
        open_split(DataConfig(name="parallel_text"), "train", workdir=tmp_path)
    with pytest.raises(ValueError, match=r"dev_source names 1 files .*dev_target 0"):
        open_split(settings(tmp_path, dev_target=()), "train", workdir=tmp_path)
    config = settings(tmp_path, dev_source=(), dev_target=())
    with pytest.raises(ValueError, match=r"no split 'validation'.*--data\.dev-source"):
        open_split(config, "validation", workdir=tmp_path)
    config = settings(tmp_path, source_language="en", target_language="en")
    with pytest.raises(ValueError, match="both 'en'"):
        open_split(config, "train", workdir=tmp_path)
