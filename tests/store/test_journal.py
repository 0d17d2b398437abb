"""The journal file: what is written is read, a torn end is cut and reported, damage is an error; and recovery from it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freerun.errors import CheckpointError
from freerun.store.admission import Admission, State
from freerun.store.journal import MAGIC, Journal, Record
from freerun.store.recovery import Recovery, needed_by


@contextmanager
def opened(path: Path, **options: int) -> Iterator[Journal]:
    journal = Journal(path, **options)
    try:
        yield journal
    finally:
        journal.close()


def written(path: Path, num: int = 3) -> list[Record]:
    with opened(path) as journal:
        for item in range(num):
            journal.finished(item, f"prompt {item}", 7 + item, f"payload\n{item}".encode())
        return list(journal.records())


@given(st.lists(st.tuples(st.text(), st.integers(-1, 10**9), st.binary(max_size=200)), max_size=8), st.integers(0, 3))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_appended_is_read_back_after_reopening(tmp_path: Path, entries: list, fsync_every: int) -> None:
    path = tmp_path / "journal"
    path.unlink(missing_ok=True)
    expected = []
    for half in (entries[:4], entries[4:]):
        with opened(path, fsync_every=fsync_every) as journal:
            for item, (text, oldest, payload) in enumerate(half):
                journal.finished(item, text, oldest, payload)
                journal.dropped(item, text, f"reason {text}")
                expected += [
                    Record(item=item, uid=text, oldest=oldest, payload=payload),
                    Record(item=item, uid=text, reason=f"reason {text}"),
                ]
            assert list(journal.records()) == expected and journal.cut == ""


def test_wherever_a_crash_cuts_the_file_whole_records_stay_and_the_rest_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    records = written(path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with opened(path, fsync_every=0) as journal:
            left = list(journal.records())
            assert left == records[: len(left)] and len(left) < 3
            assert bool(journal.cut) == (size > len(MAGIC) and path.stat().st_size < size)
            journal.dropped(9, "prompt 9", "later")
            assert list(journal.records()) == [*left, Record(item=9, uid="prompt 9", reason="later")]


def test_a_tail_of_zeros_or_of_a_half_written_block_is_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    records = written(path)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(5000))
    with opened(path) as journal:
        assert list(journal.records()) == records and "5000 bytes" in journal.cut
    path.write_bytes(whole[:-4] + bytes(4))
    with opened(path) as journal:
        assert list(journal.records()) == records[:2] and journal.cut


@pytest.mark.parametrize("where", ["magic", "header", "body"])
def test_damage_before_the_end_is_an_error_that_names_the_place(tmp_path: Path, where: str) -> None:
    path = tmp_path / "journal"
    written(path)
    damaged = bytearray(path.read_bytes())
    damaged[{"magic": 2, "header": len(MAGIC) + 1, "body": len(MAGIC) + 20}[where]] ^= 0x40
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"journal, byte \d+"):
        Journal(path)
    assert path.read_bytes() == damaged


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    records = written(path)

    class FullDisk:
        """Writes ten bytes, then there is no room."""

        def __init__(self, file) -> None:
            self.file, self.truncate, self.seek, self.close = file, file.truncate, file.seek, file.close

        def write(self, data: bytes) -> int:
            return self.file.write(data[:10])

    with opened(path) as journal:
        monkeypatch.setattr(journal, "_file", FullDisk(journal._file))
        with pytest.raises(CheckpointError, match="make room"):
            journal.finished(3, "prompt 3", 0, b"payload")
        assert list(journal.records()) == records


def test_compaction_keeps_what_a_recovery_could_ask_for_and_appends_go_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    admission = Admission(batch=1, max_lag=1)
    with opened(path) as journal:
        for item in range(2):
            admission.admit(f"prompt {item}")
            admission.begin(item, 0)
            journal.finished(item, f"prompt {item}", 0, b"payload")
            admission.finish(item, 0)
        journal.finished(2, "prompt 2", 0, b"from a life that went further")
        admission.trained(admission.take(1, 0), 1)
        admission.published(1)
        journal.compact(needed_by(admission.state()))
        journal.dropped(2, "prompt 2", "a reason")
    with opened(path) as journal:
        assert [record.item for record in journal.records()] == [1, 2, 2]
    assert list(tmp_path.iterdir()) == [path]


def admitted(num: int, **options: int) -> Admission:
    admission = Admission(**{"batch": 2, "max_lag": 1, **options})
    for item in range(num):
        admission.admit(f"prompt {item}")
        admission.begin(item, 0)
    return admission


def finished(item: int, oldest: int = 0, **fields: object) -> Record:
    return Record(item=item, uid=f"prompt {item}", oldest=oldest, payload=b"group", **fields)


def test_recovery_is_the_table_in_its_documentation() -> None:
    admission = admitted(4)
    admission.finish(0, 0)
    admission.finish(1, 0)
    admission.trained(admission.take(2, 0), 1)
    admission.published(1)
    for item in (4, 5):
        admission.admit(f"prompt {item}")
    admission.finish(2, 0)
    state = json.loads(json.dumps(admission.state()))
    # Since then: 2 was stored already, 3 finished, 4 was dropped; 6 and 7, admitted later, finished and were dropped; 5 runs.
    records = [
        finished(0),
        finished(2),
        finished(3),
        Record(item=4, uid="prompt 4", reason="timeout"),
        finished(6, oldest=2),
        finished(7),
        Record(item=7, uid="prompt 7", reason="timeout"),
    ]
    recovery = Recovery(state, records)
    assert sorted(recovery.stored) == [2, 3] and recovery.waiting == [5]
    assert recovery.stored[3].payload == b"group"
    assert recovery.admission.ledger.outcome(0) == 1 and recovery.admission.ledger.outcome(4) == "timeout"
    recovery.admission.audit()

    assert recovery.admission.admit("prompt 6") == 6  # the slot of the one that was dropped
    assert recovery.settle(6) == records[4] and recovery.admission.items[6].state == State.STORED
    recovery.admission.trained(recovery.admission.take(2, 1), 2)
    recovery.admission.published(2)
    assert recovery.admission.admit("prompt 7") == 7
    assert recovery.settle(7).reason == "timeout" and 7 not in recovery.admission.items
    assert recovery.admission.admit("prompt 8") == 8 and recovery.settle(8) is None
    recovery.admission.audit()


def test_a_stored_item_needs_its_payload_from_the_checkpoint_or_the_journal() -> None:
    admission = admitted(3)
    for item in range(3):
        admission.finish(item, 0)
    recovery = Recovery(admission.state(), [finished(1)], held={0})
    assert [entry.state for entry in recovery.admission.items.values()] == ["stored", "stored", "waiting"]
    assert sorted(recovery.stored) == [1] and recovery.waiting == [2]


def test_an_item_too_old_for_the_bound_is_generated_again() -> None:
    recovery = Recovery(admitted(4).state(), [finished(8), finished(9, oldest=2)])
    admission = recovery.admission
    for version in range(1, 4):
        for item, entry in list(admission.items.items()):
            if entry.state == State.WAITING:
                admission.begin(item, admission.published_version)
                admission.finish(item, admission.published_version)
        admission.trained(admission.take(2, version - 1), version)
        admission.published(version)
        for _ in range(2):
            admission.admit(f"prompt {admission.next_item}")
    assert recovery.settle(8) is None and recovery.too_old == 1  # at lag 1, item 8 needs version 3 or newer
    assert admission.items[8].state == State.WAITING


def test_a_journal_of_other_prompts_is_refused() -> None:
    with pytest.raises(CheckpointError, match="another prompt"):
        Recovery(admitted(1).state(), [Record(item=0, uid="something else", oldest=0)])


@pytest.mark.parametrize(("number", "todo"), [(28, "make room"), (30, "check the path, its permissions and the disk")])
def test_a_journal_that_cannot_be_opened_is_one_clear_error(tmp_path: Path, monkeypatch, number: int, todo: str) -> None:
    def refused(path: Path, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", refused)
    with pytest.raises(CheckpointError, match="could not be opened") as raised:
        Journal(tmp_path / "journal")
    assert raised.value.todo == todo
