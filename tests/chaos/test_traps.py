"""Orders are carried out once, at the moment that they name, and faults that the harness draws can all be made to happen."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest

from freerun.chaos import faults, traps
from freerun.chaos.traps import Order, Trap


def order(**changes):
    return Order(**{"number": 1, "role": "trainer", "moment": "update", "action": "flood", **changes})


def test_an_order_is_carried_out_once_at_the_pass_that_it_names(tmp_path):
    trap, other = (Trap(tmp_path, "trainer", moment) for moment in ("update", "checkpoint"))
    assert trap.spring() == ""
    traps.give(tmp_path, order(skip=2))
    assert [other.spring() for _ in range(5)] == [""] * 5
    assert traps.carried_out(tmp_path, 1) is None
    assert [trap.spring() for _ in range(5)] == ["", "", "flood", "", ""]
    assert traps.carried_out(tmp_path, 1) <= traps.CLOCK()
    traps.give(tmp_path, order(number=2, skip=1))
    assert [trap.spring() for _ in range(3)] == ["", "flood", ""], "an order counts its own passes"


def test_what_was_withdrawn_is_not_carried_out(tmp_path):
    trap = Trap(tmp_path, "trainer", "update")
    traps.give(tmp_path, order())
    traps.withdraw(tmp_path)
    traps.withdraw(tmp_path)
    assert trap.spring() == ""


def test_of_two_processes_at_the_same_moment_one_carries_the_order_out(tmp_path):
    first, second = (Trap(tmp_path, "trainer", "update") for _ in range(2))
    traps.give(tmp_path, order())
    assert sorted([first.spring(), second.spring()]) == ["", "flood"]


@pytest.mark.parametrize("action, number", [("full", 28), ("read-only", 30)])
def test_a_bad_disk_raises_what_the_kernel_would(action, number, tmp_path):
    traps.give(tmp_path, order(action=action))
    with pytest.raises(OSError) as raised:
        Trap(tmp_path, "trainer", "update").spring()
    assert raised.value.errno == number


def test_a_trapped_function_does_its_work_and_is_passed_before_and_after(tmp_path):
    trap = Trap(tmp_path, "trainer", "update")
    calls = []

    def sync(value):
        calls.append(value)
        return value + 1

    async def overlapping(value):
        return sync(value)

    assert traps.trapped(sync, trap)(1) == 2
    assert asyncio.run(traps.trapped(overlapping, trap)(2)) == 3
    for skip, done in ((0, []), (1, [5])):
        calls.clear()
        traps.give(tmp_path, order(number=skip + 7, skip=skip, action="error"))
        with pytest.raises(RuntimeError, match="made to fail"):
            traps.trapped(sync, trap)(5)
        assert calls == done


@dataclass(frozen=True)
class Task:
    asynchronous: bool

    def build(self):
        return self

    def reward(self, prompt, completion, meta):
        return 0.5


class Awaited(Task):
    async def reward(self, prompt, completion, meta):
        return 0.5


@pytest.mark.parametrize("kind", [Task, Awaited])
def test_a_bad_verifier_returns_nonsense_and_says_too_much_when_told_and_else_the_reward(kind, tmp_path, monkeypatch):
    monkeypatch.setenv(traps.DIRECTORY, str(tmp_path))
    reward = traps.BadTask(kind(False)).build().reward

    def judged():
        found = reward("p", "c", {})
        return asyncio.run(found) if asyncio.iscoroutine(found) else found

    assert judged() == 0.5
    traps.give(tmp_path, order(role="verifier", moment="verifier", action="garbage"))
    assert str(judged()) == "nan"
    traps.give(tmp_path, order(number=2, role="verifier", moment="verifier", action="flood"))
    assert len(judged().info["said"]) == traps.FLOOD
    traps.give(tmp_path, order(number=3, role="verifier", moment="verifier", action="error"))
    with pytest.raises(RuntimeError):
        judged()
    assert judged() == 0.5


@pytest.mark.parametrize("place", [place for places in traps.POINTS.values() for place in places])
def test_every_trap_is_laid_around_a_function_that_exists(place):
    if "monarch" in place:
        pytest.importorskip("monarch", reason="torchmonarch is not installed")
    owner, name = traps.found(place)
    assert callable(vars(owner)[name])


@pytest.mark.slow
def test_a_process_that_is_made_to_kill_itself_has_written_down_when(tmp_path):
    script = "from freerun.chaos import traps; import os; traps.lay('disk'); os.fsync(0)"
    environment = {**os.environ, traps.DIRECTORY: str(tmp_path)}
    traps.give(tmp_path, order(role="disk", moment="disk", action="kill"))
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert traps.carried_out(tmp_path, 1) <= traps.CLOCK()


def test_every_fault_with_a_moment_has_a_trap_or_is_provoked_by_the_harness():
    provoked = {("controller", "start")}
    for fault in faults.WEIGHTS:
        if fault.moment not in (faults.ANY, "verifier"):
            assert (fault.target, fault.moment) in traps.POINTS.keys() | provoked, fault


def test_every_executor_and_the_controller_is_killed_frozen_and_delayed_also_at_the_moments_that_matter():
    done = {
        target: {fault.action for fault in faults.WEIGHTS if fault.target == target}
        for target in ("generator", "rewarder", "trainer", "controller")
    }
    assert all({"kill", "freeze", "delay"} <= actions for actions in done.values())
    assert "interrupt" in done["controller"]
    for action in ("kill", "freeze"):
        moments = {(fault.target, fault.moment) for fault in faults.WEIGHTS if fault.action == action}
        assert moments >= {
            *(("trainer", moment) for moment in ("publication", "checkpoint", "update", "shutdown")),
            *(("controller", moment) for moment in ("publication", "checkpoint", "admission")),
            *(("generator", moment) for moment in ("reading weights", "generation", "shutdown")),
            *(("rewarder", moment) for moment in ("scoring", "shutdown")),
        }, action
    assert {fault.action for fault in faults.WEIGHTS if fault.target == "verifier"} == {"error", "hang", "garbage", "flood"}
    assert {fault.action for fault in faults.WEIGHTS if fault.target == "disk"} == {"full", "read-only", "delay"}


@pytest.mark.parametrize("fault", faults.WEIGHTS, ids=str)
def test_what_a_run_has_to_do_about_a_fault_follows_from_who_it_is_done_to(fault):
    if fault.action in ("kill", "freeze") and fault.moment != "shutdown":
        assert fault.effect == ("end" if fault.names & {"trainer", "controller"} else "heal")
    if fault.action in ("full", "read-only", "corrupt", "interrupt", "garbage"):
        assert fault.effect == "end"
    if fault.action in ("delay", "hang", "flood"):
        assert fault.effect == "go on"


def test_a_seed_fixes_the_faults_and_the_first_are_all_of_them():
    first, again, other = (list(itertools.islice(faults.drawn(seed), 200)) for seed in (3, 3, 4))
    assert first == again != other
    assert set(first[: len(faults.WEIGHTS)]) == set(faults.WEIGHTS)
