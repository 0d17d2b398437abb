"""A worker of `kill_and_resume.py`: Freerun on the tiny job, begun or resumed in a folder, with a log of what it does.

python bench/peers/freerun_resume.py --folder DIR --steps 40 --every 5 --schedule threads
"""

import argparse
import asyncio
import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import tiny_job
from end_to_end import Digits, recipe

from freerun import config as configs
from freerun.checkpoint import JOURNAL, Checkpoints
from freerun.launch import launch
from freerun.metrics import Fanout
from freerun.recipes.base import RecordsConfig
from freerun.rundir import RunDirectory
from freerun.store import journal
from freerun.tasks.base import Task
from freerun.types import Prompt


class Numbered(Digits):
    """Prompts of which no two are alike."""

    def build(self) -> Task:
        asked = [Prompt(text, text) for text in tiny_job.numbered(2000)]
        return Task(name="digits", train=asked[8:], heldout=asked[:8], reward=super().build().reward, solution=str)


class Log:
    """Lines of JSON in `log.jsonl`, each written at once; and a sink that writes what each step left, and then each group that
    it trained on: all of it before the step can be in a checkpoint."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "log.jsonl").open("a", buffering=1)

    def write(self, **fields: object) -> None:
        self._file.write(json.dumps({"attempt": os.getpid(), **fields}) + "\n")

    def step(self, record) -> None:
        kept = {k: v for k, v in record.metrics.items() if k.startswith(("loss/", "grad_norm", "reward/", "ratio/"))}
        self.write(step=record.step, trained=[], state=hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest())

    def sample(self, record) -> None:
        self.write(also=record.uid, of=record.step)

    def event(self, record) -> None: ...

    def evaluation(self, record) -> None: ...

    def status(self, record) -> None: ...

    def close(self) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, required=True, help="steps between two checkpoints")
    parser.add_argument("--schedule", choices=("threads", "serial"), required=True)
    options = parser.parse_args()
    model, directory = options.folder / "model", options.folder / "run"
    if not model.exists():
        tiny_job.save(model, 0)
    config = recipe(model, lag=1, steps=options.steps, delay=tiny_job.Delay(), seed=0)
    control = replace(config.control, checkpoint_every=options.every, sample_every=1)
    placement = replace(config.placement, schedule=options.schedule)
    records = RecordsConfig(keep_checkpoints=2)
    config = replace(config, task=Numbered(), control=control, placement=placement, records=records)

    log = Log(options.folder)
    finished = journal.Journal.finished

    def noted(self: journal.Journal, item: int, uid: str, oldest: int, payload: bytes) -> None:
        finished(self, item, uid, oldest, payload)
        if self.path.name == JOURNAL:
            log.write(generated=uid)

    journal.Journal.finished = noted
    checkpoints = Checkpoints(directory / "checkpoints")
    checkpoint = checkpoints.newest_whole()[0] if checkpoints.all() else None
    begun = (directory / "config.json").exists()
    if begun:
        files = RunDirectory.resume(directory, int(checkpoint.name.removeprefix("step-")) if checkpoint else 0)
        journal.mend(directory / JOURNAL)
    else:
        files = RunDirectory.create(directory, {"config": configs.dump(config)})
    sinks = Fanout([files, log])
    try:
        asyncio.run(launch(config, directory, sinks, checkpoint=checkpoint, resume=begun, began=files.elapsed))
    finally:
        sinks.close()


if __name__ == "__main__":
    main()
