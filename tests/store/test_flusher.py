"""Flushing behind the back of whoever writes: nothing is left unflushed, writes share a flush, an error is not lost."""

import os
import threading
from pathlib import Path

import pytest

from freerun.errors import CheckpointError
from freerun.store.flusher import Flusher
from freerun.store.journal import Journal, read


def test_what_is_written_while_a_flush_goes_on_shares_the_next_one() -> None:
    flushes, begun, go = [], threading.Event(), threading.Event()

    def flush() -> None:
        flushes.append(1)
        begun.set()
        go.wait(20)

    flusher = Flusher(flush)
    flusher.written()
    begun.wait(20)
    for _ in range(100):
        flusher.written()
    go.set()
    flusher.stop()
    assert len(flushes) == 2


def test_stopping_flushes_what_is_left_and_ends_the_thread() -> None:
    flushed = threading.Event()
    flusher = Flusher(flushed.set)
    flusher.written()
    flusher.stop()
    assert flushed.is_set() and not flusher._thread.is_alive()
    Flusher(flushed.clear).stop()
    assert flushed.is_set(), "nothing was written"


def test_a_flush_that_fails_is_told_to_the_next_writer() -> None:
    failed = threading.Event()

    def flush() -> None:
        failed.set()
        raise OSError(28, "full")

    flusher = Flusher(flush)
    flusher.written()
    flusher._thread.join(20)
    assert failed.is_set()
    with pytest.raises(OSError, match="full"):
        flusher.written()
    flusher.stop()


def test_a_journal_that_flushes_behind_has_every_record_in_its_file_at_once_and_survives_being_shortened(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path / "journal", behind=True)
    for item in range(50):
        journal.finished(item, "u", 0, b"x" * 1000)
        assert [record.item for record in journal.records()][-1] == item
        if item % 20 == 19:
            journal.compact(lambda kept, item=item: kept == item)
    journal.close()
    assert [record.item for record in read(tmp_path / "journal")] == [39, *range(40, 50)]


def test_a_journal_whose_disk_fails_behind_its_back_says_so_at_the_next_record(tmp_path: Path, monkeypatch) -> None:
    journal = Journal(tmp_path / "journal", behind=True)

    def fail(descriptor: int) -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    journal.finished(0, "u", 0, b"x")
    journal._flusher._thread.join(20)
    with pytest.raises(CheckpointError, match="input/output error"):
        journal.finished(1, "u", 0, b"x")
    assert [record.item for record in journal.records()] == [0]
    journal.close()
