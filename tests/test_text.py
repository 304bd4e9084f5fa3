"""Lines are what lies between \\n, both sides have as many, and errors name places."""

import gzip
import re

import pytest

from transformer_jax.data.text import fingerprint, read_pairs, stream_lines


def write(path, content: bytes):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),  # the last line's end may be missing
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\r\r\n", ["a\r"]),
        (b"a\n\n", ["a", ""]),
        (b"\n", [""]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", ["a", "\ufeffb"]),
        ("a\u2028b\x0cc\x85d\x0be\rf\n".encode(), ["a\u2028b\x0cc\x85d\x0be\rf"]),
        (" ä  b \n".encode(), [" ä  b "]),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_lines_are_split_on_newlines_only(tmp_path, content, lines, compress):
    path = write(tmp_path / "text", gzip.compress(content) if compress else content)
    assert list(stream_lines(path)) == lines


@pytest.mark.parametrize("content", [b"", gzip.compress(b"", mtime=0)])
def test_an_empty_file_is_an_error_that_names_it(tmp_path, content):
    path = write(tmp_path / "train.de", content)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is empty"):
        list(stream_lines(path))


def test_a_missing_file_or_a_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*gone\.de"):
        list(stream_lines(tmp_path / "gone.de"))
    with pytest.raises(ValueError, match="is a folder"):
        list(stream_lines(tmp_path))


@pytest.mark.parametrize("compress", [False, True])
def test_invalid_utf8_is_an_error_with_file_and_line(tmp_path, compress):
    content = "schön\nüber\n".encode() + b"na\xefve\n" + b"fine\n"
    path = write(tmp_path / "bad.de", gzip.compress(content) if compress else content)
    message = rf"{re.escape(str(path))}, line 3: byte 3 of the line is 0xef"
    with pytest.raises(ValueError, match=message):
        list(stream_lines(path))


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_gzip_file_is_an_error_that_names_it(tmp_path, damage):
    whole = bytearray(gzip.compress(b"one line of many\n" * 50))
    if damage == "flip":
        whole[-6] ^= 255  # in the checksum
    path = write(tmp_path / "d.gz", bytes(whole[:-9] if damage == "cut" else whole))
    with pytest.raises(ValueError, match=r"d\.gz cannot be read"):
        list(stream_lines(path))


def test_different_line_counts_name_both_files_and_the_first_odd_line(tmp_path):
    short = write(tmp_path / "s.de", b"a\nb\n")
    long = write(tmp_path / "l.en", b"a\nb\nc\nd\n")
    with pytest.raises(ValueError, match=r"s\.de has 2 .*l\.en has 4.*partner: 3\."):
        read_pairs([short], [long])
    with pytest.raises(ValueError, match=r"l\.en has 4 .*s\.de has 2.*partner: 3\."):
        read_pairs([long], [short])


def test_files_of_a_side_follow_one_another(tmp_path):
    one = write(tmp_path / "1.de", b"a\n")
    two = write(tmp_path / "2.de", gzip.compress(b"b\nc\n"))
    both = write(tmp_path / "en", b"A\nB\nC\n")
    other = write(tmp_path / "other", b"X\nY\n")
    assert read_pairs([one, two], [both]) == (["a", "b", "c"], ["A", "B", "C"])
    assert read_pairs([one, two], [one, other]) == (["a", "b", "c"], ["a", "X", "Y"])
    with pytest.raises(ValueError, match=r"1\.de has 1 .*other has 2"):
        read_pairs([one, two], [other, one])  # 3 lines in all, but not in step
    with pytest.raises(ValueError, match="at least one on each side"):
        read_pairs([one], [])


def test_a_fingerprint_follows_content_and_order_not_names(tmp_path):
    a, b = write(tmp_path / "a", b"1\n"), write(tmp_path / "b", b"2\n")
    copy = write(tmp_path / "copy", b"1\n")
    assert fingerprint([a, b]) == fingerprint([copy, b])
    compressed = write(tmp_path / "a.gz", gzip.compress(b"1\n"))
    assert fingerprint([a, b]) == fingerprint([compressed, b])
    assert fingerprint([a, b]) != fingerprint([b, a])
    before = fingerprint([a, b])
    write(a, b"3\n")
    assert fingerprint([a, b]) != before
    with pytest.raises(ValueError, match="no file"):
        fingerprint([tmp_path / "gone"])
    with pytest.raises(ValueError, match="empty"):
        fingerprint([write(tmp_path / "nothing", b"")])
