"""DQN: Q-learning with a network, replay and a target network, for discrete actions.

Paper       Mnih et al. 2015, "Human-level control through deep reinforcement learning"; double: arXiv 1509.06461.
Estimator   the semi-gradient of the squared, or Huber, error of the greedy one-step target.
Equation    (Q(s, a) - y)^2,   y = r + discount Q'(s', argmax_a' Q''(s', a')),   Q'' = Q' or, double, Q
Assumption  none on who made the data, if it covers the actions that become greedy.
Degenerate  discount 0 (gamma = 0, or every step terminal) is regression on rewards.
Named       `double`: choose the next action by the online network (off in the paper). `huber`: clip the error's gradient to
            [-1, 1], as the paper does. With n-step or prioritised sampling in the recipe it is most of Rainbow (arXiv
            1710.02298).
State       none.

Shapes: B rows, A actions.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from freerun.algorithms.control_base import Ask, ControlAlgorithm, Loss, Networks, State, Target, Term, check, greedily
from freerun.networks import Body, Ensemble
from freerun.ops import distributions, values
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    gamma: float = 0.99
    """Discount."""
    lr: float = 2.5e-4
    """Learning rate."""
    target_every: int = 500
    """Updates between two steps of the target network."""
    rate: float = 1.0
    """Step of the target network towards the network; 1 copies it."""
    double: bool = False
    """Choose the next action by the online network."""
    huber: bool = False
    """Clip the gradient of an error to [-1, 1]."""
    epsilon: float = 1.0
    """Share of random actions at the start."""
    last_epsilon: float = 0.05
    """Share of random actions in the end."""
    explore_steps: int = 10_000
    """Environment steps over which it falls."""
    hidden: tuple[int, ...] = (120, 84)
    """Hidden layers."""

    def __post_init__(self) -> None:
        rules = {"0 <= gamma <= 1": 0 <= self.gamma <= 1, "0 < rate <= 1": 0 < self.rate <= 1}
        rules |= {"0 <= last_epsilon <= epsilon <= 1": 0 <= self.last_epsilon <= self.epsilon <= 1}
        check(self, rules | {"target_every, explore_steps >= 1": min(self.target_every, self.explore_steps) >= 1})

    def build(self) -> ControlAlgorithm:
        return ControlAlgorithm(
            name="dqn",
            networks={"critic": Ensemble(reads=("obs",), outputs="actions", body=Body(hidden=self.hidden))},
            terms=(Term(name="critic", loss=partial(critic_loss, config=self), trains=("critic",), lr=self.lr),),
            act=partial(act, config=self),
            acts_with=("critic",),
            needs=frozenset({"obs", "action", "reward", "next_obs", "discount"}),
            targets=(Target(online="critic", target="critic_target", rate=self.rate, every=self.target_every),),
            gamma=self.gamma,
            actions="discrete",
        )


def act(networks: Networks, obs: Tensor, ask: Ask, generator: Generator, *, config: Config) -> dict[str, Tensor]:
    best_N = networks["critic"](obs)[0].argmax(-1)
    if ask.mode == "greedy":
        return dict(greedily(best_N))
    done = min(1.0, ask.taken / config.explore_steps)
    epsilon = config.epsilon + (config.last_epsilon - config.epsilon) * done
    action_N, logp_N = distributions.epsilon_greedy(best_N, ask.spaces.actions, epsilon, generator)
    return {"action": action_N, "log_prob": logp_N}


def critic_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    with torch.no_grad():
        next_BA = networks["critic_target"](batch["next_obs"])[0]
        chooser_BA = networks["critic"](batch["next_obs"])[0] if config.double else next_BA
        value_B = next_BA.gather(-1, chooser_BA.argmax(-1, keepdim=True)).squeeze(-1)
        target_B = values.td_target(batch["reward"], batch["discount"], value_B)
    q_B = networks["critic"](batch["obs"])[0].gather(-1, batch["action"].unsqueeze(-1)).squeeze(-1)
    error_B = q_B - target_B
    loss_B = 2.0 * F.huber_loss(q_B, target_B, reduction="none") if config.huber else error_B.square()
    return Loss(loss_B, {"q": q_B}, error_B.abs())
