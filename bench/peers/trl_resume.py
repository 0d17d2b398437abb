"""A worker of `kill_and_resume.py`: TRL's GRPOTrainer on the tiny job, begun or resumed in a folder, with a log.

.venv-peers/bin/python bench/peers/trl_resume.py --folder DIR --steps 40 --every 5
"""

import argparse
import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path

import datasets
import tiny_job
import torch
import transformers
import trl


class Log:
    """Lines of JSON in `log.jsonl`, each written at once."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "log.jsonl").open("a", buffering=1)

    def write(self, **fields: object) -> None:
        self._file.write(json.dumps({"attempt": os.getpid(), **fields}) + "\n")


class LoggedReward:
    """The reward function as TRL calls it, with every sample of a step: then their groups are generated in full."""

    __name__ = "digits"

    def __init__(self, log: Log) -> None:
        self._log = log
        self.prompts: list[str] = []

    def __call__(self, prompts: list[str], completions: list[str], **_: object) -> list[float]:
        self.prompts = list(dict.fromkeys(prompts))
        for prompt in self.prompts:
            self._log.write(generated=prompt)
        return [tiny_job.reward(completion) for completion in completions]


class LoggedSteps(transformers.TrainerCallback):
    """Notes after each optimiser step what it trained on, and what the weights are."""

    def __init__(self, log: Log, reward: LoggedReward) -> None:
        self._log, self._reward = log, reward

    def on_step_end(self, args, state, control, model=None, **_: object) -> None:
        digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
        self._log.write(step=state.global_step, trained=self._reward.prompts, state=digest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, required=True, help="steps between two checkpoints")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, out = options.folder / "model", options.folder / "out"
    if not model.exists():
        tiny_job.save(model, 0)
    log = Log(options.folder)
    reward = LoggedReward(log)
    saving = {"save_strategy": "steps", "save_steps": options.every, "save_total_limit": 2}
    config = trl.GRPOConfig(**tiny_job.trl_settings(out, steps=options.steps, seed=0) | saving)
    rows = [{"prompt": prompt} for prompt in tiny_job.numbered(options.steps * tiny_job.PROMPTS_PER_STEP)]
    trainer = trl.GRPOTrainer(
        model=str(model),
        reward_funcs=reward,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tiny_job.tokenizer(),
        callbacks=[LoggedSteps(log, reward)],
    )
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train(resume_from_checkpoint=any(out.glob("checkpoint-*")) or None)


if __name__ == "__main__":
    main()
