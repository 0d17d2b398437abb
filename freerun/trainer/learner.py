"""Runs micro-batches through the networks and steps their optimiser. Knows rows and gradients; nothing of groups, versions or
steps."""

import copy
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from freerun.algorithms.base import Algorithm
from freerun.models.routing import Routers
from freerun.trainer.batch import Row, batch_of
from freerun.trainer.config import TrainerConfig
from freerun.trainer.forward import Critic, Policy, Predictions, named_weights, outputs_of
from freerun.trainer.packing import Pack, packs_of_rows, packs_of_trees
from freerun.trainer.prompt_value import PromptValue
from freerun.trainer.routing import alike, give_routing, replayed
from freerun.trainer.update import GradientSum, divide_and_clip
from freerun.types import Batch, Mean, Metric, Sum

FROZEN = {"logp_reference": "reference", "logp_previous": "previous"}
"""Columns that a frozen copy of the policy gives, and the name of that copy."""
CURRENT = {"logp_proximal": "logp", "entropy_proximal": "entropy", "values": "values"}
"""Columns that the trained networks give before the update, and the output that they are."""


class NotFinite(ArithmeticError):
    """A loss or a gradient norm is not a finite number. Arguments: which of the two, and the value."""


class Learner:
    """The policy being trained, the critic if there is one, their optimiser, frozen copies of the policy, and the value of a
    prompt under the reference if one was fitted. With `routing`, the policy's tokens go to the experts that their rows name;
    raises `ConfigError` if its model cannot do that.

    `trained` maps names to the parameters that the optimiser moves. `seconds` adds up the time of each phase until
    `take_records` hands it out, with the tokens that were computed.
    """

    def __init__(self, network: PreTrainedModel, config: TrainerConfig, *, critic: bool = False, routing: bool = False) -> None:
        self.critic = Critic(network.base_model, config) if critic else None
        if config.lora is not None:
            # peft is optional and slow to import: its leaf file is imported by runs that use it.
            from freerun.trainer.lora import add_adapters

            add_adapters(network, config.lora, config.seed)
        self.config = config
        self.policy = Policy(network, config)
        self._routers = Routers(network) if routing else None
        self.frozen: dict[str, Policy] = {}
        self.value: PromptValue | None = None
        self.trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._policy_parameters = list(self.trained.values())
        self._critic_parameters = list(self.critic.parameters()) if self.critic is not None else []
        if self.critic is not None:
            self.trained |= {f"critic.{name}": p for name, p in self.critic.named_parameters()}
        self.optimizer = self.new_optimizer()
        self._seconds: dict[str, float] = {}
        self._computed = self._padding = 0

    def new_optimizer(self) -> torch.optim.AdamW:
        """AdamW over the trained parameters; weight decay is for matrices. `share` of a group is its part of the learning
        rate."""
        config = self.config
        groups = []
        for parameters, share in ((self._policy_parameters, 1.0), (self._critic_parameters, config.critic_lr_share)):
            groups += [
                {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay, "share": share},
                {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0, "share": share},
            ]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)

    def freeze(self, name: str) -> None:
        """From now on the frozen policy `name` is a copy of the policy as it is."""
        self.frozen[name] = self.policy_now()

    def reference(self) -> Policy:
        """The frozen reference policy; before it is frozen, the policy, which is what it will be."""
        return self.frozen.get("reference", self.policy)

    def policy_now(self) -> Policy:
        """A frozen copy of the policy as it is."""
        return Policy(copy.deepcopy(self.policy.model).requires_grad_(False), self.config)

    def networks(self) -> dict[str, torch.nn.Module]:
        """What a checkpoint has to hold."""
        critic = {} if self.critic is None else {"critic": self.critic}
        value = {} if self.value is None else {"value_reference": self.value.head}
        return {"policy": self.policy.model, **critic, **value, **{name: p.model for name, p in self.frozen.items()}}

    def published(self) -> Mapping[str, Tensor]:
        """The policy's weights under its Hugging Face names, adapters merged into the layers they belong to."""
        network = self.policy.model
        if self.config.lora is None:
            return named_weights(network)
        from freerun.trainer.lora import merged

        return merged(named_weights(network), network)

    def packs(self, rows: Sequence[Row], *, balance: bool = True) -> list[Pack]:
        """`rows` as micro-batches; without `balance` all but the last are as full as they can be."""
        with self.timed("pack"):
            tokens, actions = [row.tokens_T for row in rows], [row.action_T for row in rows]
            if self.config.packing == "rows":
                return packs_of_rows(tokens, actions, budget=self.config.micro_tokens)
            return packs_of_trees(tokens, actions, budget=self.config.micro_tokens, balance=balance, alike=alike(rows))

    def is_small(self, rows: Sequence[Row]) -> bool:
        """True if `rows` are one micro-batch at most, which can be said without packing them."""
        return len(rows) * max((len(row.tokens_T) for row in rows), default=0) <= self.config.micro_tokens

    def predict(self, pack: Pack) -> Predictions:
        """What the trained networks give for a micro-batch."""
        predictions = self.policy(pack)
        return predictions if self.critic is None else predictions._replace(values_BT=self.critic(pack))

    def backward(
        self, pack: Pack, rows: Sequence[Row], gradient: GradientSum, algorithm: Algorithm, *, before_update: bool
    ) -> None:
        """Forward and backward of one micro-batch, added to `gradient` and to `.grad`. Raises `NotFinite` before `.grad` is
        touched."""
        with replayed(self._routers, pack, rows, self.policy.device):
            self._backward(pack, rows, gradient, algorithm, before_update)

    def _backward(
        self, pack: Pack, rows: Sequence[Row], gradient: GradientSum, algorithm: Algorithm, before_update: bool
    ) -> None:
        with self.timed("forward"):
            batch = batch_of([rows[i] for i in pack.members], self.policy.device)
            with torch.no_grad():
                for column, name in FROZEN.items():
                    if column in algorithm.columns and column not in batch:
                        batch = batch.with_columns(**{column: self.frozen[name](pack).logp_BT})
            predictions = self.predict(pack)
            now = outputs_of(predictions)
            for column, output in CURRENT.items():
                # A single update starts and ends with this forward pass, so these are the values before the update, to the bit.
                if column in algorithm.columns and column not in batch:
                    batch = batch.with_columns(**{column: now[output].detach()})
            loss = gradient.loss(predictions, _known(batch, predictions), before_update=before_update)
            if not torch.isfinite(loss):
                raise NotFinite("loss", float(loss.detach()))
        with self.timed("backward"):
            loss.backward()
        self._computed += pack.computed
        self._padding += pack.padding

    @torch.no_grad()
    def fix_columns(self, rows: Sequence[Row], columns: Iterable[str], *, routing: bool = False) -> None:
        """Give each row those of `columns` that networks make, as the networks are now, and with `routing` the experts to which
        its tokens go now."""
        wanted = set(columns)
        current = {column: output for column, output in CURRENT.items() if column in wanted}
        frozen = {column: self.frozen[name] for column, name in FROZEN.items() if column in wanted}
        for pack in self.packs(rows) if current or frozen or routing else []:
            made = {}
            with self.timed("forward"):
                if current or routing:
                    now = outputs_of(self._recorded(pack, rows) if routing else self._replayed(pack, rows))
                    made = {column: now[output] for column, output in current.items()}
                made |= {column: policy(pack).logp_BT for column, policy in frozen.items()}
            for name, value_BT in made.items():
                give(rows, pack.members, name, value_BT)

    def _replayed(self, pack: Pack, rows: Sequence[Row]) -> Predictions:
        with replayed(self._routers, pack, rows, self.policy.device):
            return self.predict(pack)

    def _recorded(self, pack: Pack, rows: Sequence[Row]) -> Predictions:
        assert self._routers is not None, "routing is recorded by a learner that was made for it"
        with self._routers.recording() as expert_Nk:
            predictions = self.predict(pack)
        give_routing(rows, pack, expert_Nk)
        return predictions

    @torch.no_grad()
    def look(self, rows: Sequence[Row], outputs: Iterable[str]) -> tuple[dict[str, Tensor], Batch]:
        """What the trained networks give for `rows` now, without gradient, and the batch of them, in the order of the rows."""
        marked = [replace(row, per_token={}, per_row={}) for row in rows]
        for pack in self.packs(marked):
            with self.timed("forward"):
                now = outputs_of(self._replayed(pack, marked))
            for name in outputs:
                give(marked, pack.members, name, now[name])
        device = self.policy.device
        seen = {
            name: torch.nn.utils.rnn.pad_sequence([r.per_token[name] for r in marked], batch_first=True).to(device)
            for name in (outputs if rows else ())
        }
        return seen, batch_of(rows, device)

    def step(self, gradient: GradientSum, optimizer: torch.optim.Optimizer, lr: float) -> float:
        """Divide, clip each network by itself, step, and forget the gradient. Returns the norm of the policy's before clipping;
        raises `NotFinite` before the step."""
        with self.timed("optimizer"):
            norms = [
                divide_and_clip(parameters, divisor=gradient.divisor, clip_norm=self.config.clip_norm)
                for parameters in (self._policy_parameters, self._critic_parameters)
                if parameters
            ]
            for norm in norms:
                if not math.isfinite(norm):
                    raise NotFinite("gradient norm", norm)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["share"]
            optimizer.step()
            optimizer.zero_grad()
        return norms[0]

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time inside to `phase`."""
        start = time.perf_counter()
        yield
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start

    def take_records(self) -> tuple[dict[str, float], dict[str, Metric]]:
        """Seconds by phase and metrics since this was last asked."""
        metrics: dict[str, Metric] = {
            "tokens/computed": Sum(self._computed),
            "tokens/padding": Mean(self._padding, self._computed),
            **{f"time/{phase}": Sum(seconds) for phase, seconds in self._seconds.items()},
        }
        seconds, self._seconds, self._computed, self._padding = self._seconds, {}, 0, 0
        return seconds, metrics


def give(rows: Sequence[Row], members: Sequence[int], name: str, value_BT: Tensor) -> None:
    """Set the column `name` of those of `rows` that `members` lists, from the rows of a batch."""
    for value_T, index in zip(value_BT.cpu(), members, strict=True):
        rows[index].per_token[name] = value_T[: int(rows[index].action_T.sum())]


def _known(batch: Batch, predictions: Predictions) -> Batch:
    """Nobody knows how likely an expert found its tokens. Terms mask them out where that matters, and a NaN would pass through
    a mask's zero gradient, so they stand as if the current policy had sampled them."""
    if "logp_behaviour" not in batch or "mask_expert" not in batch:
        return batch
    unknown_BT = batch["mask_expert"] & batch["logp_behaviour"].isnan()
    return batch.with_columns(
        logp_behaviour=torch.where(unknown_BT, predictions.logp_BT.detach().float(), batch["logp_behaviour"])
    )
