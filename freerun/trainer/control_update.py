"""The generic update of control: executes an algorithm's terms on its networks and knows none of them.

In the order of the terms: the loss on the term's rows, its gradient with respect to the networks that it trains and no others,
one optimiser step of these; then the targets. Parameters that a term does not train cost no gradient.

Shapes: B rows of a batch.
"""

import copy
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from freerun.algorithms.control_base import ControlAlgorithm, Lookahead, Loss, Natural, Review, State, Target, Term
from freerun.models import control as models
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig
from freerun.trainer.natural import natural_step
from freerun.trainer.sources import Batches
from freerun.transitions import Spaces
from freerun.types import Batch, Mean, Metric


class NotFinite(ArithmeticError):
    """A loss or a gradient norm is not a finite number. Arguments: which of the two, and the value."""


class Updated(NamedTuple):
    """What an update gives: everything measured, or nothing if nobody asked; how far off the rows were, if a term knows;
    whether a term has had enough."""

    metrics: dict[str, Metric]
    surprise: Tensor | None
    enough: bool


class Moments:
    """The optimiser's memory of one network, and the network's parameters in the same order."""

    def __init__(self, network: nn.Module) -> None:
        self.names = [name for name, _ in network.named_parameters()]
        self.parameters = list(network.parameters())
        self.first: list[Tensor] = []
        self.second: list[Tensor] = []
        self.step = torch.zeros(())
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.step = torch.zeros((), device=self.parameters[0].device if self.parameters else None)

    def state(self) -> dict[str, Tensor]:
        return {f"{name}/{kind}": tensor for kind, name, tensor in self._tensors()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for kind, name, tensor in self._tensors():
            tensor.copy_(state[f"{name}/{kind}"])

    def _tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        steps = [self.step] * len(self.names)
        for kind, tensors in (("first", self.first), ("second", self.second), ("step", steps)):
            for name, tensor in zip(self.names, tensors, strict=True):
                yield kind, name, tensor


class Updater:
    """The networks, their targets and their optimisers. `num_updates` counts updates over the whole run."""

    def __init__(self, algorithm: ControlAlgorithm, spaces: Spaces, config: ControlTrainerConfig) -> None:
        algorithm.check(spaces)
        self._algorithm, self._config = algorithm, config
        normalise = config.observations != "raw"
        built = models.build(algorithm.networks, spaces, seed=config.seed, normalise=normalise)
        self.trained = {name: network.to(config.device) for name, network in built.items()}
        self.targets = {t.target: copy.deepcopy(self.trained[t.online]).requires_grad_(False) for t in algorithm.targets}
        self.networks: dict[str, nn.Module] = {**self.trained, **self.targets}
        self.moments = {name: Moments(network) for name, network in self.trained.items()}
        self.num_updates = 0
        self._pairs: list[tuple[Target, list[Tensor], list[Tensor]]] = [
            (
                t,
                [p.detach() for p in self.trained[t.online].parameters()],
                [p.detach() for p in self.targets[t.target].parameters()],
            )
            for t in algorithm.targets
        ]

    def due(self, phase: Phase, only: Collection[str] = ()) -> list[Term]:
        """Terms whose turn it is in the next update, the last of every so many; of those in `only`, if any are named."""
        return [
            term
            for term in self._algorithm.terms
            if (self.num_updates + 1) % phase.every.get(term.name, term.every) == 0
            and term.name not in phase.off
            and (not only or term.name in only)
            and set(term.trains) - set(phase.frozen)
        ]

    def update(
        self,
        batches: Batches,
        state: State,
        generator: Generator,
        phase: Phase,
        *,
        lr_share: float,
        report: bool,
        only: Collection[str] = (),
    ) -> Updated:
        """One update, of the terms in `only` if any are named. Raises `NotFinite`, where it looks."""
        metrics: dict[str, Metric] = {}
        surprise, enough = None, False
        for terms in joined(self.due(phase, only)):
            rows = [
                (term, batches.of(term.source).read_by(f"term '{term.name}' of algorithm '{self._algorithm.name}'"))
                for term in terms
            ]
            trains = [name for name in terms[0].trains if name not in phase.frozen]
            if terms[0].natural is not None:
                metrics |= self._natural(terms[0].natural, rows, trains, state, generator)
                continue
            outs = [term.loss(self.networks, batch, state, generator) for term, batch in rows]
            losses = [_mean(out, batch) for out, (_, batch) in zip(outs, rows, strict=True)]
            total = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
            norm = self._step(total, terms[0], trains, lr_share, look=report)
            for term, loss, out in zip(terms, losses, outs, strict=True):
                surprise = out.surprise.detach() if out.surprise is not None else surprise
                if term.until is not None:
                    enough = enough or float(out.watch[term.until[0]].detach().mean()) > term.until[1]
                if report:
                    metrics |= _measured(term, loss, out.watch, norm)
        self.num_updates += 1
        self._move_targets()
        return Updated(metrics, surprise, enough)

    def copy(self, copies: Mapping[str, str]) -> None:
        """Make networks copies of others, and let their optimisers begin anew."""
        for name, original in copies.items():
            self.trained[name].load_state_dict(self.networks[original].state_dict())
            self.moments[name].forget()

    def _natural(
        self, natural: Natural, rows: list[tuple[Term, Batch]], trains: Iterable[str], state: State, generator: Generator
    ) -> dict[str, Metric]:
        """A natural step on the sum of the terms' losses; what they measured before it."""
        noise, measured = generator.get_state(), dict[str, Metric]()

        def loss() -> Tensor:
            generator.set_state(noise)
            outs = [(term, batch, term.loss(self.networks, batch, state, generator)) for term, batch in rows]
            if not measured:
                for term, batch, out in outs:
                    measured.update(_measured(term, _mean(out, batch), out.watch, math.nan))
            return torch.stack([_mean(out, batch) for _, batch, out in outs]).sum()

        def divergence() -> Tensor:
            return torch.cat([natural.divergence(self.networks, batch) for _, batch in rows]).mean()

        moved = natural_step([p for name in trains for p in self.moments[name].parameters], loss, divergence, natural)
        name = rows[0][0].name
        if not math.isfinite(moved.norm):
            raise NotFinite(f"gradient norm of term '{name}'", moved.norm)
        return {**measured, f"grad_norm/{name}": Mean(moved.norm, 1), "kl/update": Mean(moved.divergence, 1)}

    def _step(self, loss: Tensor, term: Term, trains: Iterable[str], lr_share: float, *, look: bool) -> float:
        """One optimiser step of the networks in `trains`; the norm of its gradient, if somebody looks."""
        moments = [self.moments[name] for name in trains]
        parameters = [p for m in moments for p in m.parameters]
        grads = list(torch.autograd.grad(loss, parameters))
        norm = math.nan
        if look or self._config.clip_norm:
            norm = float(torch.nn.utils.get_total_norm(grads))
            if not math.isfinite(norm):
                raise NotFinite(f"gradient norm of term '{term.name}'", norm)
        if self._config.clip_norm and norm > self._config.clip_norm:
            torch._foreach_mul_(grads, self._config.clip_norm / (norm + 1e-6))
        same = not isinstance(term.lr, Mapping)
        parts = [moments] if same else [[m] for m in moments]
        start = 0
        for part, name in zip(parts, trains, strict=False):
            count = sum(len(m.parameters) for m in part)
            lr = term.lr[name] if isinstance(term.lr, Mapping) else term.lr
            self._adam(part, grads[start : start + count], lr * lr_share)
            start += count
        return norm

    @torch.no_grad()
    def _adam(self, moments: list[Moments], grads: list[Tensor], lr: float) -> None:
        config = self._config
        for m in moments:
            m.step.add_(1)
        # Not `torch.optim`'s own function around it, which for small networks takes longer than the step.
        torch._fused_adamw_(
            [p for m in moments for p in m.parameters],
            grads,
            [t for m in moments for t in m.first],
            [t for m in moments for t in m.second],
            [],
            [m.step for m in moments for _ in m.parameters],
            amsgrad=False,
            beta1=config.betas[0],
            beta2=config.betas[1],
            lr=lr,
            weight_decay=config.weight_decay,
            eps=config.eps,
            maximize=False,
        )

    @torch.no_grad()
    def _move_targets(self) -> None:
        for target, online, following in self._pairs:
            if self.num_updates % target.every:
                continue
            if target.rate == 1.0:
                torch._foreach_copy_(following, online)
            else:
                torch._foreach_lerp_(following, online, target.rate)
            if isinstance(target, Lookahead):
                torch._foreach_copy_(online, following)

    @torch.no_grad()
    def review(self, review: Review, batch: Batch, state: State, generator: Generator) -> State:
        """Look at the networks; the next state. What takes over weights has its own optimiser's memory still."""
        reader = f"review '{review.name}' of algorithm '{self._algorithm.name}'"
        reviewed = review.look(self.networks, batch.read_by(reader), state, generator)
        weights = {taker: copy.deepcopy(self.networks[giver].state_dict()) for taker, giver in reviewed.takes.items()}
        for taker, taken in weights.items():
            self.networks[taker].load_state_dict(taken)
        return reviewed.state

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Networks see observations as `(obs - mean) / std` from now on."""
        models.set_statistics(self.networks, mean.to(self._config.device), std.to(self._config.device))

    def weights(self) -> dict[str, Tensor]:
        """The tensors of all networks, targets included, as `<network>.<name>`."""
        return {f"{name}.{key}": t for name, network in self.networks.items() for key, t in network.state_dict().items()}

    def remember(self, source: str, obs_R: Tensor, action_R: Tensor) -> None:
        """These are the recorded steps of the data set `source`, for networks that look things up in it."""
        models.remember(self.trained, self._algorithm.networks, source, obs_R, action_R)

    def published(self) -> dict[str, Tensor]:
        """The weights that actors need, as `<network>.<name>`."""
        return {
            f"{name}.{key}": tensor
            for name in self._algorithm.acts_with
            for key, tensor in self.networks[name].state_dict().items()
        }

    def state(self) -> dict[str, Any]:
        return {
            "num_updates": self.num_updates,
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimizers": {name: moments.state() for name, moments in self.moments.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo `state`. Raises `KeyError` or `RuntimeError` if the networks are others."""
        self.num_updates = state["num_updates"]
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        for name, moments in self.moments.items():
            moments.load(state["optimizers"][name])


def joined(terms: Iterable[Term]) -> list[list[Term]]:
    """The terms in order, those together that make one step."""
    groups: list[list[Term]] = []
    for term in terms:
        if term.joins and groups and groups[-1][0].trains == term.trains:
            groups[-1].append(term)
        else:
            groups.append([term])
    return groups


def _mean(out: Loss, batch: Batch) -> Tensor:
    """A term's loss, by the weights of its rows where they have some."""
    return (out.loss * batch["weight"]).mean() if "weight" in batch else out.loss.mean()


def _measured(term: Term, loss: Tensor, watch: Mapping[str, Tensor], norm: float) -> dict[str, Metric]:
    """What a term reports: one transfer for all numbers. A name without a slash is the algorithm's own."""
    numbers = torch.stack([loss.detach(), *(value.detach().float().mean() for value in watch.values())]).tolist()
    if not math.isfinite(numbers[0]):
        raise NotFinite(f"loss of term '{term.name}'", numbers[0])
    names = [f"loss/{term.name}", *(name if "/" in name or name == "entropy" else f"algorithm/{name}" for name in watch)]
    measured: dict[str, Metric] = {n: Mean(v, 1) for n, v in zip(names, numbers, strict=True)}
    return measured if math.isnan(norm) else {**measured, f"grad_norm/{term.name}": Mean(norm, 1)}
