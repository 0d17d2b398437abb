"""One run of `bench/control_learning.py` by Stable-Baselines3 or d3rlpy, in an environment that has them; that script calls it.

    python bench/peers/control_learning_peers.py JOB.json

The last line of output, after "answer", has the mean return of the episodes that judge the policy, returns on the way, and
processor seconds.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

Way = list[float]
"""Mean returns on the way, after each tenth of the budget but the last."""


def judge(job: dict[str, Any], act, episodes: int = 0) -> float:  # type: ignore[no-untyped-def]
    """The mean return of whole episodes under `act(obs) -> action`; as many as the job says, or fewer on the way."""
    env, totals = gymnasium.make(job["env"]), []
    for episode in range(episodes or job["episodes"]):
        obs, _ = env.reset(seed=1_000_000 + episode)
        total, over = 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(act(obs))
            total, over = total + float(reward), terminated or truncated
        totals.append(total)
    return sum(totals) / len(totals)


def stable_baselines(job: dict[str, Any]) -> tuple[float, Way]:
    from stable_baselines3 import DQN, PPO, SAC, TD3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise

    ours, (phase,), envs = job["algorithm"], job["phases"], job["envs"]
    env, steps = make_vec_env(job["env"], n_envs=envs, seed=job["seed"]), phase["env_steps"]
    common: dict[str, Any] = {"seed": job["seed"], "device": "cpu", "gamma": ours["gamma"]}
    replay = {
        "buffer_size": steps,
        "learning_starts": phase["start"],
        "batch_size": job["batch"],
        "train_freq": job["chunk"],
        "gradient_steps": max(1, round(phase["utd"] * job["chunk"] * envs)),
        "policy_kwargs": {"net_arch": list(ours["hidden"])},
    }
    if job["method"] == "ppo":
        model: Any = PPO(
            "MlpPolicy",
            env,
            learning_rate=lambda left: left * ours["lr"],
            n_steps=job["chunk"],
            batch_size=job["chunk"] * envs // job["minibatches"],
            n_epochs=job["epochs"],
            gae_lambda=ours["decay"],
            clip_range=ours["clip"],
            ent_coef=ours["entropy"],
            policy_kwargs={"net_arch": list(ours["hidden"])},
            **common,
        )
    elif job["method"] == "dqn":
        model = DQN(
            "MlpPolicy",
            env,
            learning_rate=ours["lr"],
            # Counted in environment steps there, in updates here.
            target_update_interval=round(ours["target_every"] / phase["utd"]),
            exploration_fraction=ours["explore_steps"] / steps,
            exploration_final_eps=ours["last_epsilon"],
            exploration_initial_eps=ours["epsilon"],
            **replay,
            **common,
        )
    elif job["method"] == "sac":
        model = SAC("MlpPolicy", env, learning_rate=ours["critic_lr"], tau=ours["rate"], **replay, **common)
    else:
        width = env.action_space.shape[0]
        noise = VectorizedActionNoise(
            NormalActionNoise(np.zeros(width), ours["explore"] * env.action_space.high * np.ones(width)), envs
        )
        model = TD3(
            "MlpPolicy",
            env,
            learning_rate=ours["critic_lr"],
            tau=ours["rate"],
            policy_delay=ours["actor_every"],
            action_noise=noise,
            **replay,
            **common,
        )
    way: Way = []

    def best(obs):  # type: ignore[no-untyped-def]
        return model.predict(obs, deterministic=True)[0]

    class Looks(BaseCallback):  # type: ignore[misc]
        def _on_step(self) -> bool:
            if len(way) < job["looks"] - 1 and self.num_timesteps >= steps * (len(way) + 1) / job["looks"]:
                way.append(judge(job, best, job["look_episodes"]))
            return True

    model.learn(steps, callback=Looks())
    return judge(job, best), way


def d3rlpy_run(job: dict[str, Any]) -> tuple[float, Way]:
    import d3rlpy
    from d3rlpy.models.encoders import VectorEncoderFactory
    from d3rlpy.preprocessing import MinMaxActionScaler, StandardObservationScaler

    d3rlpy.seed(job["seed"])
    env = gymnasium.make(job["env"])
    low, high = env.action_space.low, env.action_space.high
    with np.load(job["data"]) as file:
        rows = {name: file[name] for name in file.files if name != "about"}
    episode = rows["episode"]
    totals = {e: rows["reward"][episode == e].sum() for e in np.unique(episode)}
    best = sorted(totals, key=lambda e: totals[e], reverse=True)[: max(1, int(np.ceil(job["best_share"] * len(totals))))]
    keep = np.isin(episode, best)
    rows = {name: column[keep] for name, column in rows.items()}
    dataset = d3rlpy.dataset.MDPDataset(
        rows["obs"],
        (low + (rows["action"] + 1.0) * (high - low) / 2.0).astype(np.float32),
        rows["reward"][:, None],
        terminals=rows["terminated"].astype(np.float32),
        timeouts=(rows["truncated"] & ~rows["terminated"]).astype(np.float32),
    )
    ours, encoder = job["algorithm"], VectorEncoderFactory(hidden_units=list(job["algorithm"]["hidden"]))
    common: dict[str, Any] = {
        "batch_size": job["batch"],
        "observation_scaler": StandardObservationScaler(),
        "action_scaler": MinMaxActionScaler(minimum=low, maximum=high),
    }
    if job["method"] == "bc":
        algorithm: Any = d3rlpy.algos.BCConfig(learning_rate=ours["lr"], encoder_factory=encoder, **common)
    else:
        rates = {f"{name}_learning_rate": ours.get(f"{name}_lr", ours.get("lr")) for name in ("actor", "critic")}
        common |= {**rates, "gamma": ours["gamma"], "tau": ours["rate"]}
        common |= {"actor_encoder_factory": encoder, "critic_encoder_factory": encoder}
        if job["method"] == "td3_bc":
            algorithm = d3rlpy.algos.TD3PlusBCConfig(alpha=ours["alpha"], update_actor_interval=ours["actor_every"], **common)
        elif job["method"] == "cql":
            algorithm = d3rlpy.algos.CQLConfig(
                temp_learning_rate=ours["actor_lr"],
                alpha_learning_rate=0.0,  # the weight stays what it is
                conservative_weight=ours["weight"],
                n_action_samples=ours["num_actions"],
                **common,
            )
        elif job["method"] == "awac":
            algorithm = d3rlpy.algos.AWACConfig(lam=ours["temperature"], **common)
        else:
            returns = [float(total) for total in totals.values()]
            scaler = d3rlpy.preprocessing.MultiplyRewardScaler(1000.0 / (max(returns) - min(returns)))
            algorithm = d3rlpy.algos.IQLConfig(
                expectile=ours["expectile"],
                weight_temp=ours["inverse_temperature"],
                max_weight=ours["cap"],
                value_encoder_factory=encoder,
                reward_scaler=scaler,
                **common,
            )
    model = algorithm.create(device="cpu:0")
    updates, way = job["phases"][0]["updates"], Way()

    def best(obs):  # type: ignore[no-untyped-def]
        return model.predict(obs[None])[0]

    def look(_algorithm: Any, epoch: int, _step: int) -> None:
        if epoch < job["looks"]:
            way.append(judge(job, best, job["look_episodes"]))

    model.fit(
        dataset,
        n_steps=updates,
        n_steps_per_epoch=updates // job["looks"],
        show_progress=False,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        epoch_callback=look,
    )
    return judge(job, best), way


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    began = time.process_time()
    mean, way = stable_baselines(job) if job["system"] == "Stable-Baselines3" else d3rlpy_run(job)
    answer: dict[str, Any] = {"return": mean, "curves": {"return": way}, "cpu": time.process_time() - began}
    if job.get("scores"):
        low, high = job["scores"]
        answer["score"] = 100.0 * (mean - low) / (high - low)
    print("answer " + json.dumps(answer))
