"""The file of registration entries: read, watched, and what is said of one that cannot be used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.entries import body, entry, write
from tests.waiting import until
from tracer.errors import InputError
from tracer.identity.entries import Entries
from tracer.sources.entries_file import MOST_BYTES, EntriesFile, _read, read

OLD, NEW = entry("/old", "k8s:ns:shop"), entry("/new", "k8s:ns:shop")


class Reader:
    """A watched file, and what came of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[tuple[str, ...]] = []
        self.said: list[str] = []
        self.file = EntriesFile(str(path), on_entries=self._take, warn=self.said.append, interval_s=0.02)

    def _take(self, entries: Entries) -> None:
        self.seen.append(tuple(found.id for found in entries.entries))


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A file with the old entry, watched."""
    reader = Reader(write(tmp_path / "entries.json", OLD))
    reader.file.start()
    assert reader.seen == [("old",)]
    yield reader
    reader.file.stop()


def test_an_edit_is_seen(reader: Reader) -> None:
    """A file that is replaced, and one that is written in place, is read again, and again at the next edit."""
    write(reader.path, NEW)
    until(lambda: reader.seen[-1] == ("new",), 10, "the file that was put in its place")
    reader.path.write_bytes(body(OLD, NEW))
    until(lambda: reader.seen[-1] == ("old", "new"), 10, "what was written in place")
    assert reader.said == []


def test_an_edit_of_the_same_size_and_time_is_seen(tmp_path: Path) -> None:
    """A file that changes within the tick of its time stamp, to as many bytes, is read again all the same."""
    reader = Reader(write(tmp_path / "entries.json", OLD))

    def read_in_time() -> bool:
        os.utime(reader.path)
        entries, stamp = _read(str(reader.path))
        reader.file._take(entries, stamp)
        return stamp is None

    until(read_in_time, 10, "a read within the tick")
    before = reader.path.stat()
    with reader.path.open("r+b") as file:
        file.write(body(NEW))
    os.utime(reader.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert reader.path.stat().st_size == before.st_size
    assert reader.path.stat().st_ino == before.st_ino
    reader.file.look()
    assert reader.seen == [("old",), ("new",)]


def test_what_is_the_same_is_not_told_again(reader: Reader) -> None:
    """A file that was touched, or written anew with the same entries, changes nothing."""
    for _ in range(5):
        write(reader.path, OLD)
        reader.file.look()
    assert reader.seen == [("old",)]


def test_a_half_written_file_changes_nothing_and_is_told_once(reader: Reader) -> None:
    """What was read stays while the file is cut short; that is said once, however often it changes, and that it is
    whole again."""
    whole = body(OLD, NEW)
    reader.path.write_bytes(whole[:40])
    until(lambda: reader.said, 10, "the complaint")
    for cut in range(41, 60):
        reader.path.write_bytes(whole[:cut])
        reader.file.look()
    assert len(reader.said) == 1
    assert str(reader.path) in reader.said[0]
    assert "stay" in reader.said[0]
    assert reader.seen == [("old",)]
    reader.path.write_bytes(whole)
    until(lambda: reader.seen[-1] == ("old", "new"), 10, "the whole file")
    assert len(reader.said) == 2
    assert "again" in reader.said[1]


def test_a_writer_who_is_quick_is_not_complained_of(tmp_path: Path) -> None:
    """A file that is cut short at one look and whole at the next is no news but for its entries."""
    reader = Reader(write(tmp_path / "entries.json", OLD))
    reader.file._take(read(str(reader.path)), None)
    reader.path.write_bytes(body(NEW)[:40])
    reader.file.look()
    reader.path.write_bytes(body(NEW))
    reader.file.look()
    assert reader.seen == [("old",), ("new",)]
    assert reader.said == []


def test_a_file_that_goes_away_changes_nothing(reader: Reader) -> None:
    """Entries stay when their file is removed, or something else stands there; it is read when it is back."""
    reader.path.unlink()
    until(lambda: reader.said, 10, "the complaint")
    reader.path.mkdir()
    reader.file.look()
    assert reader.seen == [("old",)]
    reader.path.rmdir()
    write(reader.path, NEW)
    until(lambda: reader.seen[-1] == ("new",), 10, "the file that is back")
    assert len(reader.said) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "empty"),
        (b"\x7fELF" + bytes(range(256)), "not UTF-8"),
        (b'{"entries": [', "truncated"),
        (b'{"items": []}', "no entries"),
    ],
)
def test_a_file_that_is_none_of_entries_is_an_error_that_names_it(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    """Missing, empty, binary, cut short or of another shape: one error, with the path."""
    path = tmp_path / "entries.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        EntriesFile(str(path), on_entries=lambda _entries: None, warn=print).start()
    assert said in caught.value.what
    assert caught.value.obj == str(path)


def test_a_huge_file_is_refused_without_being_read_whole(tmp_path: Path) -> None:
    """100 MB are refused by their size; a directory and a path that cannot be are errors as well."""
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    assert path.stat().st_size > MOST_BYTES
    with pytest.raises(InputError, match="larger than 64 MiB"):
        read(str(path))
    for odd in (str(tmp_path), "a\0b"):
        with pytest.raises(InputError):
            read(odd)


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """Entries may come through a pipe, as a shell's process substitution has it; that is not watched."""
    ours, theirs = os.pipe()
    os.write(theirs, body(OLD))
    os.close(theirs)
    reader = Reader(Path(f"/dev/fd/{ours}"))
    reader.file.start()
    reader.file.stop()
    os.close(ours)
    assert reader.seen == [("old",)]
    assert reader.file._thread is None
