"""Imitation is as good as what it imitates: of mixed data, the better half is a better teacher than all."""

from freerun.algorithms.control import bc
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.control import Made, on_recorded
from freerun.datasets.grades import GradeName
from freerun.recipes import pendulum_bc


def arm(grade: GradeName, best_share: float = 1.0) -> Arm:
    return on_recorded(pendulum_bc.recipe(), Made(grade=grade), best_share=best_share)


def claim() -> Claim:
    return Claim(
        sentence=(
            "On Pendulum, cloning the better half of a mixture of a medium and an expert policy scores higher than "
            "cloning all of it, and cloning the expert alone scores at least 90 of 100 more than cloning random actions."
        ),
        paper="Behaviour cloning (Pomerleau 1991); filtered cloning as a baseline in D4RL's wake (arXiv 2106.01345)",
        method=bc,
        arms={
            "better half": arm("medium-expert", 0.5),
            "all": arm("medium-expert"),
            "expert": arm("expert"),
            "random": arm("random"),
        },
        metric="score",
        expected=(
            Expectation(better="better half", worse="all"),
            Expectation(better="expert", worse="random", margin=90.0),
        ),
        seeds=6,
        minutes=2.0,
        tried="With three seeds it was unclear: so six.",
    )
