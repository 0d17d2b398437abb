"""The workload of `bench/generation.py` through vLLM, run in an environment of its own and called by that script.

    python bench/peers/generation_vllm.py MODEL JOBS.json THREADS DTYPE

`make bench-vllm-env` makes the environment. One line of input asks for one round, and one line of output that begins with
"answer" says how long it took; the first says that vLLM is ready. Prefix caching stays on, as vLLM ships it. The prompts of
every round are the same, so the cache is emptied between rounds: a round that finds its prompts computed would measure nothing.
"""

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    model, jobs_path, threads, dtype = sys.argv[1:]
    # Read when vllm is imported. One process, so that CPU time can be measured; logs are for people.
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": threads,
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    import torch
    from vllm import LLM, SamplingParams, TokensPrompt

    torch.set_num_threads(int(threads))
    asked = json.loads(Path(jobs_path).read_text())
    jobs, batch = asked["jobs"], asked["batch"]
    longest = max(len(job["prompt"]) + job["output"] for job in jobs)
    engine = LLM(model=model, dtype=dtype, max_num_seqs=batch, max_model_len=longest + 1, seed=0)
    prompts = [TokensPrompt(prompt_token_ids=job["prompt"]) for job in jobs]

    def run(outputs: list[int]) -> None:
        settings = [SamplingParams(temperature=1.0, max_tokens=n, min_tokens=n, ignore_eos=True, logprobs=0) for n in outputs]
        done = engine.generate(prompts[: len(outputs)], settings, use_tqdm=False)
        assert [len(one.outputs[0].token_ids) for one in done] == outputs

    run([asked["warmup"]] * min(batch, len(jobs)))
    print("answer {}", flush=True)
    for _ in sys.stdin:
        engine.reset_prefix_cache()
        wall, cpu = time.perf_counter(), time.process_time()
        run([job["output"] for job in jobs])
        seconds = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        print(f"answer {json.dumps(seconds)}", flush=True)


if __name__ == "__main__":
    main()
