"""The audit finds what was lost, repeated or replaced, and nothing in a run that was neither."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from freerun.chaos import faults, show
from freerun.chaos.attempt import Tail
from freerun.chaos.audit import Ledger
from freerun.chaos.faults import Fault
from freerun.chaos.harness import Cycle, RunResult, line
from freerun.encoding import encode_group
from freerun.store.journal import Journal
from freerun.types import Group, Prompt, RewardResult, Stop, Trajectory

STEPS, GROUPS = 3, 2


def group(item, text="a"):
    one = torch.ones(1)
    trajectory = Trajectory(
        tokens_T=one.long(), action_T=one.bool(), logp_T=-one, version_T=one.int(), text=f"{text}{item}", stop=Stop.EOS
    )
    return Group(item=item, prompt=Prompt("u", "p"), trajectories=(trajectory,), rewards=(RewardResult(1.0),))


class Story:
    """A run's records: three steps of two groups, all journalled and all trained."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.samples = [{"step": 1 + i // GROUPS, "item": i, "completion": f"a{i}"} for i in range(STEPS * GROUPS)]
        self.steps = [{"step": s, "metrics": {"items/trained": float(s * GROUPS)}} for s in range(1, STEPS + 1)]
        self.groups = [group(i) for i in range(STEPS * GROUPS)]
        self.dropped = []

    def audit(self):
        for name, rows in (("samples.jsonl", self.samples), ("metrics.jsonl", self.steps)):
            (self.directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        (self.directory / "journal").unlink(missing_ok=True)
        journal = Journal(self.directory / "journal", fsync_every=0)
        for one in self.groups:
            journal.finished(one.item, "u", 1, encode_group(one))
        for item in self.dropped:
            journal.dropped(item, "u", "timeout")
        journal.close()
        return Ledger(self.directory).audit()


@pytest.fixture
def story(tmp_path):
    return Story(tmp_path)


def found(finding):
    return [bool(finding.lost), bool(finding.repeated), bool(finding.unlike)]


def test_a_run_in_which_every_item_was_trained_once_or_dropped_is_found_in_order(story):
    assert found(story.audit()) == [False, False, False]
    story.samples = [row for row in story.samples if row["item"] != 3]
    story.steps[-1]["metrics"]["items/trained"] = 5.0
    story.groups = [one for one in story.groups if one.item != 3]
    story.dropped = [3]
    assert found(story.audit()) == [False, False, False]


def test_an_item_that_nobody_trained_on_is_lost(story):
    story.samples = [row for row in story.samples if row["item"] != 3]
    assert "item 3 neither trained nor dropped" in story.audit().lost


def test_a_step_that_is_missing_is_lost(story):
    del story.steps[1]
    assert "steps [2]" in story.audit().lost


def test_an_item_trained_twice_is_repeated(story):
    story.samples.append({"step": 3, "item": 0, "completion": "a0"})
    assert story.audit().repeated == ["item 0 trained 2 times"]


def test_an_item_generated_again_after_it_was_finished_is_repeated_even_if_it_came_out_the_same(story):
    story.groups.append(group(2))
    assert story.audit().repeated == ["item 2 generated again after it was finished"]


def test_an_item_whose_record_changes_from_one_look_to_the_next_is_repeated_unless_the_journal_was_hurt(story):
    story.audit()
    ledger, path = Ledger(story.directory), story.directory / "journal"
    ledger.note(path)
    story.groups[2] = group(2, text="b")
    story.samples[2]["completion"] = "b2"
    story.audit()
    assert ledger.audit().repeated == ["item 2 generated again after it was finished"]
    forgiving = Ledger(story.directory)
    forgiving.forgive(path)
    assert found(forgiving.audit()) == [False, False, False]


def test_an_item_trained_on_something_else_than_was_finished_is_found(story):
    story.samples[4]["completion"] = "something else"
    assert story.audit().unlike == ["item 4 of step 3"]


def test_a_damaged_journal_is_read_as_far_as_it_can_be(story):
    story.audit()
    data = bytearray((story.directory / "journal").read_bytes())
    data[len(data) // 2] ^= 1
    (story.directory / "journal").write_bytes(data)
    assert found(Ledger(story.directory).audit()) == [False, False, False]


def test_a_tail_gives_lines_once_and_what_a_new_file_begins_with_not_at_all(tmp_path):
    path = tmp_path / "log"
    tail = Tail(path)
    assert tail.lines() == []
    path.write_text("a\nb")
    assert tail.lines() == [b"a"]
    with path.open("a") as file:
        file.write("c\nd\n")
    assert tail.lines() == [b"bc", b"d"]
    (tmp_path / "new").write_text("a\nbc\n")
    (tmp_path / "new").rename(path)
    assert tail.lines() == []
    with path.open("a") as file:
        file.write("e\n")
    assert tail.lines() == [b"e"]


def test_a_summary_counts_outcomes_by_fault_and_charges_what_was_lost_to_every_fault_of_the_run():
    kill = Cycle(Fault("generator", "kill"), "healed", noticed=0.1, healed=4.0)
    cycles = [
        kill,
        replace(kill, healed=6.0),
        replace(kill, outcome="missed"),
        Cycle(Fault("trainer", "freeze"), "resumed", 5.0, 9.0),
    ]
    run = RunResult(seed=1, cycles=cycles, attempts=2, seconds=9.0, lost=["item 3"], repeated=[], unlike=[])
    data = json.loads(json.dumps(show.summary([run], {"recipe": "r"})))
    generator, trainer = data["faults"]
    assert [generator[name] for name in show.COUNTS] == [2, 2, 0, 0, 2, 0, 0, 0]
    assert [trainer[name] for name in show.COUNTS] == [1, 0, 1, 0, 1, 0, 0, 0]
    assert generator["heal"] == {"number": 2, "median": 5.0, "max": 6.0}
    assert (data["cycles"], data["missed"], data["lost"], data["attempts"]) == (3, 1, ["item 3"], 2)
    assert show.table(data).row_count == 3


def test_a_line_of_a_cycle_says_the_times_that_there_are_and_no_others():
    kill = Fault("generator", "kill")
    assert line(Cycle(kill, "healed", 0.1, 4.0)) == "kill generator (any): healed, noticed after 0.10 s, going on after 4.0 s"
    assert line(Cycle(Fault("verifier", "flood", "verifier"), "healed")) == "flood verifier (verifier): healed"
    bad = Cycle(Fault("disk", "full", "disk"), "finished", noticed=5.5, leaked=["file a", "process 3"], silent=True)
    assert line(bad) == "full disk (disk): finished, noticed after 5.50 s, LEAKED file a; process 3, SILENT"


@pytest.mark.parametrize("terminal", [False, True])
def test_the_table_of_all_faults_is_readable_in_80_columns_with_a_line_for_each(terminal):
    cycles = [Cycle(fault, "healed", noticed=123.4, healed=234.5, leaked=["process 3"]) for fault in faults.WEIGHTS] * 100
    run = RunResult(seed=1, cycles=cycles, attempts=2, seconds=9.0, lost=["item 3"], repeated=[], unlike=[])
    data = show.summary([run], {"recipe": "r"})
    console = Console(width=80, file=io.StringIO(), force_terminal=terminal, no_color=True)
    console.print(show.table(data))
    lines = re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue()).splitlines()
    assert len(lines) == len(faults.WEIGHTS) + 2
    assert lines[0].split() == ["fault", "hit", "healed", "resumed", "ended", "wrong", "notice", "heal"]
    for row, text in zip(data["faults"], lines[1:], strict=False):
        moment = "" if row["moment"] == "any" else f", {row['moment']}"
        assert text.split("  ")[0].strip() == f"{row['action']} {row['target']}{moment}"
        assert text.split()[-7:] == ["100", "100", "0", "0", "200", "123.4s", "234.5s"]


def test_the_verdict_counts_each_thing_that_must_not_happen():
    cycles = [Cycle(Fault("disk", "full", "disk"), "resumed", leaked=["file a", "file b"], silent=True)]
    run = RunResult(seed=1, cycles=cycles, attempts=2, seconds=9.0, lost=["item 3"], repeated=["item 4"], unlike=["item 5"])
    data = show.summary([run], {"recipe": "r"})
    assert show.verdict(data) == "1 cycles in 1 runs: 1 lost, 2 repeated, 2 leaked, 1 silent"
