"""Files from elsewhere may be damaged, missing or something else altogether."""

import json

import numpy as np
import pytest

from transformer_jax.interop.files import (
    FileError,
    find_file,
    new_folder,
    read_json,
    read_tensors,
    write_tensors,
)


def test_written_tensors_are_read_back(tmp_path):
    state = {"a.weight": np.arange(6.0).reshape(2, 3), "b": np.array([1, 2], np.int32)}
    write_tensors(tmp_path / "it.safetensors", state)
    found = read_tensors(tmp_path / "it.safetensors")
    assert found.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(tmp_path, dtype):
    import jax.numpy as jnp

    halves = np.asarray(jnp.array([0.5, -3.0], dtype))
    write_tensors(tmp_path / "it.safetensors", {"x": halves})
    found = read_tensors(tmp_path / "it.safetensors")["x"]
    assert found.dtype == np.float32
    assert found.tolist() == [0.5, -3.0]


@pytest.mark.parametrize("kept", [4, 7, 40, 0.5, -1])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = tmp_path / "it.safetensors"
    write_tensors(path, {"x": np.ones(100), "y": np.ones(3)})
    content = path.read_bytes()
    length = int(len(content) * kept) if isinstance(kept, float) else kept
    path.write_bytes(content[:length])
    with pytest.raises(
        FileError, match=r"it\.safetensors cannot be read.*Is it whole\?"
    ):
        read_tensors(path)


def test_a_header_that_promises_more_than_there_is_is_refused(tmp_path):
    header = {"x": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text
    (tmp_path / "it.safetensors").write_bytes(content)
    with pytest.raises(FileError, match="cannot be read as safetensors"):
        read_tensors(tmp_path / "it.safetensors")


@pytest.mark.parametrize("read", [read_tensors, read_json])
def test_no_file_an_empty_one_and_a_folder_are_told_apart(tmp_path, read):
    with pytest.raises(FileError, match="nothing does not exist, but a file is"):
        read(tmp_path / "nothing")
    (tmp_path / "empty").touch()
    with pytest.raises(FileError, match="empty is empty"):
        read(tmp_path / "empty")
    with pytest.raises(FileError, match="is a folder, but a file is expected"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_text_that_is_no_json_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(FileError, match=r"config\.json is not valid JSON"):
        read_json(tmp_path / "config.json")


def test_the_first_of_several_names_is_found(tmp_path):
    (tmp_path / "b").touch()
    (tmp_path / "c").touch()
    assert find_file(tmp_path, ["a", "b", "c"]) == tmp_path / "b"
    with pytest.raises(FileError, match="has none of x, y"):
        find_file(tmp_path, ["x", "y"])
    with pytest.raises(FileError, match="There is no folder"):
        find_file(tmp_path / "b", ["x"])


def test_a_new_folder_is_there_when_it_is_full_and_never_overwrites(tmp_path):
    path = tmp_path / "deep" / "new"
    with new_folder(path) as folder:
        (folder / "file").touch()
        assert not path.exists()
    assert [each.name for each in path.iterdir()] == ["file"]
    for taken in (path, path / "file"):
        with pytest.raises(ValueError, match="exists already"), new_folder(taken):
            pass
    assert [each.name for each in path.parent.iterdir()] == ["new"]


def test_of_a_folder_that_could_not_be_filled_nothing_stays(tmp_path):
    (tmp_path / "empty").mkdir()

    def fill_badly(path):
        with new_folder(path) as folder:
            (folder / "file").touch()
            raise KeyError

    for name in ("new", "empty"):
        with pytest.raises(KeyError):
            fill_badly(tmp_path / name)
    assert [each.name for each in tmp_path.iterdir()] == ["empty"]
    with new_folder(tmp_path / "empty") as folder:
        (folder / "file").touch()
    assert (tmp_path / "empty" / "file").is_file()


@pytest.mark.parametrize("stored", ["F8_E4M3", "F8_E5M2", "C64"])
def test_a_type_that_weights_do_not_have_is_named(tmp_path, stored):
    size = 8 if stored == "C64" else 1
    header = {"x": {"dtype": stored, "shape": [2], "data_offsets": [0, 2 * size]}}
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(2 * size)
    (tmp_path / "it.safetensors").write_bytes(content)
    with pytest.raises(FileError, match=rf"x is of type {stored}.*save it as float32"):
        read_tensors(tmp_path / "it.safetensors")


def test_arrays_are_views_of_one_reading_of_the_file(tmp_path):
    """So that a model is in memory once."""
    state = {"a": np.ones((3, 4), np.float32), "b": np.zeros(5, np.int64)}
    write_tensors(tmp_path / "it.safetensors", state)
    found = read_tensors(tmp_path / "it.safetensors")

    def owner(x):
        return x if x.base is None else owner(x.base)

    assert owner(found["a"]) is owner(found["b"])
    assert owner(found["a"]).nbytes == sum(x.nbytes for x in state.values())
    assert found["a"].flags.writeable
