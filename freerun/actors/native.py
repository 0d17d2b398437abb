"""The native engine: continuous batching over slots, in plain PyTorch, on CPU and CUDA.

Shapes: n running responses, R rows of logits, V vocabulary.

One step decodes one token for every running response, then fills the slots that became free from the queue. Running responses
occupy slots 0 to n without holes, so that decoding reads keys and values in place. A group's prompt goes through the model
once: its keys and values are copied to the siblings' slots, and a sibling admitted later copies them from one that still runs.
What prompts have in common at their start (a system message, worked examples) is kept too, once per weights version.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from freerun.actors.adoption import adopt
from freerun.actors.engine import Finished
from freerun.actors.forward import Forward
from freerun.actors.slots import Slots, Stretch, decode_plan, prefill_plan
from freerun.errors import DataError
from freerun.ops.sampling import SamplingRows, draw, stream_key, uniform
from freerun.types import CachePolicy, Failure, FailureKind, Prompt, Request, Sampling, Stop, Trajectory

_SHARED_PREFIX = 16
"""Shorter common starts are not worth keeping."""


@dataclass(slots=True, eq=False)
class Response:
    """One response that waits or runs. `filled` is the version whose weights made its prompt's keys and values."""

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


class NativeEngine:
    """An `Engine`. `forward` runs passes of `model`, whose weights `load` replaces.

    encode, decode   prompt to tokens, response tokens to text
    eos              tokens that end a response
    slots            responses that run at once
    max_context      tokens of prompt and response together
    prefill_tokens   most tokens of one prefill pass; longer prompts take several
    share_prefix     keep the common start of prompts
    """

    def __init__(
        self,
        model: torch.nn.Module,
        forward: Forward,
        *,
        num_layers: int,
        encode: Callable[[Prompt], Sequence[int]],
        decode: Callable[[Sequence[int]], str],
        eos: frozenset[int],
        slots: int,
        max_context: int,
        prefill_tokens: int = 2048,
        share_prefix: bool = True,
        policy: CachePolicy = CachePolicy.KEEP,
    ) -> None:
        self.version = 0
        self.generated, self.prefilled = 0, 0
        self._model, self._forward = model, forward
        self._encode, self._decode, self._eos = encode, decode, eos
        self._num_slots, self._max_context, self._prefill_tokens = slots, max_context, prefill_tokens
        self._share_prefix, self._policy = share_prefix, policy
        self._device = next(model.parameters()).device
        self._slots = Slots(num_layers, slots, max_context)
        self._running: list[Response] = []
        self._waiting: deque[Response] = deque()
        self._instant: list[Finished] = []
        self._pending: tuple[int, Mapping[str, Tensor]] | None = None
        self._rows: SamplingRows | None = None
        self._key_n: Tensor | None = None
        self._prefix: tuple[tuple[int, ...], tuple[Tensor, Tensor]] | None = None
        self._recent: tuple[int, ...] = ()

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._instant)

    def submit(self, request: Request) -> None:
        """Queue a group; its prompt is prefilled once. A partial that has already ended is returned by the next step as it is.

        Raises `DataError` if the prompt is empty or leaves no room in the context."""
        prompt = tuple(self._encode(request.prompt))
        if not 0 < len(prompt) < self._max_context:
            raise DataError(
                f"prompt '{request.prompt.uid}' leaves no room for a response",
                given=f"{len(prompt)} tokens",
                expected=f"1 to {self._max_context - 1} tokens, of a context of {self._max_context}",
                todo="shorten or drop the prompt, or raise generator.max_context",
            )
        for sample in range(request.num_samples):
            partial = request.partial[sample] if request.partial else None
            if partial is not None and partial.stop is not None:
                self._instant.append(Finished(request.item, sample, partial))
                continue
            response = Response(
                request.item, sample, request.num_samples, prompt, request.sampling, stream_key(request.seed, sample)
            )
            if partial is not None:
                response.tokens = partial.tokens_T[partial.action_T].tolist()
                response.logps = partial.logp_T[partial.action_T].tolist()
                response.versions = partial.version_T[partial.action_T].tolist()
            self._waiting.append(response)

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """Decode one token for every running response, then admit waiting ones, whose first token comes from their prefill."""
        finished, self._instant = self._instant, []
        if self._pending is not None and not self._running:
            self._swap(*self._pending)
        holes: list[int] = []
        if self._running:
            slots = range(len(self._running))
            finished += self._record(self._decode_logits(), slots, self._running_rows(), self._key_n, holes)
        if self._pending is None and self._waiting:
            slots = self._admit(holes)
            if slots:
                responses = [self._running[slot] for slot in slots]
                key_R = torch.tensor([r.key for r in responses])
                rows = SamplingRows.of([r.sampling for r in responses], self._device)
                finished += self._record(self._fill(slots, logits=True), slots, rows, key_R, holes)
        self._close(holes)
        return finished

    @torch.inference_mode()
    def load(self, version: int, tensors: Mapping[str, Tensor], policy: CachePolicy) -> None:
        """Swap weights now; with `FINISH`, as soon as the responses running now have ended, and none is admitted until then.
        A second `FINISH` replaces the one that still waits. `tensors` must stay readable until they are replaced."""
        self._policy = policy
        if policy is CachePolicy.FINISH and self._running:
            self._pending = version, tensors
            return
        self._swap(version, tensors)
        if policy is CachePolicy.RECOMPUTE and self._running:
            self._fill(range(len(self._running)), logits=False)

    def pause(self, items: Sequence[int]) -> dict[int, tuple[Trajectory | None, ...]]:
        """Stop these items; what each sample has so far, in the form of `Request.partial`. Items not here are left out."""
        wanted = set(items)
        paused: dict[int, list[Trajectory | None]] = {}
        holes = []
        for response in [*self._running, *self._waiting]:
            if response.item in wanted:
                partial = self._trajectory(response, None) if response.tokens else None
                paused.setdefault(response.item, [None] * response.group_size)[response.sample] = partial
        holes = [slot for slot, response in enumerate(self._running) if response.item in wanted]
        for done in self._instant:
            if done.item in wanted:
                paused.setdefault(done.item, [None] * (done.sample + 1))[done.sample] = done.outcome
        self._waiting = deque(r for r in self._waiting if r.item not in wanted)
        with torch.inference_mode():
            self._close(holes)
        return {item: tuple(partials) for item, partials in paused.items()}

    def _swap(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        with torch.inference_mode(False):
            adopt(self._model, tensors)
        self._forward.refresh()
        self.version, self._pending, self._prefix = version, None, None

    def _decode_logits(self) -> Tensor:
        lengths = [response.length - 1 for response in self._running]
        self._slots.reserve(max(lengths) + 1)
        plan = decode_plan(self._slots, lengths, self._device)
        token_n = torch.tensor([response.tokens[-1] for response in self._running], device=self._device)
        return self._forward(token_n, plan, None)

    def _running_rows(self) -> SamplingRows:
        if self._rows is None:
            self._rows = SamplingRows.of([r.sampling for r in self._running], self._device)
            self._key_n = torch.tensor([r.key for r in self._running])
        return self._rows

    def _record(
        self, logits_RV: Tensor, slots: Sequence[int], rows: SamplingRows, key_R: Tensor, holes: list[int]
    ) -> list[Finished]:
        """Draw one token for each of `slots`; add those that ended to `holes` and return them."""
        responses = [self._running[slot] for slot in slots]
        position_R = torch.tensor([len(r.tokens) for r in responses])
        token_R, logp_R = draw(logits_RV, rows, uniform(key_R, position_R).to(self._device))
        finished = []
        for slot, response, token, logp in zip(slots, responses, token_R.tolist(), logp_R.tolist(), strict=True):
            if logp != logp:
                message = f"logits of weights version {self.version} are not finite at position {response.length}"
                failure = Failure(FailureKind.MODEL, "native engine", message)
                finished.append(Finished(response.item, response.sample, failure))
                self._slots.clear(slot)
                holes.append(slot)
                continue
            response.tokens.append(token)
            response.logps.append(logp)
            response.versions.append(self.version)
            stop = self._stop(response)
            if stop is not None:
                finished.append(Finished(response.item, response.sample, self._trajectory(response, stop)))
                holes.append(slot)
        self.generated += len(responses)
        return finished

    def _stop(self, response: Response) -> Stop | None:
        if response.tokens[-1] in self._eos:
            return Stop.EOS
        if response.sampling.stop and self._stop_string(response):
            return Stop.STRING
        if len(response.tokens) >= response.sampling.max_tokens:
            return Stop.LENGTH
        return Stop.CONTEXT if response.length >= self._max_context else None

    def _stop_string(self, response: Response) -> bool:
        """Whether the text of the last tokens holds a stop string. A token that adds text adds at least a byte, and two more
        tokens keep what a tokenizer does to the first character of a text away from the match."""
        reach = max(len(stop.encode()) for stop in response.sampling.stop) + 2
        text = self._decode(response.tokens[-reach:])
        return any(stop in text for stop in response.sampling.stop)

    def _admit(self, holes: list[int]) -> list[int]:
        """Move waiting responses into free slots, `holes` first; returns the slots."""
        slots = []
        while self._waiting and (holes or len(self._running) < self._num_slots):
            response = self._waiting.popleft()
            if holes:
                slots.append(holes.pop(0))
                self._running[slots[-1]] = response
            else:
                slots.append(len(self._running))
                self._running.append(response)
        if slots:
            self._rows = None
        return slots

    def _close(self, holes: list[int]) -> None:
        """Move the last responses into the holes, so that the running ones stay dense."""
        for hole in sorted(holes, reverse=True):
            last = self._running.pop()
            if hole < len(self._running):
                self._slots.copy(len(self._running), [hole], last.length - 1)
                self._running[hole] = last
        if holes:
            self._rows = None

    def _fill(self, slots: Sequence[int], *, logits: bool) -> Tensor | None:
        """Compute keys and values of the responses in `slots` with the weights in use: of everything, and return the logits
        [R, V] after each one's last token; or, without `logits`, of all but the last token, which the next step decodes."""
        responses = [self._running[slot] for slot in slots]
        self._slots.reserve(max(r.length for r in responses))
        members: dict[tuple[int, ...], list[int]] = {}
        for index, response in enumerate(responses):
            members.setdefault(response.prompt, []).append(index)
        fresh = {r.prompt: slot for slot, r in enumerate(self._running) if r.filled == self.version}
        first = self._fill_prompts({p: slots[indices[0]] for p, indices in members.items()}, fresh, logits)
        rows: list[Tensor | None] = [None] * len(responses)
        rest = []
        for prompt, indices in members.items():
            if len(indices) > 1:
                self._slots.copy(slots[indices[0]], [slots[i] for i in indices[1:]], len(prompt))
            for index in indices:
                response = responses[index]
                response.filled = self.version
                tokens = response.tokens if logits else response.tokens[:-1]
                if tokens:
                    rest.append((index, Stretch(slots[index], len(prompt), tokens)))
                elif logits:
                    rows[index] = first[prompt]
        following = self._prefill([stretch for _, stretch in rest], logits)
        if not logits:
            return None
        for row, (index, _) in enumerate(rest):
            rows[index] = following[row]
        return torch.stack(rows)

    def _fill_prompts(
        self, where: Mapping[tuple[int, ...], int], fresh: Mapping[tuple[int, ...], int], logits: bool
    ) -> dict[tuple[int, ...], Tensor]:
        """Fill each prompt into its slot, from a slot that holds it (`fresh`), from the shared prefix, or through the model.
        Returns the logits after each."""
        stretches: dict[tuple[int, ...], Stretch] = {}
        unknown = []
        for prompt, slot in where.items():
            if prompt in fresh:
                self._slots.copy(fresh[prompt], [slot], len(prompt))
                stretches[prompt] = Stretch(slot, len(prompt) - 1, prompt[-1:])
            else:
                unknown.append(prompt)
        results: dict[tuple[int, ...], Tensor] = {}
        if unknown and self._share_prefix:
            common = self._common_start(unknown)
            if common:
                leader = unknown.pop(0)
                rows_1V = self._prefill([self._rest(leader, where[leader])], logits)
                results[leader] = rows_1V[0] if logits else None
                self._prefix = leader[:common], self._slots.snapshot(where[leader], common)
        for prompt in unknown:
            stretches[prompt] = self._rest(prompt, where[prompt])
        rows_RV = self._prefill(list(stretches.values()), logits)
        if logits:
            results.update(zip(stretches, rows_RV if rows_RV is not None else (), strict=True))
        return results

    def _common_start(self, prompts: Sequence[tuple[int, ...]]) -> int:
        """How much of the first prompt to keep as the shared prefix before the others are filled; 0 to leave it as it is."""
        others = [*prompts[1:], self._recent] if self._recent else prompts[1:]
        self._recent = prompts[-1]
        common = min(common_start([prompts[0], *others]), *(len(p) - 1 for p in prompts)) if others else 0
        known = common_start([self._prefix[0], *prompts]) if self._prefix else 0
        return common if common >= known + _SHARED_PREFIX else 0

    def _rest(self, prompt: tuple[int, ...], slot: int) -> Stretch:
        """What is left to run of a prompt after restoring what the shared prefix has of it."""
        start = 0
        if self._prefix is not None:
            start = min(common_start([self._prefix[0], prompt]), len(prompt) - 1)
            self._slots.restore(self._prefix[1], slot, start)
        return Stretch(slot, start, prompt[start:])

    def _prefill(self, stretches: Sequence[Stretch], logits: bool) -> Tensor | None:
        """Run `stretches` through the model in passes of at most `prefill_tokens`; logits [R, V] after the end of each."""
        outputs = []
        order: list[int] = []
        for batch in passes(stretches, self._prefill_tokens):
            plan, token_N, last = prefill_plan(self._slots, [stretch for _, stretch in batch], self._device)
            ends = [(i, row) for (i, piece), row in zip(batch, last, strict=True) if piece.end == stretches[i].end]
            row_R = torch.tensor([row for _, row in ends] if logits else [], dtype=torch.int64, device=self._device)
            outputs.append(self._forward(token_N, plan, row_R))
            order += [index for index, _ in ends]
            self.prefilled += len(token_N)
        if not logits or not stretches:
            return None
        back = sorted(range(len(order)), key=order.__getitem__)
        return torch.cat(outputs)[torch.tensor(back, device=self._device)]

    def _trajectory(self, response: Response, stop: Stop | None) -> Trajectory:
        prompt, count = len(response.prompt), len(response.tokens)
        action_T = torch.zeros(prompt + count, dtype=torch.bool)
        action_T[prompt:] = True
        return Trajectory(
            tokens_T=torch.tensor([*response.prompt, *response.tokens]),
            action_T=action_T,
            logp_T=torch.tensor([0.0] * prompt + response.logps),
            version_T=torch.tensor([-1] * prompt + response.versions, dtype=torch.int32),
            text=self._decode(response.tokens),
            stop=stop,
            cache_policy=self._policy,
        )


def passes(stretches: Sequence[Stretch], budget: int) -> list[list[tuple[int, Stretch]]]:
    """Cut `stretches` into passes of at most `budget` tokens, each piece with the index of its stretch, in order."""
    batches: list[list[tuple[int, Stretch]]] = []
    room = 0
    for index, stretch in enumerate(stretches):
        done = 0
        while done < len(stretch.tokens):
            if not room:
                batches.append([])
                room = budget
            piece = stretch.tokens[done : done + room]
            batches[-1].append((index, Stretch(stretch.slot, stretch.start + done, piece)))
            done += len(piece)
            room -= len(piece)
    return batches


def common_start(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the start that all `sequences` share."""
    first, last = min(sequences), max(sequences)
    # What the first and the last in lexicographic order share, all between them share.
    for index, (left, right) in enumerate(zip(first, last, strict=False)):
        if left != right:
            return index
    return min(len(first), len(last))
