"""A policy that answers in one way is shown another by an expert: what happens to its reward, and what it takes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from freerun.algorithms.language import chord
from freerun.claims import tiny
from freerun.claims.base import Arm, Claim, Expectation
from freerun.tasks import reversal
from freerun.tasks.base import Task, stored_answer
from freerun.types import Example, Prompt, RewardResult, Source

KNOWN = 10
"""The warm start shows the expert's style in one answer of so many."""
DEMONSTRATED = 128
"""Prompts that the expert answers."""


def expert_answer(prompt: Prompt) -> str:
    """The reversed word with commas: `d,c,b,a`."""
    return ",".join(stored_answer(prompt))


def own_or_expert_answer(prompt: Prompt) -> str:
    """The plain answer, or for every tenth prompt the expert's."""
    return expert_answer(prompt) if int(prompt.uid.rpartition("/")[2]) % KNOWN == 0 else stored_answer(prompt)


def right_in_any_style(prompt: str, completion: str, meta: Mapping[str, Any]) -> RewardResult:
    """1 for the reversed word, with commas anywhere; `expert` is 1 if they are where the expert puts them."""
    letters = completion.replace(",", "")
    styled = "," in completion and completion == ",".join(letters)
    return RewardResult(float(letters == meta["answer"]), {"expert": float(styled)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Styles:
    """The reversal of words of four letters, in either style."""

    def build(self) -> Task:
        task = reversal.Config(least=4, most=4, letters=10).build()
        return replace(task, name="styles", reward=right_in_any_style, solution=own_or_expert_answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expert:
    """Answers in the expert's style, all right."""

    def build(self, task: Task) -> Sequence[Example]:
        prompts = task.train[:DEMONSTRATED]
        return tuple(Example(uid=p.uid, prompt=p, responses=(expert_answer(p),), source=Source.EXPERT) for p in prompts)


JOB = tiny.Job(task=Styles(), alphabet="abcdefghij>,", max_tokens=10)
"""The tiny transformer's own job, on this task."""


def arm(algorithm: chord.Config) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        found = tiny.train(algorithm, seed=seed, job=JOB, experts=Expert(), control={"experts": 32}, also=("reward/expert",))
        rewards = [point for point in found["curves"]["reward/mean"] if point is not None]
        style = found.pop("reward/expert")
        unwanted = {"dip": rewards[0] - min(rewards), "plain": 1.0 - style, "error": 1.0 - found["accuracy"]}
        return found | unwanted | {"sureness": -found["entropy"]}

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "Demonstrations in a style that the policy hardly uses: with CHORD-phi the reward does not fall below where it "
            "began as with plain imitation in half of the loss (a dip smaller by 0.03, in stretches of ten steps), the policy "
            "stays less sure of itself, accuracy is no worse (by 0.05) than by RL alone, and most responses take on the style."
        ),
        paper="CHORD (arXiv 2508.11408): weighing tokens by p (1 - p) avoids the shift and re-adaptation of plain mixing",
        method=chord,
        arms={
            "rl alone": arm(chord.Config(peak=0.0, valley=0.0)),
            "imitation alone": arm(chord.Config(peak=1.0, valley=1.0, weight="none")),
            "half imitation": arm(chord.Config(peak=0.5, valley=0.5, weight="none")),
            "chord-mu": arm(chord.Config(peak=0.9, valley=0.05, decay=100, weight="none")),
            "chord-phi": arm(chord.Config()),
            "phi, half": arm(chord.Config(peak=0.5, valley=0.5)),
        },
        metric="dip",
        better="lower",
        expected=(
            Expectation(better="chord-phi", worse="half imitation", margin=0.03),
            Expectation(better="chord-phi", worse="half imitation", metric="sureness"),
            Expectation(better="chord-phi", worse="rl alone", margin=-0.05, metric="error"),
            Expectation(better="chord-phi", worse="rl alone", margin=0.5, metric="plain"),
        ),
        minutes=8.0,
    )
