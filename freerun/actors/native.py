"""The native engine: continuous batching over slots, in plain PyTorch, on CPU and CUDA.

Shapes: n running responses, R rows of logits, V vocabulary.

One step decodes one token for every running response, then fills the slots that became free from the queue. Running responses
occupy slots 0 to n without holes, so that decoding reads keys and values in place. A group's prompt goes through the model
once: its keys and values are copied to the siblings' slots, and a sibling admitted later copies them from one that still runs.
What prompts have in common at their start (a system message, worked examples) is kept too, once per weights version.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from freerun.actors.adoption import adopt
from freerun.actors.engine import Finished
from freerun.actors.forward import Forward
from freerun.actors.graphs import Draws
from freerun.actors.response import Response
from freerun.actors.slots import Partition, Slots, Stretch, make_plan
from freerun.errors import DataError
from freerun.ops.sampling import SamplingRows, drawn, stream_key
from freerun.ops.transfer import tensor_on
from freerun.types import CachePolicy, Failure, FailureKind, Prompt, Request, Trajectory

_SHARED_PREFIX = 16
"""Shorter common starts are not worth keeping."""


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
        self._drawn = Draws() if self._device.type == "cuda" else drawn
        self._slots = Slots(num_layers, slots, max_context)
        self._running: list[Response] = []
        self._waiting: deque[Response] = deque()
        self._instant: list[tuple[int, Finished]] = []
        self._pending: tuple[int, Mapping[str, Tensor]] | None = None
        self._partition = Partition()
        self._rows: tuple[SamplingRows, Tensor] | None = None
        self._prefix: tuple[tuple[int, ...], tuple[Tensor, ...]] | None = None
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
                self._instant.append((request.num_samples, Finished(request.item, sample, partial)))
                continue
            response = Response(
                request.item, sample, request.num_samples, prompt, request.sampling, stream_key(request.seed, sample)
            )
            if partial is not None:
                response.resume(partial)
            self._waiting.append(response)

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """Admit waiting responses into free slots, then produce one token for every running one: the first tokens of the new
        ones come from the pass that prefills their prompts, which also decodes the others."""
        finished = [done for _, done in self._instant]
        self._instant = []
        if self._pending is not None and not self._running:
            self._swap(*self._pending)
        decoding = len(self._running)
        settings = self._settings() if decoding else None
        new = self._admit() if self._pending is None else range(0)
        if not self._running:
            return finished
        self._slots.reserve(max(response.length for response in self._running))
        if new:
            decoded_nV, new_RV = self._fill(new, decoding=decoding, logits=True)
        else:
            decoded_nV, _ = self._run((), decoding=decoding, logits=True)
        holes: list[int] = []
        if settings is not None:
            finished += self._record(decoded_nV, range(decoding), *settings, holes)
        if new:
            finished += self._record(new_RV, new, *self._settings_of(new), holes)
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
            self._fill(range(len(self._running)), decoding=0, logits=False)

    def pause(self, items: Sequence[int]) -> dict[int, tuple[Trajectory | None, ...]]:
        """Stop these items; what each sample has so far, in the form of `Request.partial`. Items not here are left out."""
        wanted = set(items)
        paused: dict[int, list[Trajectory | None]] = {}
        for response in [*self._running, *self._waiting]:
            if response.item in wanted:
                partial = response.trajectory(self._decode, None, self._policy) if response.tokens else None
                paused.setdefault(response.item, [None] * response.group_size)[response.sample] = partial
        holes = [slot for slot, response in enumerate(self._running) if response.item in wanted]
        for group_size, done in self._instant:
            if done.item in wanted:
                paused.setdefault(done.item, [None] * group_size)[done.sample] = done.outcome
        self._instant = [entry for entry in self._instant if entry[1].item not in wanted]
        self._waiting = deque(r for r in self._waiting if r.item not in wanted)
        with torch.inference_mode():
            self._close(holes)
        return {item: tuple(partials) for item, partials in paused.items()}

    def _swap(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        with torch.inference_mode(False):
            adopt(self._model, tensors)
        self._forward.refresh()
        self.version, self._pending, self._prefix = version, None, None

    def _settings(self) -> tuple[SamplingRows, Tensor]:
        """Sampling settings and stream keys of all that run, kept until others do."""
        if self._rows is None:
            self._rows = self._settings_of(range(len(self._running)))
        return self._rows

    def _settings_of(self, slots: Sequence[int]) -> tuple[SamplingRows, Tensor]:
        responses = [self._running[slot] for slot in slots]
        key_R = tensor_on(self._device, [r.key for r in responses])
        return SamplingRows.of([r.sampling for r in responses], self._device), key_R

    def _changed(self) -> None:
        """Others run now, or in other slots."""
        self._rows = None
        self._partition.reset()

    def _record(
        self, logits_RV: Tensor, slots: Sequence[int], rows: SamplingRows, key_R: Tensor, holes: list[int]
    ) -> list[Finished]:
        """Draw one token for each of `slots`; add those that ended to `holes` and return them."""
        responses = [self._running[slot] for slot in slots]
        position_R = tensor_on(self._device, [len(r.tokens) for r in responses])
        token_R, logp_R = self._drawn(logits_RV, rows, key_R, position_R).tolist()
        finished = []
        for slot, response, token, logp in zip(slots, responses, map(int, token_R), logp_R, strict=True):
            if logp != logp:
                message = f"logits of weights version {self.version} are not finite at position {response.length}"
                failure = Failure(FailureKind.MODEL, "native engine", message)
                finished.append(Finished(response.item, response.sample, failure))
                self._slots.clear(slot)
                holes.append(slot)
                continue
            response.add(token, logp, self.version)
            stop = response.ended(self._eos, self._decode, self._max_context)
            if stop is not None:
                routing_LTk = self._slots.routing(slot, response.length - 1)
                trajectory = response.trajectory(self._decode, stop, self._policy, routing_LTk)
                finished.append(Finished(response.item, response.sample, trajectory))
                holes.append(slot)
        self.generated += len(responses)
        return finished

    def _admit(self) -> range:
        """Move waiting responses into the free slots behind the running ones; returns those slots."""
        first = len(self._running)
        while self._waiting and len(self._running) < self._num_slots:
            self._running.append(self._waiting.popleft())
        if len(self._running) > first:
            self._changed()
        return range(first, len(self._running))

    def _close(self, holes: list[int]) -> None:
        """Move the last responses into the holes, so that the running ones stay dense."""
        if not holes:
            return
        count = len(self._running) - len(holes)
        targets = [hole for hole in holes if hole < count]
        sources = [slot for slot in range(count, len(self._running)) if slot not in holes]
        if targets:
            self._slots.copy(sources, targets, max(self._running[slot].length - 1 for slot in sources))
        for source, target in zip(sources, targets, strict=True):
            self._running[target] = self._running[source]
        del self._running[count:]
        self._changed()

    def _fill(self, slots: Sequence[int], *, decoding: int, logits: bool) -> tuple[Tensor | None, Tensor | None]:
        """Compute keys and values of the responses in `slots` with the weights in use: of everything, and return the logits
        [R, V] after each one's last token; or, without `logits`, of all but the last token, which the next step decodes.
        On the way decode slots 0 to `decoding`, whose logits [n, V] are returned first."""
        responses = [self._running[slot] for slot in slots]
        members: dict[tuple[int, ...], list[int]] = {}
        for index, response in enumerate(responses):
            members.setdefault(response.prompt, []).append(index)
        fresh = {r.prompt: slot for slot, r in enumerate(self._running) if r.filled == self.version}
        where = {prompt: slots[indices[0]] for prompt, indices in members.items()}
        decoded_nV, first = self._fill_prompts(where, fresh, decoding, logits)
        rows: list[Tensor | None] = [None] * len(responses)
        rest = []
        for prompt, indices in members.items():
            if len(indices) > 1:
                self._slots.copy([slots[indices[0]]], [slots[i] for i in indices[1:]], len(prompt))
            for index in indices:
                response = responses[index]
                response.filled = self.version
                tokens = response.tokens if logits else response.tokens[:-1]
                if tokens:
                    rest.append((index, Stretch(slots[index], len(prompt), tokens)))
                elif logits:
                    rows[index] = first[prompt]
        _, following = self._run([stretch for _, stretch in rest], decoding=0, logits=logits)
        if not logits:
            return None, None
        for row, (index, _) in enumerate(rest):
            rows[index] = following[row]
        return decoded_nV, torch.stack(rows)

    def _fill_prompts(
        self, where: Mapping[tuple[int, ...], int], fresh: Mapping[tuple[int, ...], int], decoding: int, logits: bool
    ) -> tuple[Tensor | None, dict[tuple[int, ...], Tensor]]:
        """Fill each prompt into its slot, from a slot that holds it (`fresh`), from the shared prefix, or through the model.
        Returns the logits of the slots that were decoded beside them, and the logits after each prompt."""
        stretches: dict[tuple[int, ...], Stretch] = {}
        unknown = []
        for prompt, slot in where.items():
            if prompt in fresh:
                self._slots.copy([fresh[prompt]], [slot], len(prompt))
                stretches[prompt] = Stretch(slot, len(prompt) - 1, prompt[-1:])
            else:
                unknown.append(prompt)
        results: dict[tuple[int, ...], Tensor] = {}
        common = self._common_start(unknown) if unknown and self._share_prefix else 0
        leader = unknown[0] if common else ()
        if common and len(unknown) > 1:
            # The others start from what it leaves behind.
            _, rows_RV = self._run([self._rest(leader, where[leader])], decoding=0, logits=logits)
            results.update(zip([leader], rows_RV, strict=logits))
            self._prefix = leader[:common], self._slots.snapshot(where[leader], common)
            unknown = unknown[1:]
        stretches.update((prompt, self._rest(prompt, where[prompt])) for prompt in unknown)
        decoded_nV, rows_RV = self._run(list(stretches.values()), decoding=decoding, logits=logits)
        results.update(zip(stretches, rows_RV, strict=logits))
        if common and leader in stretches:
            self._prefix = leader[:common], self._slots.snapshot(where[leader], common)
        return decoded_nV, results

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

    def _run(self, stretches: Sequence[Stretch], *, decoding: int, logits: bool) -> tuple[Tensor | None, Sequence[Tensor]]:
        """Run `stretches` through the model in passes of at most `prefill_tokens`, the first of which also decodes slots 0 to
        `decoding`. Returns the logits [n, V] of the latter and [R, V] after each stretch."""
        current = [(r.tokens[-1], r.length - 1) for r in self._running[:decoding]]
        # Rectangles that fit are for a CPU without our kernels; on CUDA one launch more costs more than what it leaves out.
        cut = decoding and not self._slots.compiled and self._device.type == "cpu"
        runs = self._partition.runs([p + 1 for _, p in current], self._slots.capacity) if cut else ()
        decoded_nV = None
        outputs: list[Tensor] = []
        order: list[int] = []
        for batch in passes(stretches, self._prefill_tokens) or [[]] * bool(decoding):
            plan, token_N, last = make_plan(
                self._slots, self._device, decoding=current, runs=runs, stretches=[piece for _, piece in batch]
            )
            ends = [(i, row) for (i, piece), row in zip(batch, last, strict=True) if piece.end == stretches[i].end]
            rows = [*range(len(current)), *(row for _, row in ends)] if logits else []
            row_R = tensor_on(self._device, rows, torch.int64) if batch else None
            logits_RV = self._forward(token_N, plan, row_R)
            if current:
                decoded_nV = logits_RV[: len(current)]
            outputs.append(logits_RV[len(current) :])
            order += [index for index, _ in ends]
            self.prefilled += len(token_N) - len(current)
            current, runs = [], ()
        if not logits or not outputs:
            return decoded_nV, ()
        back = sorted(range(len(order)), key=order.__getitem__)
        return decoded_nV, torch.cat(outputs)[tensor_on(self._device, back, torch.int64)]


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
