"""DAPO's dynamic sampling fills a step with groups that teach, and its penalty makes answers fit the budget."""

from collections.abc import Mapping
from typing import Any

import torch

from freerun.algorithms.language import dapo
from freerun.claims import tabular
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.curves import mean, thinned
from freerun.claims.lengths import Choices

STEPS, SETTING = 100, tabular.Setting()
MAX_DRAWS = 20
"""Batches drawn for one step at most; then groups of equal rewards are trained on."""
BUDGET, BUFFER = 12, 4
BRIEF, LONG, WRONG = range(3)
"""A right answer well within the budget, a right one that needs all of it, and a wrong one."""


def arm(*, dynamic: bool, as_many: bool = False, overlong: str = "penalty") -> Arm:
    """`as_many`: steps hold as many groups as dynamic sampling would have drawn for them."""

    def run(seed: int) -> Mapping[str, Any]:
        drawn = sequences(seed, dynamic=True, steps=STEPS)["drawn"] if as_many else 0
        groups = round(drawn / STEPS) if as_many else SETTING.groups
        return {**sequences(seed, dynamic=dynamic, groups=groups, steps=STEPS), "within": within(seed, overlong)}

    return run


def sequences(seed: int, *, dynamic: bool, steps: int, groups: int = SETTING.groups) -> dict[str, Any]:
    """The sequence task: `mean_value` over all steps, and the groups that were drawn for them."""
    make, problem = torch.Generator().manual_seed(seed), tabular.chain()
    learner = tabular.Learner(dapo.Config(), problem, SETTING, make)
    values, drawn, useful = [], 0, 0
    for _ in range(steps):
        logits_PTSV = learner.logits_PTSV.detach()
        values.append(float(problem.value(logits_PTSV).mean()))
        kept: list[tabular.Samples] = []
        flat: list[tabular.Samples] = []
        for _ in range(MAX_DRAWS * groups):
            prompt_B = torch.randint(len(logits_PTSV), (1,), generator=make).repeat_interleave(SETTING.group_size)
            group = tabular.sample(problem, logits_PTSV, prompt_B, learner.version, make)
            drawn += 1
            teaches = bool(group.reward_B.max() > group.reward_B.min())
            (kept if teaches or not dynamic else flat).append(group)
            useful += teaches
            if len(kept) == groups:
                break
        kept += flat[: groups - len(kept)]
        learner.step(tabular.Samples(*map(torch.cat, zip(*kept, strict=True))))
    last = float(problem.value(learner.logits_PTSV.detach()).mean())
    return {
        "value": last,
        "mean_value": mean(values),
        "drawn": drawn,
        "useful": useful / (steps * groups),
        "curves": {"value": thinned(values)},
    }


def within(seed: int, overlong: str) -> float:
    """The share of right answers that fit the budget, after 200 updates."""
    start_1R = torch.tensor([[0.3, 0.3, 0.4]], dtype=torch.float64).log()
    choices = Choices(lengths=(4, BUDGET, 4), rewards=(1.0, 1.0, 0.0), start_PR=start_1R)
    algorithm = dapo.Config(max_length=BUDGET, buffer=BUFFER, overlong=overlong).build()  # type: ignore[arg-type]
    make, logits_1R = torch.Generator().manual_seed(seed), start_1R.clone()
    for _ in range(200):
        logits_1R += choices.sampled(algorithm, logits_1R, 4, 8, make)
    right_R = logits_1R.softmax(-1)[0, [BRIEF, LONG]]
    return float(right_R[BRIEF] / right_R.sum())


def claim() -> Claim:
    return Claim(
        sentence=(
            "On the sequence task, steps filled with groups of unequal rewards learn faster than steps of as many groups "
            "as they come (expected reward, mean over 100 updates); and with the penalty, right answers that need the "
            "whole budget give way to those that do not."
        ),
        paper="DAPO (arXiv 2503.14476)",
        method=dapo,
        arms={
            "dynamic": arm(dynamic=True),
            "as they come": arm(dynamic=False, overlong="none"),
            "as many drawn": arm(dynamic=False, as_many=True, overlong="filter"),
        },
        metric="mean_value",
        expected=(
            Expectation(better="dynamic", worse="as they come", margin=0.01),
            Expectation(better="dynamic", worse="as they come", margin=0.2, metric="within"),
        ),
        minutes=1.0,
        tried="Larger steps, of all the groups that dynamic sampling drew, show what the drawing alone is worth.",
    )
