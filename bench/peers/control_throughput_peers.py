"""One training run by Stable-Baselines3 or Sample Factory, for `bench/control_throughput.py`, which calls it.

    python bench/peers/control_throughput_peers.py JOB_AS_JSON

The last line of output, after "answer", has pairs of seconds and environment steps that were taken until then.
"""

import json
import sys
import time
from typing import Any

Marks = list[tuple[float, int]]


def stable_baselines(job: dict[str, Any]) -> Marks:
    import torch
    from stable_baselines3 import PPO, SAC
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    marks: Marks = []

    class Clock(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            marks.append((time.perf_counter(), self.num_timesteps))

    torch.set_num_threads(job["threads"])
    env = make_vec_env(job["env"], n_envs=job["envs"], seed=0)
    common: dict[str, Any] = {"seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": job["hidden"]}}
    if job["method"] == "ppo":
        rows = job["chunk"] * job["envs"]
        model: Any = PPO(
            "MlpPolicy", env, n_steps=job["chunk"], batch_size=rows // job["minibatches"], n_epochs=job["epochs"], **common
        )
    else:
        model = SAC(
            "MlpPolicy",
            env,
            learning_starts=job["start"],
            buffer_size=job["steps"],
            batch_size=job["batch"],
            train_freq=job["chunk"],
            gradient_steps=max(1, round(job["utd"] * job["chunk"] * job["envs"])),
            **common,
        )
    model.learn(job["steps"], callback=Clock())
    return [*marks, (time.perf_counter(), model.num_timesteps)]


def environment(full_env_name: str, cfg: Any, env_config: Any, render_mode: str | None = None) -> Any:
    """Called by name in processes of Sample Factory."""
    import gymnasium

    return gymnasium.make(full_env_name)


def sample_factory(job: dict[str, Any]) -> Marks:
    from sample_factory.algo.runners.runner import AlgoObserver
    from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
    from sample_factory.envs.env_utils import register_env
    from sample_factory.train import make_runner

    marks: Marks = []

    class Clock(AlgoObserver):
        def on_training_step(self, runner: Any, training_iteration_since_resume: int) -> None:
            marks.append((time.perf_counter(), runner.env_steps.get(0, 0)))

    register_env(job["env"], environment)
    rows = job["chunk"] * job["envs"]
    settings = {
        "algo": "APPO",
        "env": job["env"],
        "device": "cpu",
        "num_workers": 1,
        "num_envs_per_worker": job["envs"],
        "worker_num_splits": 2,
        "rollout": job["chunk"],
        "recurrence": 1,
        "batch_size": rows // job["minibatches"],
        "num_batches_per_epoch": job["minibatches"],
        "num_epochs": job["epochs"],
        "train_for_env_steps": job["steps"],
        "use_rnn": False,
        "normalize_input": False,
        "normalize_returns": False,
        "serial_mode": False,
        "async_rl": True,
        "save_every_sec": 100_000,
        "keep_checkpoints": 1,
        "train_dir": ".",
        "experiment": "job",
        "restart_behavior": "overwrite",
    }
    words = [f"--{name}={value}" for name, value in settings.items()]
    words += ["--encoder_mlp_layers", *map(str, job["hidden"])]
    parser, _ = parse_sf_args(words)
    _, runner = make_runner(parse_full_cfg(parser, words))
    runner.register_observer(Clock())
    runner.init()
    runner.run()
    return marks


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    marks = stable_baselines(job) if job["system"] == "sb3" else sample_factory(job)
    print("answer " + json.dumps(marks))
