"""H2O: SAC on real data and a simulator that is wrong, trusting the simulator as far as its transitions could be real ones.

Paper       When to Trust Your Simulator: Dynamics-Aware Hybrid Offline-and-Online Reinforcement Learning (arXiv 2206.13464).
Estimator   SAC's, but for the critic: simulated errors count by a ratio of dynamics, and values are held down where the worlds
            differ.
Equation    critic: (Q - y)^2 on real rows + w (Q - y)^2 on simulated ones + penalty (log sum_sim omega exp Q - mean_real Q)
            w = min(P_real / P_sim (s'|s, a), 1),   omega in proportion to E log P_sim / P_real (s''|s, a), s'' about s'
            P_real / P_sim: from two discriminators, of (s, a) and of (s, a, s')
            y = r + discount min_i Q'_i(s', a'), without the entropy;   actor, alpha: as in sac, on all rows
Assumption  the real data cover the task here and there; the simulator everywhere, with errors that a discriminator can see.
Degenerate  penalty = 0 and equal worlds: SAC on the union.
Named       `spread`: s'' is s' with noise of so many standard deviations of the batch's s'. The paper's is 1; the authors' code
            takes the deviation of a buffer that is nearly all zeros, which is far less. The code also cuts the penalty's gap at
            1000. `penalty` is 0.01 in the code.
State       none: the temperature is a network with one number.

Shapes: B rows, M critics, K scattered next observations per row.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from freerun.algorithms.control_base import ControlAlgorithm, Loss, Networks, State, Target, Term, act_by_sampling, check
from freerun.networks import Body, Ensemble, Policy, Scalar
from freerun.ops import conservatism, dynamics_gap, soft, values
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    real: str = "dataset"
    """Source of the real rows."""
    simulated: str = "replay"
    """Source of the simulated rows."""
    penalty: float = 0.01
    """Weight of the term that holds values down where the worlds differ."""
    spread: float = 1.0
    """Noise on next observations with which the gap between the worlds is measured, in standard deviations."""
    draws: int = 10
    """Noisy next observations per row."""
    largest_gap: float = 10.0
    """Bound of a gap."""
    input_noise: float = 0.1
    """Standard deviation of noise on what discriminators see in training."""
    least_ratio: float = 1e-5
    """Lower bound of a ratio of dynamics; the upper one is 1."""
    gamma: float = 0.99
    """Discount."""
    rate: float = 0.005
    """Step of the target critics towards the critics, each update."""
    lr: float = 3e-4
    """Learning rate of all networks."""
    entropy_scale: float = 1.0
    """Target entropy, as a negative multiple of the number of action dimensions."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of every network."""

    def __post_init__(self) -> None:
        rules = {"0 <= gamma <= 1": 0 <= self.gamma <= 1, "0 < rate <= 1": 0 < self.rate <= 1, "draws >= 1": self.draws >= 1}
        rules |= {"penalty, spread, input_noise >= 0": min(self.penalty, self.spread, self.input_noise) >= 0}
        rules |= {"0 < least_ratio <= 1": 0 < self.least_ratio <= 1, "largest_gap > 0": self.largest_gap > 0}
        check(self, rules | {"real and simulated differ": self.real != self.simulated})

    def build(self) -> ControlAlgorithm:
        # Noise on observations, and deviations of them, are of numbers and not of bytes.
        body = Body(hidden=self.hidden, encoder="flat")
        tells = partial(Term, trains=("tells_sa", "tells_sas"), lr=self.lr)
        critic = partial(Term, trains=("critic",), lr=self.lr)
        labels = {self.real: dynamics_gap.REAL, self.simulated: dynamics_gap.SIMULATED}
        told = {source: partial(discriminator_loss, config=self, label=label) for source, label in labels.items()}
        return ControlAlgorithm(
            name="h2o",
            networks={
                "actor": Policy(body=body),
                "critic": Ensemble(members=2, body=body),
                "tells_sa": Ensemble(outputs=2, body=body),
                "tells_sas": Ensemble(reads=("obs", "action", "next_obs"), outputs=2, body=body),
                "temperature": Scalar(value=0.0),
            },
            terms=(
                tells(name="tells_real", loss=told[self.real], source=self.real),
                tells(name="tells_simulated", loss=told[self.simulated], source=self.simulated, joins=True),
                critic(name="critic_real", loss=partial(real_critic_loss, config=self), source=self.real),
                critic(
                    name="critic_simulated", loss=partial(simulated_critic_loss, config=self), source=self.simulated, joins=True
                ),
                Term(name="actor", loss=partial(actor_loss, config=self), trains=("actor", "temperature"), lr=self.lr),
            ),
            act=act_by_sampling("actor"),
            acts_with=("actor",),
            needs=frozenset({"obs", "action", "reward", "next_obs", "discount"}),
            targets=(Target(online="critic", target="critic_target", rate=self.rate),),
            gamma=self.gamma,
            actions="continuous",
        )


def discriminator_loss(
    networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config, label: int
) -> Loss:
    def noisy(value_B: Tensor) -> Tensor:
        noise_B = torch.randn(value_B.shape, generator=generator, device=value_B.device)
        return value_B.detach() + config.input_noise * noise_B

    next_obs_B = conservatism.next_seen(batch["obs"], batch["next_obs"], batch["discount"])
    obs_B, action_B, next_obs_B = (noisy(value_B) for value_B in (batch["obs"], batch["action"], next_obs_B))
    logits_sa_BC = dynamics_gap.bounded(networks["tells_sa"](obs_B, action_B)[0])
    logits_sas_BC = dynamics_gap.bounded(networks["tells_sas"](obs_B, action_B, next_obs_B)[0])
    loss_B = dynamics_gap.classification_loss(logits_sa_BC, logits_sas_BC, label)
    return Loss(loss_B, {f"log_ratio_{label}": dynamics_gap.log_ratio(logits_sas_BC)})


def errors(networks: Networks, batch: Batch, generator: Generator) -> tuple[Tensor, Tensor]:
    """Values of the rows [M, B], and their squared errors [B]."""
    with torch.no_grad():
        action_BA, _ = networks["actor"](batch["next_obs"]).sample(generator)
        value_B = networks["critic_target"](batch["next_obs"], action_BA).amin(0)
        target_B = values.td_target(batch["reward"], batch["discount"], value_B)
    q_MB = networks["critic"](batch["obs"], batch["action"])
    return q_MB, values.squared_errors(q_MB, target_B)


def real_critic_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    q_MB, error_B = errors(networks, batch, generator)
    return Loss(error_B - config.penalty * q_MB.sum(0), {"q_real": q_MB})


def simulated_critic_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    q_MB, error_B = errors(networks, batch, generator)
    obs_B, action_B = batch["obs"], batch["action"]
    with torch.no_grad():
        next_obs_B = conservatism.next_seen(obs_B, batch["next_obs"], batch["discount"])
        seen_B = dynamics_gap.bounded(networks["tells_sas"](obs_B, action_B, next_obs_B)[0])
        ratio_B = dynamics_gap.log_ratio(seen_B).exp().clamp(config.least_ratio, 1.0)
        scale = config.spread * next_obs_B.std(0, correction=0)
        shape = (config.draws, *next_obs_B.shape)
        about_KB = next_obs_B + scale * torch.randn(shape, generator=generator, device=next_obs_B.device)
        scattered = (value_B.expand(config.draws, *value_B.shape) for value_B in (obs_B, action_B))
        about_KBC = dynamics_gap.bounded(networks["tells_sas"](*scattered, about_KB)[0])
        share_B = dynamics_gap.gap_shares(dynamics_gap.log_ratio(about_KBC), config.largest_gap)
    held_down = torch.logsumexp(q_MB + share_B.log(), -1).sum()
    watch = {"q": q_MB, "ratio_dynamics": ratio_B, "largest_share": share_B.max() * len(share_B)}
    return Loss(ratio_B * error_B + config.penalty * held_down, watch)


def actor_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    action_BA, logp_B = networks["actor"](batch["obs"]).sample(generator)
    log_alpha, wanted = networks["temperature"](), -config.entropy_scale * action_BA.shape[-1]
    loss_B = soft.actor_loss(logp_B, networks["critic"](batch["obs"], action_BA).amin(0), log_alpha.exp())
    return Loss(loss_B + soft.temperature_loss(log_alpha, logp_B, wanted), {"entropy": -logp_B, "alpha": log_alpha.exp()})
