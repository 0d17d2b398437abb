"""From publication to adoption with trainer and generator on one GPU: milliseconds per transport, beside a plain copy.

    python bench/weights_gpu.py [--shapes smollm2-135m|qwen2.5-1.5b] [--dtype bfloat16] [--rounds 20] [--json FILE]

The trainer holds float32, and publishes `dtype`. Both ends are in this process; `shared` still goes through its file in the
memory of the host, as it does between processes. Every time ends when the device has finished.

- `plain`      all parameters as one tensor, copied on the device, cast included
- `host`       the same, then through pinned memory of the host and back
- `inprocess`  publish and adopt, by the transport that inline placement uses
- `shared`     publish and adopt, by the transport between processes
- `refresh`    what the generator does on top: weights to where its graphs read them
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from freerun.actors.adoption import adopt
from freerun.actors.paths import verified
from freerun.models.base import DTYPES
from freerun.trainer.forward import named_weights
from freerun.weights import inprocess, shared

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from shapes import SHAPES, random_model


def main() -> None:
    args = _arguments()
    kind = DTYPES[args.dtype]
    trainer = named_weights(random_model(args.shapes, "cuda"))
    generator = random_model(args.shapes, "cuda", kind)
    forward = verified(generator)
    source = torch.cat([tensor.flatten() for tensor in trainer.values()])
    target = torch.empty_like(source, dtype=kind)
    host = torch.empty(target.shape, dtype=kind, pin_memory=True)

    def through_host() -> None:
        target.copy_(source)
        host.copy_(target, non_blocking=True)
        target.copy_(host, non_blocking=True)

    work: dict[str, Callable[[], object]] = {"plain": lambda: target.copy_(source), "host": through_host}
    for name, transport in (("inprocess", inprocess), ("shared", shared)):
        work[name] = _round_trip(transport, args.dtype, trainer, generator)
    work["refresh"] = forward.refresh
    seconds = {name: statistics.median(_timed(run) for _ in range(args.rounds)) for name, run in work.items() if _warm(run)}
    gigabytes = target.numel() * kind.itemsize / 1e9
    print(f"{args.shapes}, {args.dtype}, {gigabytes:.2f} GB, {torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name, value in seconds.items():
        print(f"{name:>10}  {1e3 * value:8.2f} ms  {gigabytes / value:8.1f} GB/s")
    if args.json:
        Path(args.json).write_text(json.dumps({"shapes": args.shapes, "dtype": args.dtype, "seconds": seconds}) + "\n")


def _round_trip(transport, dtype: str, trainer: dict[str, torch.Tensor], generator: torch.nn.Module) -> Callable[[], None]:
    options = {"device": "cuda"} if transport is shared else {}
    publisher, subscriber = transport.publisher(dtype=dtype)(), transport.subscriber(**options)()
    version = 0

    def once() -> None:
        nonlocal version
        version += 1
        adopt(generator, subscriber.adopt(publisher.publish(version, trainer)))

    return once


def _warm(run: Callable[[], object]) -> bool:
    for _ in range(3):
        run()
    return True


def _timed(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=sorted(SHAPES), default="smollm2-135m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", default="")
    return parser.parse_args()


if __name__ == "__main__":
    main()
