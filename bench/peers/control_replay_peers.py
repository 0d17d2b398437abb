"""The buffers of Stable-Baselines3 and TorchRL under the operations of `bench/control_replay.py`, which calls this script with
the Python of an environment that has them.

    python bench/peers/control_replay_peers.py SYSTEM ROWS FOLDER
"""

import sys

import numpy as np
import torch
from rounds import Operation, serve

STEPS, ENVS, OBS, ACTION = 32, 8, 11, 3
BATCH, AHEAD = 256, 64


def stable_baselines(rows: int) -> dict[str, Operation]:
    from gymnasium import spaces
    from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

    box, act = spaces.Box(-10, 10, (OBS,), np.float32), spaces.Box(-1, 1, (ACTION,), np.float32)
    random = np.random.default_rng(0)
    seen = random.standard_normal((64 * STEPS + 1, ENVS, OBS), dtype=np.float32)
    action = random.uniform(-1, 1, (64 * STEPS, ENVS, ACTION)).astype(np.float32)
    reward = random.standard_normal((64 * STEPS, ENVS)).astype(np.float32)
    done, infos = np.zeros(ENVS, np.float32), [{} for _ in range(ENVS)]

    def insert(buffer: ReplayBuffer) -> int:
        for t in range(64 * STEPS):
            buffer.add(seen[t], seen[t + 1], action[t], reward[t], done, infos)
        return 64 * STEPS * ENVS

    def filled(buffer: ReplayBuffer) -> ReplayBuffer:
        while not buffer.full and buffer.pos < rows // ENVS - 64 * STEPS:
            insert(buffer)
        return buffer

    plain = filled(ReplayBuffer(rows, box, act, device="cpu", n_envs=ENVS))
    three = filled(NStepReplayBuffer(rows, box, act, device="cpu", n_envs=ENVS, n_steps=3, gamma=0.99))

    def sample(buffer: ReplayBuffer) -> int:
        for _ in range(AHEAD):
            buffer.sample(BATCH)
        return AHEAD * BATCH

    return {"insert": lambda: insert(plain), "sample": lambda: sample(plain), "three steps": lambda: sample(three)}


def torchrl(rows: int, folder: str) -> dict[str, Operation]:
    from tensordict import TensorDict
    from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictPrioritizedReplayBuffer, TensorDictReplayBuffer

    def chunk() -> TensorDict:
        num = STEPS * ENVS
        step = {"reward": torch.randn(num, 1), "terminated": torch.zeros(num, 1, dtype=torch.bool)}
        step |= {"done": torch.zeros(num, 1, dtype=torch.bool), "observation": torch.randn(num, OBS)}
        return TensorDict(
            {"observation": torch.randn(num, OBS), "action": torch.rand(num, ACTION) * 2 - 1, "next": step}, [num]
        )

    chunks = [chunk() for _ in range(64)]

    def insert(buffer: TensorDictReplayBuffer) -> int:
        for each in chunks:
            buffer.extend(each)
        return len(chunks) * STEPS * ENVS

    def filled(buffer: TensorDictReplayBuffer) -> TensorDictReplayBuffer:
        while len(buffer) < rows - len(chunks) * STEPS * ENVS:
            insert(buffer)
        return buffer

    plain = filled(TensorDictReplayBuffer(storage=LazyTensorStorage(rows), batch_size=BATCH))
    mapped = TensorDictReplayBuffer(storage=LazyMemmapStorage(rows, scratch_dir=f"{folder}/torchrl"), batch_size=BATCH)
    try:
        ranked = filled(
            TensorDictPrioritizedReplayBuffer(alpha=0.6, beta=0.4, storage=LazyTensorStorage(rows), batch_size=BATCH)
        )
    except RuntimeError as error:  # its compiled part does not load with every PyTorch
        print(f"no prioritised replay of TorchRL: {error}", file=sys.stderr)
        ranked = None

    def sample() -> int:
        for _ in range(AHEAD):
            plain.sample()
        return AHEAD * BATCH

    def prioritised() -> int:
        for _ in range(AHEAD):
            batch = ranked.sample()
            batch["td_error"] = batch["next", "reward"].squeeze(-1).abs()
            ranked.update_tensordict_priority(batch)
        return AHEAD * BATCH

    return {
        "insert": lambda: insert(plain),
        "insert mapped": lambda: insert(mapped),
        "sample": sample,
        **({} if ranked is None else {"prioritised": prioritised}),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    system, rows, folder = sys.argv[1:]
    serve(stable_baselines(int(rows)) if system == "Stable-Baselines3" else torchrl(int(rows), folder))
