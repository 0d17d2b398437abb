"""One response on its way: what it has said so far, when it is over, and the trajectory that it becomes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from freerun.types import CachePolicy, Sampling, Stop, Trajectory


@dataclass(slots=True, eq=False)
class Response:
    """A response that waits or runs. `key` starts its stream of uniforms; `filled` is the version whose weights made the keys
    and values of its prompt."""

    item: int
    sample: int
    group_size: int
    prompt: tuple[int, ...]
    sampling: Sampling
    key: int
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    filled: int = -1

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt) + len(self.tokens)

    def resume(self, partial: Trajectory) -> None:
        """Go on from what a trajectory has."""
        self.tokens = partial.tokens_T[partial.action_T].tolist()
        self.logps = partial.logp_T[partial.action_T].tolist()
        self.versions = partial.version_T[partial.action_T].tolist()

    def add(self, token: int, logp: float, version: int) -> None:
        """The policy of `version` chose `token`."""
        self.tokens.append(token)
        self.logps.append(logp)
        self.versions.append(version)

    def ended(self, eos: frozenset[int], decode: Callable[[Sequence[int]], str], max_context: int) -> Stop | None:
        """Why the response ends with its last token, or None if it goes on."""
        if self.tokens[-1] in eos:
            return Stop.EOS
        if self.sampling.stop and self._stop_string(decode):
            return Stop.STRING
        if len(self.tokens) >= self.sampling.max_tokens:
            return Stop.LENGTH
        return Stop.CONTEXT if self.length >= max_context else None

    def trajectory(
        self,
        decode: Callable[[Sequence[int]], str],
        stop: Stop | None,
        policy: CachePolicy,
        routing_LTk: Tensor | None = None,
    ) -> Trajectory:
        """What there is so far."""
        prompt, count = len(self.prompt), len(self.tokens)
        action_T = torch.zeros(prompt + count, dtype=torch.bool)
        action_T[prompt:] = True
        return Trajectory(
            tokens_T=torch.tensor([*self.prompt, *self.tokens]),
            action_T=action_T,
            logp_T=torch.tensor([0.0] * prompt + self.logps),
            version_T=torch.tensor([-1] * prompt + self.versions, dtype=torch.int32),
            text=decode(self.tokens),
            stop=stop,
            cache_policy=policy,
            routing_LTk=routing_LTk,
        )

    def _stop_string(self, decode: Callable[[Sequence[int]], str]) -> bool:
        """Whether the text of the last tokens holds a stop string. A token that adds text adds at least a byte; two more keep
        what a tokenizer does to the first character of a text away from the match; more are read where some add none."""
        longest = max(len(stop.encode()) for stop in self.sampling.stop)
        reach = longest + 2
        text = decode(self.tokens[-reach:])
        while len(text) <= longest and reach < len(self.tokens):
            reach *= 2
            text = decode(self.tokens[-reach:])
        return any(stop in text for stop in self.sampling.stop)
