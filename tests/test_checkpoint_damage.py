"""Checkpoints and journals that a crash, a bad disk or a full one has hurt: what is damaged is known, what is whole is used."""

import asyncio
import json
import random
import shutil

import pytest
from fakes import Trainer, small
from test_intake import started, trained

from freerun.checkpoint import (
    GROUPS,
    JOURNAL,
    MANIFEST,
    REPLAY,
    Checkpoints,
    _manifest,
    _seal,
    damage_of,
    restore_controller,
)
from freerun.errors import CheckpointError, ExecutorDied
from freerun.store.journal import MAGIC, Journal, mend, read, salvaged


@pytest.fixture
def two(tmp_path):
    """A directory with two checkpoints of a few files each."""
    for step in (4, 8):
        path = tmp_path / f"step-{step:08d}"
        (path / "trainer").mkdir(parents=True)
        (path / "trainer" / "policy.safetensors").write_bytes(bytes(range(48)))
        (path / "controller.json").write_text(json.dumps({"step": step}))
        (path / GROUPS).write_bytes(MAGIC)
        _seal(path)
    return Checkpoints(tmp_path)


def used(checkpoints):
    """Name of the checkpoint that a resume would use, and what it says about others."""
    path, passed = checkpoints.newest_whole()
    return path.name, passed


def test_a_checkpoint_whose_index_is_cut_at_any_byte_is_passed_over_by_name(two):
    assert used(two) == ("step-00000008", [])
    index = two.all()[-1] / MANIFEST
    whole = index.read_bytes()
    for size in range(len(whole)):
        index.write_bytes(whole[:size])
        name, (reason,) = used(two)
        assert name == "step-00000004" and reason.startswith(f"step-00000008: {MANIFEST} cannot be read")
    index.unlink()
    assert used(two)[0] == "step-00000004"


@pytest.mark.parametrize("name", ["../../secret", "trainer/../../../secret", "absolute"])
def test_an_index_that_names_files_elsewhere_is_passed_over_and_they_are_not_read(name, two, tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    index = two.all()[-1] / MANIFEST
    files = json.loads(index.read_text())["files"]
    name = str(secret) if name == "absolute" else name
    index.write_bytes(_manifest({name: "0" * 64, **files}))
    read = []
    monkeypatch.setattr("freerun.checkpoint._digest", lambda path: read.append(path) or "")
    (reason,) = [damage_of(two.all()[-1])]
    assert reason == f"{name} is no name of a file in it" and read == []


def test_a_checkpoint_with_any_flipped_byte_is_passed_over_and_the_file_is_named(two):
    newest = two.all()[-1]
    draw, flips = random.Random(0), 0
    for file in sorted(p for p in newest.rglob("*") if p.is_file()):
        whole = file.read_bytes()
        for at in range(len(whole)):
            # One bit, and one of the other values: a space that becomes a tab leaves JSON what it was.
            for flip in {1 << at % 8, draw.randrange(1, 256)}:
                file.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
                assert file.name in damage_of(newest)
                flips += 1
        file.write_bytes(whole)
    assert flips > 800
    assert used(two) == ("step-00000008", [])


def test_a_checkpoint_that_lost_any_file_or_grew_is_passed_over(two):
    newest = two.all()[-1]
    for file in sorted(p for p in newest.rglob("*") if p.is_file()):
        whole = file.read_bytes()
        file.unlink()
        assert damage_of(newest)
        file.write_bytes(whole + b"\0")
        assert damage_of(newest)
        file.write_bytes(whole)


def test_with_no_whole_checkpoint_left_every_reason_is_given(two):
    for path in two.all():
        (path / "controller.json").write_text("")
    with pytest.raises(CheckpointError, match=r"(?s)step-00000008: controller.json.*step-00000004: controller.json"):
        two.newest_whole()


def test_what_was_passed_over_is_set_aside_and_what_was_half_written_goes(two):
    older, newest = two.all()
    (two.directory / ".attempt-00000009-1").mkdir()
    (newest / "controller.json").write_text("")
    two.clean(older)
    assert sorted(p.name for p in two.directory.iterdir()) == ["damaged-00000008", "step-00000004"]
    two.clean(older)
    assert two.all() == [older]


class Durable(Trainer):
    """Saves what it trained on."""

    def save(self, directory):
        with open(f"{directory}/trainer.json", "w") as file:
            json.dump([self.version, self.log], file)

    def load(self, directory):
        with open(f"{directory}/trainer.json") as file:
            self.version, self.log = json.load(file)


CONFIG = small(eval_every=0, final_eval_prompts=0, checkpoint_every=2)


def run(directory, *, keep=2, journal=True, hurt=None, trainer=(Durable,)):
    """Run, or resume, a job of twelve steps below `directory`; `hurt(checkpoints)` may do damage before each save."""

    async def go():
        checkpoints = Checkpoints(directory / "checkpoints", keep=keep)
        newest, _ = checkpoints.newest_whole() if checkpoints.all() else (None, [])
        checkpoints.clean(newest)
        mend(directory / JOURNAL)
        file = Journal(directory / JOURNAL) if journal else None

        async def save(controller):
            if hurt is not None:
                hurt(controller.step, checkpoints)
            await checkpoints.save(controller)

        place, controller = await started(CONFIG, trainer=trainer, journal=file, save=save)
        try:
            if newest is not None:
                await controller.trainer.call("load", str(newest / "trainer"), deadline=5.0)
                restore_controller(controller, newest)
            elif journal:
                restore_controller(controller, None)
            await controller.run()
            return trained(await controller.trainer.call("history", deadline=5.0))
        finally:
            await place.stop()
            if file is not None:
                file.close()

    return asyncio.run(asyncio.wait_for(go(), 60))


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_checkpoints_are_kept_and_no_others(keep, tmp_path):
    run(tmp_path, keep=keep)
    names = [path.name for path in Checkpoints(tmp_path / "checkpoints").all()]
    assert names == ["step-00000008", "step-00000010", "step-00000012"][-keep:]


class Crash(Exception):
    """Stands for a process that is killed."""


def crashed(directory, step, **options):
    """A run that crashes when it is about to save the checkpoint of `step`."""

    def crash(now, checkpoints):
        if now == step:
            raise Crash

    with pytest.raises(Crash):
        run(directory, hurt=crash, **options)
    return Checkpoints(directory / "checkpoints").all()


@pytest.mark.parametrize("damaged", [1, 2])
def test_whichever_of_the_kept_checkpoints_a_run_resumes_from_it_trains_every_item_once(damaged, tmp_path):
    kept = crashed(tmp_path, 10, keep=3)
    assert [p.name for p in kept] == ["step-00000004", "step-00000006", "step-00000008"]
    for path in kept[-damaged:]:
        (path / MANIFEST).write_bytes((path / MANIFEST).read_bytes()[:-1])
    assert sorted(run(tmp_path, keep=3)) == list(range(36))
    assert not list((tmp_path / "checkpoints").glob("damaged-*"))


def test_an_oldest_checkpoint_that_cannot_be_read_costs_no_record_of_the_journal(tmp_path):
    def hurt(step, checkpoints):
        if step == 8:
            (checkpoints.all()[-1] / "controller.json").write_text("{")  # the oldest, once that of step 8 is written
        if step == 10:
            raise Crash

    with pytest.raises(Crash):
        run(tmp_path, hurt=hurt)
    assert sorted(run(tmp_path)) == list(range(36))


def test_a_checkpoint_that_is_there_is_not_written_again(tmp_path):
    run(tmp_path)
    newest = Checkpoints(tmp_path / "checkpoints").all()[-1]
    before = (newest / MANIFEST).stat().st_ino
    run(tmp_path)  # resumed at its last step, it has nothing to do
    assert (newest / MANIFEST).stat().st_ino == before


class Mortal(Durable):
    """Dies when it saves for the third time."""

    def __init__(self, saves):
        super().__init__()
        self._saves = saves

    def save(self, directory):
        self._saves.append(directory)
        super().save(directory)
        if len(self._saves) == 3:
            raise SystemExit(9)


def test_a_trainer_that_dies_while_it_saves_is_said_to_have_died_and_leaves_no_attempt(tmp_path):
    with pytest.raises(ExecutorDied, match="exit status 9"):
        run(tmp_path, trainer=(Mortal, []))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    assert sorted(run(tmp_path)) == list(range(36))


# --- the journal --------------------------------------------------------------------------------------------------------------


def journalled(path, num=3):
    file = Journal(path, fsync_every=0)
    for item in range(num):
        file.finished(item, f"prompt {item}", item, f"payload\n{item}".encode())
    file.close()
    return path.read_bytes(), read(path)


def test_any_flipped_byte_of_a_journal_costs_at_most_the_record_that_it_is_in(tmp_path):
    whole, records = journalled(tmp_path / JOURNAL)
    bodies = list(salvaged(whole))
    assert len(bodies) == len(records) == 3
    for at in range(len(whole)):
        for bit in range(8):
            left = list(salvaged(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]))
            assert len(left) >= (2 if at >= len(MAGIC) else 3)
            assert [body for body in bodies if body in left] == left


def test_a_journal_cut_at_any_byte_or_with_a_stretch_missing_keeps_what_is_whole(tmp_path):
    whole, _ = journalled(tmp_path / JOURNAL)
    bodies = list(salvaged(whole))
    for at in range(len(whole)):
        assert list(salvaged(whole[:at])) == bodies[: len(list(salvaged(whole[:at])))]
        assert len(list(salvaged(whole[:at] + whole[at + 5 :]))) >= 1


@pytest.mark.parametrize("where", [3, len(MAGIC) + 2, len(MAGIC) + 30])
def test_a_damaged_journal_is_mended_and_the_damaged_file_kept(where, tmp_path):
    path = tmp_path / JOURNAL
    whole, records = journalled(path)
    damaged = bytearray(whole)
    damaged[where] ^= 0x10
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="damaged"):
        Journal(path)
    assert "records are whole" in mend(path)
    assert read(path) == records[len(MAGIC) <= where :]
    assert (tmp_path / "journal.damaged").read_bytes() == damaged
    assert mend(path) == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["journal", "journal.damaged"]


def test_a_whole_or_torn_journal_needs_no_mending(tmp_path):
    path = tmp_path / JOURNAL
    whole, _ = journalled(path)
    for size in (0, 5, len(whole) - 3, len(whole)):
        path.write_bytes(whole[:size])
        assert mend(path) == ""
        assert path.stat().st_size == size
    assert mend(tmp_path / "nothing") == ""


@pytest.mark.parametrize("what", ["journal", "checkpoint"])
def test_after_a_bad_disk_every_item_is_still_trained_once(what, tmp_path):
    newest = crashed(tmp_path, 10)[-1]
    draw = random.Random(1)
    file = tmp_path / JOURNAL if what == "journal" else newest / REPLAY
    data = bytearray(file.read_bytes())
    for _ in range(5):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)
    assert sorted(run(tmp_path)) == list(range(36))


@pytest.mark.parametrize("error", ["full", "read-only"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_others_and_the_journal(error, tmp_path, monkeypatch):
    real = shutil.rmtree

    def refuse(directory):
        raise OSError(28 if error == "full" else 30, f"disk {error}")

    def hurt(step, checkpoints):
        if step == 8:
            monkeypatch.setattr("freerun.checkpoint._seal", refuse)
            if error == "read-only":
                monkeypatch.setattr(shutil, "rmtree", lambda path, **options: None)

    said = r"(?s)step 8 could not be written.*make room; still there: step-00000004, step-00000006"
    with pytest.raises(CheckpointError, match=said):
        run(tmp_path, hurt=hurt)
    monkeypatch.undo()
    assert shutil.rmtree is real
    assert [p.name for p in Checkpoints(tmp_path / "checkpoints").all()] == ["step-00000004", "step-00000006"]
    assert sorted(run(tmp_path)) == list(range(36))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000012"]
