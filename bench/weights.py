"""From publication to adoption: seconds and GB/s of a 135M-parameter model's tensors, per transport, beside a plain copy.

    python bench/weights.py [--dtype float32|bfloat16] [--transports inprocess shared monarch] [--rounds 9] [--json FILE]

The trainer and the reader are two processes, except for `inprocess`. Each round measures a plain copy of the same bytes and
every transport, one after another, so that a busy neighbour disturbs all alike; five rounds of warm-up, then the median.

- `publish`  the trainer's share: cast and copy into the transport's buffer
- `adopt`    the reader's share, until it holds the tensors
- `total`    from the start of the publication to the end of the adoption, messages between the processes included
- `vs copy`  how fast that is, relative to the plain copy of the same round
- `read`     a first pass over all bytes by the reader afterwards: mapped pages are touched then
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from freerun.placement.base import ExecutorSpec
from freerun.placement.monarch import MonarchPlacement
from freerun.types import WeightsRef
from freerun.weights import inprocess, monarch, shared

WARM_UP = 5
TRANSPORTS = {"inprocess": inprocess, "shared": shared, "monarch": monarch}


def smollm2_shapes() -> dict[str, tuple[int, ...]]:
    """Parameters of SmolLM2-135M; the head is tied to the embedding."""
    width, kv_width, inner = 576, 192, 1536
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (49152, width), "model.norm.weight": (width,)}
    for layer in range(30):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}self_attn.q_proj.weight": (width, width),
            f"{prefix}self_attn.k_proj.weight": (kv_width, width),
            f"{prefix}self_attn.v_proj.weight": (kv_width, width),
            f"{prefix}self_attn.o_proj.weight": (width, width),
            f"{prefix}mlp.gate_proj.weight": (inner, width),
            f"{prefix}mlp.up_proj.weight": (inner, width),
            f"{prefix}mlp.down_proj.weight": (width, inner),
            f"{prefix}input_layernorm.weight": (width,),
            f"{prefix}post_attention_layernorm.weight": (width,),
        }
    return shapes


class Trainer:
    """Holds random tensors of the model's shapes and publishes them."""

    def __init__(self, publishers: Mapping[str, Callable[[], Any]]) -> None:
        self._tensors = {name: torch.randn(shape) for name, shape in smollm2_shapes().items()}
        self._publishers = {name: make() for name, make in publishers.items()}
        self._subscriber = inprocess.subscriber()()
        self._source = torch.randn(sum(t.numel() for t in self._tensors.values()))
        self._target = torch.zeros_like(self._source)
        self._version = 0

    def copy(self, num_bytes: int) -> float:
        """Seconds of a plain copy of `num_bytes` within this process."""
        num = num_bytes // self._source.element_size()
        start = time.monotonic()
        self._target[:num].copy_(self._source[:num])
        return time.monotonic() - start

    def publish(self, transport: str) -> tuple[WeightsRef, float, float]:
        """The published version, and when that began and ended on the clock that all processes of the host share."""
        self._version += 1
        start = time.monotonic()
        ref = self._publishers[transport].publish(self._version, self._tensors)
        return ref, start, time.monotonic()

    def adopt_here(self, ref: WeightsRef) -> tuple[float, float]:
        return _adopt(self._subscriber, ref)

    def close(self) -> None:
        for publisher in self._publishers.values():
            publisher.close()


class Reader:
    def __init__(self, subscribers: Mapping[str, Callable[[], Any]]) -> None:
        self._subscribers = {name: make() for name, make in subscribers.items()}

    def adopt(self, ref: WeightsRef) -> tuple[float, float]:
        return _adopt(self._subscribers[ref.transport], ref)


def _adopt(subscriber: Any, ref: WeightsRef) -> tuple[float, float]:
    """When the adoption ended, and the seconds that a first pass over the tensors takes then."""
    tensors = subscriber.adopt(ref)
    end = time.monotonic()
    for tensor in tensors.values():
        tensor.sum()
    return end, time.monotonic() - end


async def measure(names: list[str], dtype: str, rounds: int, threads: int) -> dict[str, dict[str, float]]:
    """Medians by transport, and of the plain copy as `copy`."""
    cores = sorted(os.sched_getaffinity(0))
    placement = MonarchPlacement()
    publishers = {name: TRANSPORTS[name].publisher(dtype=dtype) for name in names}
    subscribers = {name: TRANSPORTS[name].subscriber() for name in names if name != "inprocess"}
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in ["copy", *names]}
    num_bytes = sum(torch.Size(s).numel() for s in smollm2_shapes().values()) * getattr(torch, dtype).itemsize

    def keep(name: str, **values: float) -> None:
        for key, value in values.items():
            samples[name].setdefault(key, []).append(value)

    try:
        trainer, reader = (
            await placement.spawn(
                [
                    ExecutorSpec(name="trainer", factory=Trainer, args=(publishers,), cores=(cores[0],), threads=threads),
                    ExecutorSpec(name="reader", factory=Reader, args=(subscribers,), cores=(cores[-1],), threads=threads),
                ]
            )
        ).values()
        for _ in range(WARM_UP + rounds):
            copied = await trainer.call("copy", num_bytes, deadline=60)
            keep("copy", total=copied)
            for name in names:
                ref, start, published = await trainer.call("publish", name, deadline=60)
                adopter, method = (trainer, "adopt_here") if name == "inprocess" else (reader, "adopt")
                begin = time.monotonic()
                adopted, read = await adopter.call(method, ref, deadline=120)
                keep(
                    name,
                    publish=published - start,
                    adopt=adopted - begin,
                    total=adopted - start,
                    read=read,
                    relative=copied / (adopted - start),
                )
    finally:
        await placement.stop()
    medians = {n: {k: statistics.median(v[WARM_UP:]) for k, v in s.items()} for n, s in samples.items()}
    for entry in medians.values():
        entry["GB/s"] = num_bytes / 1e9 / entry["total"]
    return medians


def table(medians: Mapping[str, Mapping[str, float]]) -> str:
    columns = [("publish", "s"), ("adopt", "s"), ("total", "s"), ("GB/s", ""), ("relative", "x"), ("read", "s")]
    heads = {"relative": "vs copy"}
    lines = ["| transport | " + " | ".join(heads.get(c, c) + (f" ({u})" if u == "s" else "") for c, u in columns) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    for name, entry in medians.items():
        cells = [f"{entry[c]:.3f}" if c in entry else "" for c, _ in columns]
        lines.append(f"| {name if name != 'copy' else 'plain copy'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--transports", nargs="+", choices=list(TRANSPORTS), default=list(TRANSPORTS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    medians = asyncio.run(measure(options.transports, options.dtype, options.rounds, options.threads))
    print(table(medians))
    if options.json:
        about = {
            "cpu": platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "torch": torch.__version__,
        }
        result = {
            "dtype": options.dtype,
            "rounds": options.rounds,
            "threads": options.threads,
            "machine": about,
            "medians": medians,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
