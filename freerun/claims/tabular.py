"""Tables for policies, so that what a method converges to is known in closed form: a bandit, and a sequence task.

A response is a walk: in state `s` at position `t` the policy draws a symbol, which leads to the next state; the reward belongs
to the last one. The policy is a table of logits per prompt, position and state. Credit, `prepare`, `probe`, events and terms
are the algorithm's own, and gradients add up in the trainer's `GradientSum`: what is claimed here is what ships. What stands in
for the engine is the sampler (how old it is, or which data set it left behind) and plain gradient descent.

Shapes: P prompts, T positions, S states, V symbols, B responses, N groups.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freerun.algorithms.base import AlgorithmConfig, State
from freerun.claims.curves import last_tenth, mean, thinned
from freerun.errors import ConfigError
from freerun.trainer.forward import Predictions, outputs_of
from freerun.trainer.update import GradientSum, check_algorithm, divide_and_clip, due, global_counts
from freerun.types import COLUMNS, Batch, Group, Histogram, Metric, Prompt, RewardResult, Source, Stop, Trajectory

PRODUCED = frozenset(COLUMNS) - {"returns", "mask_selected"}
"""Columns that a table can give an algorithm: all but what only `prepare` makes. The value of the reference policy is exact."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """A task for tables. Every response has T symbols and begins in state 0.

    start_PTSV   logits of the first policy, which is the first sampler's as well
    next_TSV     the state that follows a symbol
    reward_PS    reward of the state in which a response ends
    """

    start_PTSV: Tensor
    next_TSV: Tensor
    reward_PS: Tensor

    def value(self, logits_PTSV: Tensor) -> Tensor:
        """Expected reward of each prompt [P], exactly, as if over all responses. Gradients flow."""
        p_PTSV, (num_prompts, num_positions, num_states, _) = logits_PTSV.softmax(-1), logits_PTSV.shape
        at_PS = torch.zeros(num_prompts, num_states, dtype=p_PTSV.dtype)
        at_PS[:, 0] = 1.0
        for t in range(num_positions):
            flow_PSV = at_PS[:, :, None] * p_PTSV[:, t]
            at_PS = torch.zeros_like(at_PS).index_add(1, self.next_TSV[t].flatten(), flow_PSV.flatten(1))
        return (at_PS * self.reward_PS).sum(-1)

    def scaled(self, low: float, high: float) -> "Problem":
        """The same problem with rewards from `low` to `high` in place of 0 to 1."""
        return replace(self, reward_PS=low + (high - low) * self.reward_PS)


def bandit(probs: Sequence[float] = (0.3, 0.6, 0.1), rewards: Sequence[float] = (0.0, 0.8, 1.0)) -> Problem:
    """One prompt, one symbol: arms with fixed rewards, drawn with `probs` at first. The default is that of arXiv 2509.24203."""
    num = len(probs)
    logits_V = torch.tensor(probs, dtype=torch.float64).log()
    return Problem(
        start_PTSV=logits_V.expand(1, 1, num, num).clone(),
        next_TSV=torch.arange(num).expand(1, num, num).clone(),
        reward_PS=torch.tensor([rewards], dtype=torch.float64),
    )


def chain(num_positions: int = 8, num_symbols: int = 7) -> Problem:
    """Reach the state that the prompt names: `s <- (2 s + y + (t mod 3) y^2) mod V`, from a uniform policy. Reward 1 or 0."""
    t_T11 = torch.arange(num_positions)[:, None, None] % 3
    s_S1, y_V = torch.arange(num_symbols)[:, None], torch.arange(num_symbols)
    return Problem(
        start_PTSV=torch.zeros(num_symbols, num_positions, num_symbols, num_symbols, dtype=torch.float64),
        next_TSV=(2 * s_S1 + y_V + t_T11 * y_V**2) % num_symbols,
        reward_PS=torch.eye(num_symbols, dtype=torch.float64),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where data come from, how much of it, and how it is used. The defaults are those of the sequence task."""

    steps: int = 600
    """Batches."""
    groups: int = 16
    """Groups per batch; the prompt of each is drawn at random."""
    group_size: int = 8
    """Responses per group."""
    refresh: int = 1
    """The sampler becomes the current policy every so many steps; 0: never, it stays the first policy."""
    lag: int = 0
    """Or the sampler is the policy of so many steps ago."""
    dataset: int = 0
    """Each step's groups are drawn from so many that the first policy made; 0 makes new ones."""
    replay: int = 0
    """Groups of earlier steps that each step trains on once more."""
    replay_age: int = 2
    """How many steps old they may be."""
    experts: int = 0
    """Demonstrations added to each step."""
    expert_PTSV: Tensor | None = None
    """Logits of the policy that demonstrates."""
    minibatches: int = 1
    """Gradient steps per pass over a batch."""
    epochs: int = 1
    """Passes over a batch."""
    lr: float = 168.0
    """Step length of gradient descent. A mean over tokens is shared by all prompts and positions, hence its size."""
    clip_norm: float = 1.0
    """Largest norm of a gradient; 0 does not clip."""
    critic_lr: float = 20.0
    """Step length of the table of values, for methods that have a critic."""

    def __post_init__(self) -> None:
        modes = [self.lag > 0, self.refresh != 1, self.dataset > 0]
        if sum(modes) > 1 or (self.experts > 0) != (self.expert_PTSV is not None):
            raise ConfigError(
                "these data cannot be made",
                given=f"lag {self.lag}, refresh {self.refresh}, dataset {self.dataset}, experts {self.experts}",
                expected="one of lag, refresh and dataset; experts together with the policy that demonstrates",
                todo="correct the setting",
            )


BANDIT = Setting(steps=4000, groups=64, refresh=0, lr=0.2, clip_norm=0.0)
"""The bandit with a sampler that never changes, where methods differ most."""


class Samples(NamedTuple):
    """Responses, those of a group after one another."""

    prompt_B: Tensor
    version_B: Tensor
    state_BT: Tensor
    token_BT: Tensor
    logp_BT: Tensor
    reward_B: Tensor

    def rows(self, row_B: Tensor) -> "Samples":
        return Samples(*(column[row_B] for column in self))


@torch.no_grad()
def sample(problem: Problem, logits_PTSV: Tensor, prompt_B: Tensor, version: int, make: torch.Generator) -> Samples:
    """A response to each of `prompt_B`."""
    logp_PTSV, state_B, columns = logits_PTSV.log_softmax(-1), torch.zeros_like(prompt_B), []
    p_PTSV = logp_PTSV.exp()
    for t in range(logp_PTSV.shape[1]):
        token_B = torch.multinomial(p_PTSV[prompt_B, t, state_B], 1, replacement=True, generator=make)[:, 0]
        columns.append((state_B, token_B, logp_PTSV[prompt_B, t, state_B, token_B]))
        state_B = problem.next_TSV[t, state_B, token_B]
    state_BT, token_BT, logp_BT = (torch.stack(column, -1) for column in zip(*columns, strict=True))
    version_B = torch.full_like(prompt_B, version)
    return Samples(prompt_B, version_B, state_BT, token_BT, logp_BT, problem.reward_PS[prompt_B, state_B])


class Learner:
    """A table, the algorithm that changes it, and the algorithm's state. `version` counts its steps."""

    def __init__(self, config: AlgorithmConfig, problem: Problem, setting: Setting, make: torch.Generator) -> None:
        self.algorithm, self.problem, self.setting = config.build(), problem, setting
        check_algorithm(self.algorithm, PRODUCED)
        self.logits_PTSV = problem.start_PTSV.clone().requires_grad_()
        self.values_PTS = torch.zeros(problem.start_PTSV.shape[:-1], dtype=torch.float64, requires_grad=True)
        self.reference_PTSV = self.previous_PTSV = problem.start_PTSV
        self.state: State = self.algorithm.init()
        self.version = self.num_updates = self._num_items = 0
        self._make = make

    @property
    def fresh_only(self) -> bool:
        """Whether the algorithm wants nothing replayed any more, and one pass over a batch."""
        return self.algorithm.fresh_only(self.state)

    def predict(self, samples: Samples, logits_PTSV: Tensor | None = None) -> Predictions:
        """What the table (or another) gives for the states and symbols of `samples`, with gradient."""
        logp_PTSV = (self.logits_PTSV if logits_PTSV is None else logits_PTSV).log_softmax(-1)
        at = (samples.prompt_B[:, None], torch.arange(logp_PTSV.shape[1]), samples.state_BT)
        entropy_PTS = -(logp_PTSV.exp() * logp_PTSV).sum(-1)
        return Predictions(logp_PTSV[(*at, samples.token_BT)], entropy_PTS[at], self.values_PTS[at])

    def batch_of(self, samples: Samples, num_experts: int = 0) -> Batch:
        """Every column that a step begins with, credit and what the algorithm prepares included. The last `num_experts` rows
        are demonstrations, each a group of its own."""
        num, size = len(samples.prompt_B) - num_experts, self.setting.group_size
        row_B = torch.arange(num + num_experts)
        expert_B1 = (row_B >= num)[:, None]
        mask_BT = torch.ones(samples.token_BT.shape, dtype=torch.bool)
        version_BT = samples.version_B[:, None].expand(mask_BT.shape)
        advantage_BT = torch.ones(mask_BT.shape)
        advantage_BT[:num] = self._credit(samples.rows(row_B[:num]))
        columns = {
            "mask": mask_BT,
            "mask_rollout": mask_BT & ~expert_B1,
            "mask_expert": mask_BT & expert_B1,
            "logp_behaviour": samples.logp_BT,
            "advantage": advantage_BT,
            "reward": torch.where(expert_B1[:, 0], math.nan, samples.reward_B),
            "group": torch.where(expert_B1[:, 0], row_B - num + num // size, row_B // size),
            "group_tokens": torch.where(expert_B1[:, 0], 1, size) * mask_BT.shape[1],
        }
        if not self.setting.dataset:
            columns |= {"version": version_BT, "lag": torch.where(expert_B1, 0, self.version - version_BT)}
        columns |= self._network_columns(samples)
        batch = Batch(columns, reader=f"algorithm '{self.algorithm.name}'")
        prepare = self.algorithm.prepare
        return batch if prepare is None else batch.with_columns(**prepare(batch, self.state))

    @torch.no_grad()
    def _network_columns(self, samples: Samples) -> dict[str, Tensor]:
        """What the algorithm wants to know of the policies (and the critic) as they are before the update."""
        now = outputs_of(self.predict(samples))
        made = {
            "logp_proximal": lambda: now["logp"],
            "entropy_proximal": lambda: now["entropy"],
            "values": lambda: now["values"],
            "logp_reference": lambda: self.predict(samples, self.reference_PTSV).logp_BT,
            "logp_previous": lambda: self.predict(samples, self.previous_PTSV).logp_BT,
            "value_reference": lambda: self.problem.value(self.reference_PTSV)[samples.prompt_B],
        }
        return {name: make() for name, make in made.items() if name in self.algorithm.columns}

    def gradient(self, samples: Samples, batch: Batch) -> GradientSum:
        """The gradient of one optimiser step, in `.grad`, after the algorithm's look at its minibatch."""
        if self.algorithm.probe is not None:
            with torch.no_grad():
                self.state = self.algorithm.probe(outputs_of(self.predict(samples)), batch, self.state)
        terms = due(self.algorithm, self.num_updates)
        gradient = GradientSum(self.algorithm, terms, self.state, global_counts(terms, batch))
        loss = gradient.loss(self.predict(samples), batch, before_update=False)
        if loss.requires_grad:
            loss.backward()
        return gradient

    def step(self, samples: Samples, num_experts: int = 0) -> Mapping[str, Metric]:
        """Train on a batch; the metrics of its last update. Raises `ArithmeticError` for a gradient that is not finite."""
        before_PTSV = self.logits_PTSV.detach().clone()
        self._fire("batch_start", {})
        batch = self.batch_of(samples, num_experts)
        metrics: Mapping[str, Metric] = {}
        for row_B in self._parts(batch["group"]):
            metrics = self.gradient(samples.rows(row_B), batch.rows(row_B)).metrics()
            if due(self.algorithm, self.num_updates):
                self._apply()
            self.num_updates += 1
            self._fire("optimizer_step", metrics)
        self.version += 1
        self._fire("iteration_end", metrics)
        self.previous_PTSV = before_PTSV
        if self.algorithm.rebase(self.state):
            self.reference_PTSV = self.logits_PTSV.detach().clone()
        return metrics

    def _parts(self, group_B: Tensor) -> Iterator[Tensor]:
        """The rows of each minibatch, over all epochs."""
        for _ in range(1 if self.fresh_only else self.setting.epochs):
            if self.setting.minibatches == 1:
                yield torch.arange(len(group_B))
                continue
            order_N = torch.randperm(int(group_B.max()) + 1, generator=self._make)
            for index in range(self.setting.minibatches):
                yield torch.isin(group_B, order_N[index :: self.setting.minibatches]).nonzero()[:, 0]

    @torch.no_grad()
    def _apply(self) -> None:
        for table, lr in ((self.logits_PTSV, self.setting.lr), (self.values_PTS, self.setting.critic_lr)):
            norm = divide_and_clip([table], divisor=1.0, clip_norm=self.setting.clip_norm)
            if not math.isfinite(norm):
                raise ArithmeticError(f"gradient norm {norm}")
            table.sub_(lr * table.grad if table.grad is not None else 0.0)
            table.grad = None

    def _fire(self, event: str, metrics: Mapping[str, Metric]) -> None:
        if event in self.algorithm.events:
            self.state = self.algorithm.events[event](self.state, metrics)

    def _credit(self, samples: Samples) -> Tensor:
        """The algorithm's advantages [B, T]; its state moves from group to group."""
        num_positions, size = samples.token_BT.shape[1], self.setting.group_size
        # A position in front for the prompt, which is no action.
        action_T = torch.arange(num_positions + 1) > 0
        token_BT = torch.cat([samples.prompt_B[:, None], samples.token_BT], -1)
        logp_BT = torch.nn.functional.pad(samples.logp_BT.float(), (1, 0))
        version_of = {v: torch.where(action_T, v, -1).int() for v in samples.version_B.unique().tolist()}
        rows = zip(token_BT.unbind(), logp_BT.unbind(), samples.version_B.tolist(), strict=True)
        trajectories = [
            Trajectory(tokens_T=token_T, action_T=action_T, logp_T=logp_T, version_T=version_of[v], text="", stop=Stop.EOS)
            for token_T, logp_T, v in rows
        ]
        rewards = [RewardResult(value) for value in samples.reward_B.tolist()]
        source, advantages = Source.DATASET if self.setting.dataset else Source.ROLLOUT, []
        for index, prompt in enumerate(samples.prompt_B[::size].tolist()):
            here = slice(index * size, (index + 1) * size)
            group = Group(
                item=self._num_items,
                prompt=Prompt(f"prompt/{prompt}", str(prompt)),
                trajectories=tuple(trajectories[here]),
                rewards=tuple(rewards[here]),
                source=source,
            )
            self._num_items += 1
            advantage, self.state = self.algorithm.credit(group, self.state)
            advantages.append(advantage.reshape(size, -1).expand(size, num_positions))
        return torch.cat(advantages)


class Data:
    """Makes each step's batch as the setting says."""

    def __init__(self, learner: Learner, make: torch.Generator) -> None:
        self._learner, self._setting, self._make = learner, learner.setting, make
        start = learner.problem.start_PTSV
        self._policies: deque[tuple[int, Tensor]] = deque([(0, start)], maxlen=self._setting.lag + 1)
        self._recent: deque[Samples] = deque(maxlen=self._setting.replay_age)
        self._dataset = self._respond(start, 0, self._setting.dataset) if self._setting.dataset else None

    def draw(self) -> Samples:
        """A batch for the learner as it is now; demonstrations come last."""
        setting, version = self._setting, self._learner.version
        if self._dataset is not None:
            fresh = self._groups_of(self._dataset, setting.groups)
        else:
            if version and (setting.lag or (setting.refresh and version % setting.refresh == 0)):
                self._policies.append((version, self._learner.logits_PTSV.detach().clone()))
            made_by, policy = self._policies[0]
            fresh = self._respond(policy, made_by, setting.groups)
        parts = [fresh]
        if setting.replay and self._recent and not self._learner.fresh_only:
            parts.append(self._groups_of(Samples(*map(torch.cat, zip(*self._recent, strict=True))), setting.replay))
        if setting.expert_PTSV is not None:
            parts.append(self._respond(setting.expert_PTSV, -1, setting.experts, group_size=1))
        self._recent.append(fresh)
        return Samples(*map(torch.cat, zip(*parts, strict=True)))

    def _respond(self, policy_PTSV: Tensor, version: int, num_groups: int, group_size: int | None = None) -> Samples:
        prompt_N = torch.randint(len(policy_PTSV), (num_groups,), generator=self._make)
        prompt_B = prompt_N.repeat_interleave(group_size or self._setting.group_size)
        return sample(self._learner.problem, policy_PTSV, prompt_B, version, self._make)

    def _groups_of(self, samples: Samples, num: int) -> Samples:
        """`num` groups of `samples`, drawn at random."""
        size = self._setting.group_size
        group_N = torch.randint(len(samples.prompt_B) // size, (num,), generator=self._make)
        return samples.rows((group_N[:, None] * size + torch.arange(size)).flatten())


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """What came of a run: the policy's probabilities, its exact expected reward (mean over prompts), and curves with an entry
    per step."""

    policy_PTSV: Tensor
    value: float
    diverged: bool = False
    curves: dict[str, list[float]] = field(default_factory=dict)

    def numbers(self) -> dict[str, Any]:
        """For the results of a claim: `value` of the policy that training ended with, `mean_value` over all steps, means of the
        last tenth of `ess`, `clipped` and `entropy`, and thinned curves."""
        names = {"ess": "ess", "clipped": "ratio/clipped", "entropy": "entropy"}
        return {
            "value": self.value,
            "mean_value": mean(self.curves["value"]),
            **{short: last_tenth(self.curves[name]) for short, name in names.items() if name in self.curves},
            "diverged": float(self.diverged),
            "curves": {name: thinned(self.curves[name]) for name in ("value", "ess") if name in self.curves},
        }


def train(config: AlgorithmConfig, problem: Problem, setting: Setting, *, seed: int) -> Run:
    """Train from the problem's first policy. `curves` has the exact `value` before each step and the metrics of its update,
    such as `ess`, `ratio/clipped` and `entropy`. If a gradient is not finite the run ends there, and its value is the worst
    reward.
    """
    make = torch.Generator().manual_seed(seed)
    learner = Learner(config, problem, setting, make)
    data, diverged = Data(learner, make), False
    curves: dict[str, list[float]] = {"value": []}
    for _ in range(setting.steps):
        curves["value"].append(float(problem.value(learner.logits_PTSV.detach()).mean()))
        try:
            metrics = learner.step(data.draw(), setting.experts)
        except ArithmeticError:
            diverged = True
            break
        for name, metric in metrics.items():
            if not isinstance(metric, Histogram):
                curves.setdefault(name, []).append(metric.value)
    last = learner.logits_PTSV.detach()
    value = float(problem.reward_PS.min() if diverged else problem.value(last).mean())
    return Run(policy_PTSV=last.softmax(-1), value=value, diverged=diverged, curves=curves)
