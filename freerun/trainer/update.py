"""The generic update: executes an algorithm's loss terms and knows none of them.

A term's gradient over a step is `sum of weight * loss over all its elements / one global count`. Micro-batches add up sums; the
division happens once. When all terms of a step share reduction and mask, they share the count, so the sums are divided at the
end, and micro-batches can start before the step is complete. Otherwise the counts are taken first, which needs the whole step.

Shapes: B trajectories, T action tokens.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from freerun.algorithms.base import Algorithm, State, Term
from freerun.errors import ConfigError
from freerun.ops.ratios import RatioSums, mismatch, ratio_sums
from freerun.ops.reduce import count, element_weights, means, weighted_sum
from freerun.trainer.forward import Predictions, outputs_of
from freerun.types import Batch, Mean, Metric, merge_all

OUTPUTS = frozenset({"logp", "entropy", "values"})
"""What the networks of a language model give a term."""
NETWORKS = frozenset({"policy", "value"})
"""What a term can train."""
EVENTS = frozenset({"batch_start", "optimizer_step", "iteration_end"})
"""Moments at which an algorithm's state may change."""


def due(algorithm: Algorithm, num_updates: int) -> tuple[Term, ...]:
    """Terms whose turn it is in the optimiser step after `num_updates` others."""
    return tuple(term for term in algorithm.terms if num_updates % term.every == 0)


def share_a_count(terms: Iterable[Term]) -> bool:
    """True if one number divides the gradients of all `terms`."""
    return len({(term.reduction, term.mask) for term in terms}) <= 1


def check_algorithm(algorithm: Algorithm, produced: frozenset[str]) -> None:
    """Raises `ConfigError` if the algorithm asks for something that this trainer does not do. Values come from a critic, and
    there is one if a term trains it."""
    absent = set() if algorithm.has_critic else {"values"}
    asked = {
        "batch columns": (algorithm.columns, produced - absent),
        "networks": ({name for term in algorithm.terms for name in term.trains}, NETWORKS),
        "target networks": ({target.target for target in algorithm.targets}, set()),
        "network outputs": ({name for term in algorithm.terms for name in term.outputs}, OUTPUTS - absent),
        "events": (set(algorithm.events), EVENTS),
    }
    for what, (wanted, known) in asked.items():
        if missing := sorted(set(wanted) - set(known)):
            raise ConfigError(
                f"algorithm '{algorithm.name}' asks for {what} that this trainer does not have: {', '.join(missing)}",
                given=missing,
                expected=f"some of: {', '.join(sorted(known)) or 'none'}",
                todo="use another algorithm or trainer",
            )


class GradientSum:
    """The gradient of one optimiser step, as it adds up in `.grad` over micro-batches.

    `counts` are the global denominators by term, if they are known; without them (terms must share one), `divisor` is the
    number by which the gradient has to be divided in the end.
    """

    def __init__(
        self, algorithm: Algorithm, terms: Sequence[Term], state: State, counts: Mapping[str, float] | None = None
    ) -> None:
        self._algorithm, self._terms, self._state, self._counts = algorithm, terms, state, counts
        self._seen: dict[str, float] = dict.fromkeys((term.name for term in terms), 0.0)
        self._records: list[Mapping[str, Metric]] = []
        self._ratios = RatioSums()

    @property
    def divisor(self) -> float:
        return 1.0 if self._counts is not None or not self._seen else max(1.0, next(iter(self._seen.values())))

    def add_silent(self, batch: Batch) -> None:
        """Count trajectories whose loss is known to be 0 without computing it."""
        for term in self._terms:
            share = float(count(batch[term.mask], term.reduction, batch))
            self._seen[term.name] += share
            self._records.append({f"loss/{term.name}": Mean(0.0, share)})

    def metrics(self) -> dict[str, Metric]:
        """What the terms and the ratios of all micro-batches so far add up to."""
        return merge_all(self._records) | self._ratios.metrics()

    def loss(self, predictions: Predictions, batch: Batch, *, before_update: bool) -> Tensor:
        """The micro-batch's part of the loss, ready for `backward`; a scalar, not finite if any term is not.

        `before_update` says that these predictions come from the policy that the step began with.
        """
        logp_BT, mask_BT, outputs = predictions.logp_BT, batch["mask"], outputs_of(predictions)
        total = logp_BT.new_zeros(())
        for term in self._terms:
            term_mask_BT = batch[term.mask]
            result = term.loss(outputs, batch.read_by(f"term '{term.name}' of algorithm '{self._algorithm.name}'"), self._state)
            weight_BT = element_weights(term_mask_BT, term.reduction, batch)
            value = term.weight * weighted_sum(result.loss, weight_BT)
            total = total + (value if self._counts is None else value / max(1.0, self._counts[term.name]))
            number, share = torch.stack([value.detach(), count(term_mask_BT, term.reduction, batch)]).tolist()
            self._seen[term.name] += share
            self._records.append({f"loss/{term.name}": Mean(number, share), **_named(result.metrics)})
        self._records.append(means(mask_BT, entropy=predictions.entropy_BT))
        if "logp_behaviour" in batch:
            sampled_BT = batch.get("mask_rollout", mask_BT)
            self._ratios += ratio_sums(logp_BT, batch["logp_behaviour"], sampled_BT)
            if before_update and "lag" in batch:
                self._records.append(mismatch(logp_BT, batch["logp_behaviour"], batch["lag"], sampled_BT))
        return total


def global_counts(terms: Sequence[Term], batch: Batch) -> dict[str, float]:
    """The denominator of each term over a whole step; masks are data, so no forward pass is needed."""
    return {term.name: float(count(batch[term.mask], term.reduction, batch)) for term in terms}


@torch.no_grad()
def divide_and_clip(parameters: Sequence[Tensor], *, divisor: float, clip_norm: float) -> float:
    """Divide the gradients by `divisor`, then scale them to a norm of at most `clip_norm` (0: do not), in one pass over them.
    Returns the norm before clipping; if it is not finite, the gradients are left as they were."""
    grads: list[Tensor] = []
    for parameter in parameters:
        # No gradient is a gradient of 0: moments still decay. Else a step would depend on whether it computed its zeros.
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        grads.append(parameter.grad)
    norm = float(torch.nn.utils.get_total_norm(grads)) / divisor
    if math.isfinite(norm):
        scale = min(1.0, clip_norm / (norm + 1e-6)) if clip_norm else 1.0
        torch._foreach_mul_(grads, scale / divisor)
    return norm


def _named(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """An algorithm's own metrics get its prefix; a name with a slash is one of the table of metrics and stays."""
    return {name if "/" in name else f"algorithm/{name}": metric for name, metric in metrics.items()}
