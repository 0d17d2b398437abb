"""What is left of executors when their controller is killed."""

import asyncio
import json
import subprocess
import sys
import textwrap

import pytest
from dist.test_monarch import alive, gone

pytest.importorskip("monarch", reason="torchmonarch is not installed")

pytestmark = [pytest.mark.dist, pytest.mark.timeout(90)]


@pytest.mark.parametrize("preload", [[], ["fractions"]], ids=["each imports", "forked from one that has"])
def test_no_process_outlives_a_controller_that_is_killed(preload, tmp_path):
    script = tmp_path / "controller.py"
    script.write_text(
        f"PRELOAD = {preload}\n"
        + textwrap.dedent("""
        import asyncio, json, subprocess, sys
        from freerun.placement.base import ExecutorSpec
        from freerun.placement.monarch import MonarchPlacement

        class Busy:  # travels by value: it is defined in a script
            def child(self):
                return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid
            def spin(self):
                while True: pass

        async def main():
            placement = MonarchPlacement(preload=PRELOAD)
            handles = await placement.spawn([ExecutorSpec(name=n, factory=Busy) for n in "ab"])
            children = [await h.call("child", deadline=20) for h in handles.values()]
            nursery = [placement._nursery.process.pid] if PRELOAD else []
            print(json.dumps([*placement.pids().values(), *children, *nursery]), flush=True)
            await handles["a"].call("spin", deadline=600)

        asyncio.run(main())
    """)
    )
    controller = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        pids = json.loads(controller.stdout.readline())
        assert len(pids) == 4 + len(preload) and all(map(alive, pids))
    finally:
        controller.kill()
        rest = controller.stdout.read()
        controller.stdout.close()
        controller.wait()
    assert asyncio.run(gone(*pids))
    assert rest == ""
