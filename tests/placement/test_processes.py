"""The end of a process is told by the kernel, at once and with its cause: nobody has to look for it."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from freerun.placement import processes
from freerun.placement.processes import Process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are looked at twice a second")


def watched(how):
    """What is reported of a child that `how` ends, by somebody who never looks."""

    async def main():
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        told = []
        process = Process(child.pid, told.append)
        how(child)
        await process.ended.wait()
        process.forget()
        child.wait()
        return child.pid, told

    return asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_the_end_of_a_process_is_noticed_without_a_look_and_named_with_the_signal(number, monkeypatch):
    monkeypatch.setattr(processes, "POLL", 3600.0)
    pid, told = watched(lambda child: child.send_signal(number))
    assert told == [f"process {pid} ended, killed by {number.name}"]


def test_a_process_that_had_ended_before_it_was_watched_is_noticed_too(monkeypatch):
    monkeypatch.setattr(processes, "POLL", 3600.0)

    async def main():
        child, told = subprocess.Popen(["true"], start_new_session=True), []
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        process = Process(child.pid, told.append)
        await process.ended.wait()
        process.forget()
        child.wait()
        return told == [f"process {child.pid} ended with exit status 0"]

    assert asyncio.run(asyncio.wait_for(main(), 60))


def test_what_is_asked_after_an_end_takes_less_than_the_three_seconds_that_are_promised():
    asks = Process._on_end.__kwdefaults__["asks"]
    assert asks * processes.REAPED < 3.0 / 2


def test_a_process_that_is_stopped_is_killed_and_said_to_have_been(monkeypatch):
    monkeypatch.setattr(processes, "POLL", 0.01)
    monkeypatch.setattr(processes, "FROZEN", 0.1)
    pid, told = watched(lambda child: child.send_signal(signal.SIGSTOP))
    assert told == [f"process {pid} was stopped by a signal for 0.1 s, and then killed"]


def test_a_process_that_goes_on_in_time_is_left_alone(monkeypatch):
    monkeypatch.setattr(processes, "POLL", 0.01)
    monkeypatch.setattr(processes, "FROZEN", 3600.0)

    def stop_for_a_moment(child):
        child.send_signal(signal.SIGSTOP)
        while not processes._stopped(child.pid):
            pass
        child.send_signal(signal.SIGCONT)
        child.send_signal(signal.SIGTERM)

    pid, told = watched(stop_for_a_moment)
    assert told == [f"process {pid} ended, killed by SIGTERM"]
