"""Updates of SAC, TD3+BC and IQL by others under `bench/control_updates.py`, which calls this script with the Python of an
environment that has Stable-Baselines3 and d3rlpy.

    python bench/peers/control_updates_peers.py SYSTEM WIDTH

The plain loops are the textbook updates as single-file implementations have them: a module per network, one optimiser
per role, `zero_grad`, `backward`, `step`, a loop over parameters for the targets.
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F
from rounds import Operation, serve
from torch import Tensor, nn

OBS, ACTION, ROWS, BATCH, UPDATES = 11, 3, 100_000, 256, 100


def data() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    seen = random.standard_normal((ROWS + 1, OBS), dtype=np.float32)
    return {
        "obs": seen[:-1],
        "next_obs": seen[1:],
        "action": random.uniform(-1, 1, (ROWS, ACTION)).astype(np.float32),
        "reward": random.standard_normal((ROWS, 1), dtype=np.float32),
        "done": (random.random((ROWS, 1)) < 0.01).astype(np.float32),
    }


# --- plain loops -------------------------------------------------------------------------------------------------------------


def layers(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))


class Critic(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = layers(OBS + ACTION, width, 1)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([obs, action], 1))


class Gaussian(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(OBS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.mean, self.log_std = nn.Linear(width, ACTION), nn.Linear(width, ACTION)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(obs)
        log_std = torch.tanh(self.log_std(x))
        normal = torch.distributions.Normal(self.mean(x), (-5 + 3.5 * (log_std + 1)).exp())
        u = normal.rsample()
        action = torch.tanh(u)
        return action, (normal.log_prob(u) - torch.log(1 - action.pow(2) + 1e-6)).sum(1, keepdim=True)


def follow(online: nn.Module, target: nn.Module) -> None:
    for p, q in zip(online.parameters(), target.parameters(), strict=True):
        q.data.copy_(0.005 * p.data + 0.995 * q.data)


def twins(width: int) -> tuple[Critic, Critic, Critic, Critic]:
    q1, q2, t1, t2 = (Critic(width) for _ in range(4))
    t1.load_state_dict(q1.state_dict())
    t2.load_state_dict(q2.state_dict())
    return q1, q2, t1, t2


def plain(width: int) -> dict[str, Operation]:
    rows = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in data().items()}

    def sample() -> tuple[Tensor, ...]:
        index = torch.from_numpy(np.random.randint(0, ROWS, BATCH))
        return tuple(rows[name][index] for name in ("obs", "action", "reward", "next_obs", "done"))

    return {"SAC": plain_sac(width, sample), "TD3+BC": plain_td3_bc(width, sample), "IQL": plain_iql(width, sample)}


def plain_sac(width: int, sample) -> Operation:  # type: ignore[no-untyped-def]
    actor, (q1, q2, t1, t2) = Gaussian(width), twins(width)
    critics = torch.optim.Adam([*q1.parameters(), *q2.parameters()], lr=1e-3)
    actors = torch.optim.Adam(actor.parameters(), lr=3e-4)
    log_alpha = torch.zeros(1, requires_grad=True)
    alphas, alpha = torch.optim.Adam([log_alpha], lr=1e-3), 1.0

    def update() -> None:
        nonlocal alpha
        obs, action, reward, next_obs, done = sample()
        with torch.no_grad():
            next_action, logp = actor(next_obs)
            value = torch.min(t1(next_obs, next_action), t2(next_obs, next_action)) - alpha * logp
            target = reward + (1 - done) * 0.99 * value
        loss = F.mse_loss(q1(obs, action), target) + F.mse_loss(q2(obs, action), target)
        critics.zero_grad()
        loss.backward()
        critics.step()
        new_action, logp = actor(obs)
        loss = (alpha * logp - torch.min(q1(obs, new_action), q2(obs, new_action))).mean()
        actors.zero_grad()
        loss.backward()
        actors.step()
        loss = (-log_alpha.exp() * (logp.detach() - ACTION)).mean()
        alphas.zero_grad()
        loss.backward()
        alphas.step()
        alpha = log_alpha.exp().item()
        follow(q1, t1)
        follow(q2, t2)

    return repeated(update)


class Deterministic(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = layers(OBS, width, ACTION)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.net(obs))


def plain_td3_bc(width: int, sample) -> Operation:  # type: ignore[no-untyped-def]
    actor, actor_target, (q1, q2, t1, t2) = Deterministic(width), Deterministic(width), twins(width)
    first, second = (torch.optim.Adam(q.parameters(), lr=3e-4) for q in (q1, q2))
    actors = torch.optim.Adam(actor.parameters(), lr=3e-4)
    done_updates = 0

    def update() -> None:
        nonlocal done_updates
        done_updates += 1
        obs, action, reward, next_obs, done = sample()
        with torch.no_grad():
            noise = (torch.randn_like(action) * 0.2).clamp(-0.5, 0.5)
            next_action = (actor_target(next_obs) + noise).clamp(-1, 1)
            value = torch.min(t1(next_obs, next_action), t2(next_obs, next_action))
            target = reward + (1 - done) * 0.99 * value
        loss = F.mse_loss(q1(obs, action), target) + F.mse_loss(q2(obs, action), target)
        first.zero_grad()
        second.zero_grad()
        loss.backward()
        first.step()
        second.step()
        if done_updates % 2 == 0:
            pi = actor(obs)
            q = q1(obs, pi)
            loss = -2.5 / q.abs().mean().detach() * q.mean() + F.mse_loss(pi, action)
            actors.zero_grad()
            loss.backward()
            actors.step()
            for online, target_network in ((q1, t1), (q2, t2), (actor, actor_target)):
                follow(online, target_network)

    return repeated(update)


def plain_iql(width: int, sample) -> Operation:  # type: ignore[no-untyped-def]
    actor, log_std = Deterministic(width), nn.Parameter(torch.zeros(ACTION))
    value, (q1, q2, t1, t2) = layers(OBS, width, 1), twins(width)
    values = torch.optim.Adam(value.parameters(), lr=3e-4)
    critics = torch.optim.Adam([*q1.parameters(), *q2.parameters()], lr=3e-4)
    actors = torch.optim.Adam([*actor.parameters(), log_std], lr=3e-4)

    def update() -> None:
        obs, action, reward, next_obs, done = sample()
        with torch.no_grad():
            data_value = torch.min(t1(obs, action), t2(obs, action))
            next_value = value(next_obs)
        advantage = data_value - value(obs)
        loss = (torch.where(advantage < 0, 0.3, 0.7) * advantage.pow(2)).mean()
        values.zero_grad()
        loss.backward()
        values.step()
        target = reward + (1 - done) * 0.99 * next_value
        loss = (F.mse_loss(q1(obs, action), target) + F.mse_loss(q2(obs, action), target)) / 2
        critics.zero_grad()
        loss.backward()
        critics.step()
        follow(q1, t1)
        follow(q2, t2)
        weight = (3.0 * advantage.detach()).exp().clamp(max=100.0)
        normal = torch.distributions.Normal(actor(obs), log_std.clamp(-5, 2).exp())
        loss = -(weight * normal.log_prob(action).sum(1, keepdim=True)).mean()
        actors.zero_grad()
        loss.backward()
        actors.step()

    return repeated(update)


def repeated(update) -> Operation:  # type: ignore[no-untyped-def]
    def updates() -> int:
        for _ in range(UPDATES):
            update()
        return UPDATES

    return updates


# --- libraries ---------------------------------------------------------------------------------------------------------------


def stable_baselines(width: int) -> dict[str, Operation]:
    import gymnasium
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import Logger

    env = gymnasium.make("Hopper-v5")
    model = SAC(
        "MlpPolicy", env, learning_rate=3e-4, buffer_size=ROWS, batch_size=BATCH, policy_kwargs={"net_arch": [width, width]}
    )
    model.set_logger(Logger(None, []))
    rows = data()
    for i in range(ROWS):
        row = [rows[name][i : i + 1] for name in ("obs", "next_obs", "action")]
        model.replay_buffer.add(*row, rows["reward"][i], rows["done"][i], [{}])

    def updates() -> int:
        model.train(gradient_steps=UPDATES, batch_size=BATCH)
        return UPDATES

    return {"SAC": updates}


def d3rlpy_updates(width: int) -> dict[str, Operation]:
    import d3rlpy
    from d3rlpy.models.encoders import VectorEncoderFactory

    rows = data()
    ends = np.zeros(ROWS, np.float32)
    ends[999::1000] = 1.0
    dataset = d3rlpy.dataset.MDPDataset(rows["obs"], rows["action"], rows["reward"], terminals=ends)
    encoder = VectorEncoderFactory(hidden_units=[width, width])

    def updates_of(config) -> Operation:  # type: ignore[no-untyped-def]
        algorithm = config.create(device="cpu:0")
        algorithm.build_with_dataset(dataset)

        def update() -> None:
            algorithm.update(dataset.sample_transition_batch(BATCH))

        return repeated(update)

    common = {"batch_size": BATCH, "actor_encoder_factory": encoder, "critic_encoder_factory": encoder}
    return {
        "SAC": updates_of(d3rlpy.algos.SACConfig(**common)),
        "TD3+BC": updates_of(d3rlpy.algos.TD3PlusBCConfig(**common)),
        "IQL": updates_of(d3rlpy.algos.IQLConfig(**common, value_encoder_factory=encoder)),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    system, width = sys.argv[1], int(sys.argv[2])
    made = {"plain loop": plain, "Stable-Baselines3": stable_baselines, "d3rlpy": d3rlpy_updates}
    serve(made[system](width))
