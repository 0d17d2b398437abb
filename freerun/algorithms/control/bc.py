"""BC: behaviour cloning, maximum likelihood of the data's actions.

Paper       Pomerleau 1991, "Efficient training of artificial neural networks for autonomous navigation".
Estimator   the gradient of the negative log-likelihood; rewards play no part.
Equation    -log pi(a|s)
Assumption  the data's actions are worth imitating; a data set can be restricted to its best episodes (`best_share`).
Degenerate  with a wide data set the policy imitates a mixture, and its mode may be an action that nobody chose.
State       none.

Shapes: B rows.
"""

from dataclasses import dataclass

from torch import Generator

from freerun.algorithms.control_base import ControlAlgorithm, Loss, Networks, State, Term, act_by_sampling, check
from freerun.networks import Body, Policy
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    lr: float = 3e-4
    """Learning rate."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers."""
    state_std: bool = False
    """Let the standard deviation depend on the observation."""

    def __post_init__(self) -> None:
        check(self, {"lr > 0": self.lr > 0})

    def build(self) -> ControlAlgorithm:
        actor = Policy(body=Body(hidden=self.hidden), squash=False, tanh_mean=True, state_std=self.state_std)
        return ControlAlgorithm(
            name="bc",
            networks={"actor": actor},
            terms=(Term(name="actor", loss=actor_loss, trains=("actor",), lr=self.lr),),
            act=act_by_sampling("actor"),
            acts_with=("actor",),
            needs=frozenset({"obs", "action"}),
        )


def actor_loss(networks: Networks, batch: Batch, state: State, generator: Generator) -> Loss:
    policy = networks["actor"](batch["obs"])
    return Loss(-policy.log_prob(batch["action"]), {"entropy": policy.entropy()})
