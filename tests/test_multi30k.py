"""Multi30k from a folder, from the authors' repository, and from (a fake of) the net.

The text here is made up: the real captions are not ours to publish.
"""

import functools
import gzip
import http.server
import threading
from pathlib import Path

import pytest

from transformer_jax.config import DataConfig
from transformer_jax.data.builders import multi30k
from transformer_jax.data.sources import open_split, prepared_builder

SIZES = {"train": 5, "val": 3, "test_2016_flickr": 2, "test_2017_flickr": 1}


def make_files(
    folder: Path,
    *,
    tokenized: bool = False,
    compress: bool = True,
    languages="en de fr",
) -> Path:
    """The authors' file names, with a line that tells split, language and number."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in SIZES.items():
        for language in languages.split():
            kind = "tok" if tokenized else "raw"
            lines = [f"{kind} {split} {language} {n}\n" for n in range(size)]
            content = "".join(lines).encode()
            name = f"{split}{'.lc.norm.tok' if tokenized else ''}.{language}"
            if compress:
                name, content = f"{name}.gz", gzip.compress(content)
            (folder / name).write_bytes(content)
    return folder


def settings(folder: Path | None, source="en", target="de", **changes) -> DataConfig:
    return DataConfig(
        name="multi30k",
        dir=folder,
        source_language=source,
        target_language=target,
        **changes,
    )


@pytest.mark.parametrize("tokenized", [False, True])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("place", "given"),
    [
        ("m", "m"),
        ("data/task1/KIND", "data/task1/KIND"),
        ("data/task1/KIND", "data/task1"),
        ("data/task1/KIND", "data"),
        ("data/task1/KIND", "."),
    ],
)
def test_files_are_found_in_a_folder_or_a_checkout(
    tmp_path, tokenized, compress, place, given
):
    kind = "tok" if tokenized else "raw"
    where = tmp_path / place.replace("KIND", kind)
    make_files(where, tokenized=tokenized, compress=compress)
    files = multi30k.find_files(
        tmp_path / given.replace("KIND", kind), ("de", "en"), tokenized=tokenized
    )
    assert list(files) == [
        "train",
        "validation",
        "test_2016_flickr",
        "test_2017_flickr",
    ]
    assert all(path.parent == where for pair in files.values() for path in pair)


@pytest.mark.parametrize(
    ("source", "target"), [("en", "de"), ("de", "en"), ("fr", "en"), ("de", "fr")]
)
def test_any_pair_and_direction_in_the_files_order(tmp_path, source, target):
    config = settings(make_files(tmp_path / "m"), source, target)
    splits = prepared_builder(config, workdir=tmp_path).info.splits
    assert {name: split.num_examples for name, split in splits.items()} == {
        "train": 5,
        "validation": 3,
        "test_2016_flickr": 2,
        "test_2017_flickr": 1,
    }
    pairs = open_split(config, "validation", workdir=tmp_path)
    assert [pairs[n] for n in range(3)] == [
        (f"raw val {source} {n}", f"raw val {target} {n}") for n in range(3)
    ]


def test_raw_and_tokenised_text_do_not_mix(tmp_path):
    folder = make_files(tmp_path / "m")
    make_files(folder, tokenized=True)
    for tokenized, word in ((False, "raw"), (True, "tok")):
        config = settings(folder, tokenized=tokenized)
        pair = open_split(config, "train", workdir=tmp_path)[0]
        assert pair == (f"{word} train en 0", f"{word} train de 0")


def test_both_directions_share_records_and_changed_files_do_not(tmp_path):
    folder = make_files(tmp_path / "m")
    prepared_builder(settings(folder, "en", "de"), workdir=tmp_path)
    prepared_builder(settings(folder, "de", "en"), workdir=tmp_path)
    assert len(list((tmp_path / "data/multi30k").iterdir())) == 1
    (folder / "val.de.gz").write_bytes(gzip.compress(b"a\nb\nc\n"))
    pairs = open_split(settings(folder), "validation", workdir=tmp_path)
    assert pairs[1] == ("raw val en 1", "b")


def test_a_test_set_may_be_missing_in_whole_only(tmp_path):
    folder = make_files(tmp_path / "m")
    (folder / "test_2017_flickr.de.gz").unlink()
    with pytest.raises(ValueError, match=r"has no test_2017_flickr\.de\.gz"):
        prepared_builder(settings(folder), workdir=tmp_path)
    (folder / "test_2017_flickr.en.gz").unlink()
    assert len(prepared_builder(settings(folder), workdir=tmp_path).info.splits) == 3


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        prepared_builder(settings(tmp_path / "gone"), workdir=tmp_path)
    with pytest.raises(ValueError, match=r"nor data/task1/raw below it has train\.de"):
        prepared_builder(settings(tmp_path), workdir=tmp_path)
    folder = make_files(tmp_path / "m", languages="en de")
    with pytest.raises(ValueError, match=r"has no train\.fr\.gz"):
        prepared_builder(settings(folder, "en", "fr"), workdir=tmp_path)
    with pytest.raises(ValueError, match=r"raw.*set data\.tokenized to False"):
        prepared_builder(settings(folder, tokenized=True), workdir=tmp_path)
    with pytest.raises(ValueError, match="both 'en'"):
        prepared_builder(settings(folder, "en", "en"), workdir=tmp_path)
    (folder / "val.en.gz").write_bytes(gzip.compress(b"one\n"))
    with pytest.raises(ValueError, match=r"val\.de\.gz has 3 .*val\.en\.gz has 1"):
        prepared_builder(settings(folder), workdir=tmp_path)


@pytest.fixture
def server(tmp_path):
    """An address that serves tmp_path/net, and the paths asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            if self.command == "GET":
                asked.append(self.path)

    folder = tmp_path / "net"
    folder.mkdir()
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}", asked
        serving.shutdown()


@pytest.mark.parametrize("tokenized", [False, True])
def test_without_a_folder_the_authors_files_are_downloaded_once(
    tmp_path, server, monkeypatch, tokenized
):
    address, asked = server
    monkeypatch.setattr(multi30k, "REPOSITORY", address)
    where = tmp_path / "net/data/task1" / ("tok" if tokenized else "raw")
    make_files(where, tokenized=tokenized, compress=not tokenized)
    config = settings(None, tokenized=tokenized)
    kind = "tok" if tokenized else "raw"
    for _ in range(2):
        pairs = open_split(config, "train", workdir=tmp_path)
        assert pairs[4] == (f"{kind} train en 4", f"{kind} train de 4")
    assert len(asked) == len(set(asked)) == 8


def test_without_a_network_the_error_comes_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(multi30k, "REPOSITORY", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9/.* --data\.dir"):
        prepared_builder(settings(None), workdir=tmp_path)


def test_a_failing_download_says_what_to_do(tmp_path, server, monkeypatch):
    monkeypatch.setattr(multi30k, "REPOSITORY", server[0])  # which has no such file
    with pytest.raises(ValueError, match=r"network\? .*--data\.dir"):
        prepared_builder(settings(None), workdir=tmp_path)
    with pytest.raises(ValueError, match="no language 'xx'"):
        prepared_builder(settings(None, "en", "xx"), workdir=tmp_path)
