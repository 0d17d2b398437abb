"""Runs micro-batches through the policy and steps its optimiser. Knows rows and gradients; nothing of groups, versions or
steps."""

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from freerun.algorithms.base import Algorithm
from freerun.trainer.batch import Row, batch_of
from freerun.trainer.config import TrainerConfig
from freerun.trainer.forward import Policy, named_weights
from freerun.trainer.packing import Pack, packs_of_rows, packs_of_trees
from freerun.trainer.update import GradientSum, divide_and_clip
from freerun.types import Mean, Metric, Sum


class NotFinite(ArithmeticError):
    """A loss or a gradient norm is not a finite number. Arguments: which of the two, and the value."""


class Learner:
    """The policy being trained, its optimiser and, once frozen, the reference policy.

    `trained` maps names to the parameters that the optimiser moves. `seconds` adds up the time of each phase until
    `take_records` hands it out, with the tokens that were computed.
    """

    def __init__(self, network: PreTrainedModel, config: TrainerConfig) -> None:
        if config.lora is not None:
            # peft is optional and slow to import: its leaf file is imported by runs that use it.
            from freerun.trainer.lora import add_adapters

            add_adapters(network, config.lora, config.seed)
        self.config = config
        self.policy = Policy(network, config)
        self.reference: Policy | None = None
        self.trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.optimizer = self.new_optimizer()
        self._seconds: dict[str, float] = {}
        self._computed = self._padding = 0

    def new_optimizer(self) -> torch.optim.AdamW:
        """AdamW over the trained parameters; weight decay is for matrices."""
        parameters, config = list(self.trained.values()), self.config
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)

    def freeze_reference(self) -> None:
        """From now on the reference policy is a copy of the policy as it is."""
        self.reference = Policy(copy.deepcopy(self.policy.model).requires_grad_(False), self.config)

    def networks(self) -> dict[str, torch.nn.Module]:
        """What a checkpoint has to hold."""
        return {"policy": self.policy.model} | ({} if self.reference is None else {"reference": self.reference.model})

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
            return packs_of_trees(tokens, actions, budget=self.config.micro_tokens, balance=balance)

    def backward(
        self, pack: Pack, rows: Sequence[Row], gradient: GradientSum, algorithm: Algorithm, *, before_update: bool
    ) -> None:
        """Forward and backward of one micro-batch, added to `gradient` and to `.grad`. Raises `NotFinite` before `.grad` is
        touched."""
        with self.timed("forward"):
            batch = batch_of([rows[i] for i in pack.members], self.policy.device)
            if self.reference is not None and "logp_reference" not in batch:
                with torch.no_grad():
                    batch = batch.with_columns(logp_reference=self.reference(pack).logp_BT)
            predictions = self.policy(pack)
            if "logp_proximal" in algorithm.needs and "logp_proximal" not in batch:
                # A single update starts and ends with this forward pass, so these are the proximal log-probs, to the bit.
                batch = batch.with_columns(logp_proximal=predictions.logp_BT.detach())
            loss = gradient.loss(predictions, batch, before_update=before_update)
            if not torch.isfinite(loss):
                raise NotFinite("loss", float(loss.detach()))
        with self.timed("backward"):
            loss.backward()
        self._computed += pack.computed
        self._padding += pack.padding

    @torch.no_grad()
    def fix_columns(self, rows: Sequence[Row], *, proximal: bool) -> None:
        """Give each row its log-probs under the reference, if there is one, and under the policy as it is now, if
        `proximal`."""
        policies = {"logp_reference": self.reference, "logp_proximal": self.policy if proximal else None}
        wanted = {name: policy for name, policy in policies.items() if policy is not None}
        for pack in self.packs(rows) if wanted else []:
            for name, policy in wanted.items():
                with self.timed("forward"):
                    logp_BT = policy(pack).logp_BT.cpu()
                for logp_T, index in zip(logp_BT, pack.members, strict=True):
                    rows[index].per_token[name] = logp_T[: int(rows[index].action_T.sum())]

    def step(self, gradient: GradientSum, optimizer: torch.optim.Optimizer, lr: float) -> float:
        """Divide, clip, step, and forget the gradient. Returns its norm before clipping; raises `NotFinite` before the step."""
        with self.timed("optimizer"):
            norm = divide_and_clip(list(self.trained.values()), divisor=gradient.divisor, clip_norm=self.config.clip_norm)
            if not math.isfinite(norm):
                raise NotFinite("gradient norm", norm)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
        return norm

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
