"""Mixtures of experts: which experts every token went to, recorded and replayed.

A router scores the experts and chooses the few that score best, with one call of `torch.topk`. That call alone is replaced:
everything else (softmax before or after, normalisation, scale) is the router's own code. So a replayed token goes to the
experts of the recording, with gates from the router as it is now; gradients reach the scores of the chosen experts, and nothing
reaches the choice.

Shapes: L routers of a model, N tokens of a pass in the order in which the model flattens them, E experts, k of them per token.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from freerun.errors import ConfigError


class Routers:
    """The routers of `model`, in the order of its layers.

    Raises `ConfigError` at construction if it has none, or if one of them does not choose with one call of `torch.topk`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._routers = [module for module in model.modules() if type(module).__name__.endswith("Router")]
        self._check(model)

    @contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """A list that the next pass fills with the experts [N, k] that each router chose."""
        with self._choosing([None] * len(self._routers)) as choices:
            made: list[Tensor] = []
            yield made
            made.extend(choice.made[-1] for choice in choices)

    @contextmanager
    def replaying(self, expert_LNk: Tensor) -> Iterator[None]:
        """Inside, tokens go to these experts, in the backward pass of a checkpointed layer too."""
        with self._choosing(list(expert_LNk)):
            yield

    @contextmanager
    def _choosing(self, given: "Sequence[Tensor | None]") -> "Iterator[list[_Choice]]":
        choices = [_Choice(expert_Nk) for expert_Nk in given]
        with ExitStack() as stack:
            for router, choice in zip(self._routers, choices, strict=True):
                stack.enter_context(_forward_replaced(router, choice.around(router.forward)))
            yield choices

    @torch.no_grad()
    def _check(self, model: PreTrainedModel) -> None:
        token_RL = torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device)
        with self._choosing([None] * len(self._routers)) as choices:
            model(input_ids=token_RL, use_cache=False)
        calls = [len(choice.made) for choice in choices]
        if not calls or set(calls) != {1}:
            raise ConfigError(
                "routing cannot be replayed in this model",
                given=f"{type(model).__name__} with {len(calls)} routers, which chose {calls} times for one pass",
                expected="a mixture of experts whose routers choose once, with torch.topk",
                todo="use another model, or an algorithm that leaves routing free (--algorithm.routing free)",
            )


class _Choice(TorchFunctionMode):
    """Inside it `torch.topk` chooses `given`, if that is set; `made` lists what was chosen."""

    def __init__(self, given_Nk: Tensor | None) -> None:
        super().__init__()
        self.given_Nk, self.made = given_Nk, list[Tensor]()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func not in (torch.topk, Tensor.topk):
            return func(*args, **(kwargs or {}))
        if self.given_Nk is None:
            value_Nk, expert_Nk = func(*args, **(kwargs or {}))
        else:
            score_NE, expert_Nk = args[0], self.given_Nk
            value_Nk = score_NE.gather(-1, expert_Nk)
        self.made.append(expert_Nk)
        return torch.return_types.topk((value_Nk, expert_Nk))

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """`forward` with this choice in force."""

        def chosen(*args: Any, **kwargs: Any) -> Any:
            with self:
                return forward(*args, **kwargs)

        return chosen


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    # On the instance and for the duration only: a copy of the model made at another time knows nothing of it.
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward
