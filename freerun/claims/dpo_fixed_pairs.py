"""DPO learns from answers of the warm-started policy that were scored once, and nothing new is generated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from freerun.algorithms.base import AlgorithmConfig
from freerun.algorithms.language import dpo, sft
from freerun.claims import tiny
from freerun.claims.base import Arm, Claim, Expectation
from freerun.tasks.base import Task
from freerun.tasks.examples import ExamplesConfig
from freerun.types import Example, Source

JOB = tiny.Job()


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best answer to each prompt of a data set, as a demonstration; prompts without a right one are left out."""

    whole: tiny.Sampled
    """The data set."""

    def build(self, task: Task) -> Sequence[Example]:
        found = []
        for example in self.whole.build(task):
            best = max(range(len(example.responses)), key=lambda i: example.rewards[i].value)
            if example.rewards[best].value > 0:
                one = {"responses": (example.responses[best],), "rewards": (), "logps": ()}
                found.append(replace(example, source=Source.EXPERT, **one))  # type: ignore[arg-type]
        return tuple(found)


def arm(algorithm: AlgorithmConfig, *, best: bool = False, steps: int = JOB.steps) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        answers = tiny.Sampled(job=JOB, weights=str(tiny.warm_start(JOB, seed)), seed=seed)
        data: ExamplesConfig = Best(whole=answers) if best else answers
        numbers = tiny.train(algorithm, seed=seed, job=JOB, offline=data, control={"steps": steps})
        return numbers | {"gain": numbers["accuracy"] - numbers["start"]}

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "From eight answers of the warm-started policy to each of 512 prompts, scored once, DPO (best against worst) "
            "improves held-out accuracy by more than two points, and by more than imitating the best answers does."
        ),
        paper="DPO (arXiv 2305.18290)",
        method=dpo,
        arms={
            "dpo": arm(dpo.Config()),
            "imitate the best": arm(sft.Config(), best=True),
            "one step": arm(dpo.Config(), steps=1),
        },
        metric="gain",
        expected=(
            Expectation(better="dpo", worse="one step", margin=0.02),
            Expectation(better="dpo", worse="imitate the best"),
        ),
        minutes=4.0,
    )
