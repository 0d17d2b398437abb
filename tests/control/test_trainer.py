"""The trainer of control: it refuses what must not be trained on, makes the updates it is told, and comes back as it was."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from freerun import plainfiles
from freerun.algorithms.control import dqn, iql, ppo, sac
from freerun.datasets.base import Episodes
from freerun.errors import CheckpointError, ConfigError, DataError, Diverged, StaleItem
from freerun.store.phases import Phase, Plan, Portion
from freerun.store.selectors import Prioritised
from freerun.trainer.control import ControlTrainer
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig, ReplayConfig
from freerun.trainer.statistics import LEAST, RewardScale, Running
from freerun.transitions import Chunk, Spaces
from freerun.types import Sum
from freerun.weights import inprocess

BOX, KEYS = Spaces(obs=(3,), actions=2, discrete=False), Spaces(obs=(3,), actions=4, discrete=True)
SAC, PPO = sac.Config(hidden=(8,)), ppo.Config(hidden=(8,))
ONLINE = (Phase(env_steps=1000),)
REPLAY = (ReplayConfig(capacity=64),)


def trainer(algorithm=SAC, spaces=BOX, *, phases=ONLINE, sources=REPLAY, directory=None, **settings):
    config = ControlTrainerConfig(**{"batch": 8, **settings})
    return ControlTrainer(algorithm, spaces, config, phases, sources, inprocess.publisher(), directory)


def chunk(item: int = 0, spaces: Spaces = BOX, *, steps: int = 4, version: int = 0, **changed: Tensor) -> Chunk:
    """Steps of two environments, whose episodes go on for ever."""
    make, shape = torch.Generator().manual_seed(item), (steps, 2)
    seen = torch.randn(steps + 1, 2, *spaces.obs, generator=make)
    action = torch.randint(spaces.actions, shape, generator=make)
    columns = {
        "obs": seen[:-1],
        "next_obs": seen[1:],
        "action": action if spaces.discrete else torch.rand(*shape, spaces.actions, generator=make) * 2 - 1,
        "reward": torch.randn(shape, generator=make),
        "terminated": torch.zeros(shape, dtype=torch.bool),
        "truncated": torch.zeros(shape, dtype=torch.bool),
        "log_prob": torch.full(shape, -1.0),
        "version": torch.full(shape, version, dtype=torch.int32),
        "episode": torch.arange(2).expand(shape).contiguous(),
        "step": (torch.arange(steps, dtype=torch.int32) + item * steps)[:, None].expand(shape).contiguous(),
    }
    return Chunk(item=item, actor=0, columns=columns | changed, oldest_version=version)


def weights(of: ControlTrainer) -> dict[str, Tensor]:
    return {f"{n}.{k}": v.clone() for n, m in of._updater.networks.items() for k, v in m.state_dict().items()}


def same(a: ControlTrainer, b: ControlTrainer) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


# --- what it takes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["obs", "action", "reward", "next_obs"])
def test_a_number_that_is_not_finite_is_refused_with_its_episode_and_step(name) -> None:
    column = chunk().columns[name].clone()
    column[2, 1] = float("nan")
    of = trainer()
    with pytest.raises(DataError, match=rf"'{name}'[^§]*episode 1, step 2"):
        of.accumulate([chunk(1), chunk(**{name: column})])
    assert len(of._filled().storage) == 0, "nothing is taken if anything is refused"


def test_rollouts_beyond_the_lag_bound_are_refused_and_replay_has_an_age_of_its_own() -> None:
    late = trainer(PPO, KEYS, sources=(), max_lag=0)
    late.version = 1
    with pytest.raises(StaleItem, match="older than lag 0"):
        late.accumulate([chunk(spaces=KEYS)])
    replay = trainer(max_lag=0)
    replay.version = 1
    replay.accumulate([chunk()])


def test_transitions_of_a_version_that_does_not_exist_yet_are_refused() -> None:
    with pytest.raises(StaleItem, match="none newer"):
        trainer().accumulate([chunk(version=3)])


def test_collecting_without_a_storage_is_an_error_that_says_what_to_add() -> None:
    with pytest.raises(ConfigError, match="ReplayConfig"):
        trainer(sources=()).accumulate([chunk()])


# --- what it does ------------------------------------------------------------------------------------------------------------


def test_a_step_makes_as_many_updates_as_the_plan_says_and_one_version() -> None:
    of = trainer()
    assert of.start().version == 0
    of.accumulate([chunk()])
    report = of.finish_step([], Plan(updates=5))
    assert (report.version, report.ref.version, of._updater.num_updates) == (1, 1, 5)
    assert report.metrics["updates"] == Sum(5)
    before = weights(of)
    assert of.finish_step([], Plan(updates=0)).version == 2
    assert all(torch.equal(before[name], value) for name, value in weights(of).items())


def test_epochs_and_minibatches_use_each_row_of_a_rollout_once_per_epoch() -> None:
    of, used = trainer(PPO, KEYS, sources=(), epochs=3, minibatches=4), []
    update = of._updater.update

    def watched(batches, *args, **kwargs):
        used.append(batches.of("")["obs"])
        return update(batches, *args, **kwargs)

    of._updater.update = watched
    of.start()
    chunks = [chunk(i, KEYS) for i in range(2)]
    of.accumulate(chunks)
    of.finish_step([], Plan())
    assert [len(rows) for rows in used] == [4] * 12
    everything = torch.cat([c.columns["obs"].flatten(0, 1) for c in chunks])
    for epoch in range(3):
        rows = torch.cat(used[4 * epoch : 4 * epoch + 4])
        assert torch.equal(rows.sort(0).values, everything.sort(0).values)


def test_a_phase_leaves_out_terms_freezes_networks_sets_numbers_and_forgets_optimisers() -> None:
    actor_off = Phase(env_steps=100, off=("actor", "temperature"))
    frozen = Phase(name="frozen", env_steps=100, frozen=("critic",), fresh=("actor",))
    of = trainer(phases=(actor_off, frozen))
    of.start()
    of.accumulate([chunk()])
    before = weights(of)
    of.finish_step([], Plan(updates=3))
    assert {n.partition(".")[0] for n, v in weights(of).items() if not torch.equal(v, before[n])} == {"critic", "critic_target"}
    assert of._updater.moments["actor"].step == 0
    before = weights(of)
    of.finish_step([], Plan(phase=1, updates=3))
    moved = {n.partition(".")[0] for n, v in weights(of).items() if not torch.equal(v, before[n])}
    assert "actor" in moved
    assert "critic" not in moved
    assert of._updater.moments["actor"].step == 3


def test_learning_rates_fall_along_a_line_to_nothing() -> None:
    of = trainer(schedule="linear")
    of.start()
    of.accumulate([chunk()])
    before = weights(of)
    of.finish_step([], Plan(updates=1, done=1.0))
    trained = {n: v for n, v in weights(of).items() if not n.startswith("critic_target")}
    assert all(torch.equal(value, before[name]) for name, value in trained.items())


def test_what_surprised_is_drawn_more_often() -> None:
    config = ReplayConfig(capacity=64, sampler=Prioritised(1.0))
    of = trainer(dqn.Config(hidden=(8,)), KEYS, sources=(config,))
    of.start()
    reward = torch.zeros(4, 2)
    reward[1, 1] = 100.0
    of.accumulate([chunk(spaces=KEYS, reward=reward)])
    of.finish_step([], Plan(updates=20))
    priority = of._filled().sampler.state()["weights"][:8]
    assert priority.argmax() == 3
    assert priority[3] > 0.5 * priority.sum()


def test_a_gradient_that_is_not_finite_stops_the_run_and_leaves_its_batch(tmp_path) -> None:
    of = trainer(directory=tmp_path)
    of.start()
    of.accumulate([chunk(reward=torch.full((4, 2), 3e38))])
    with pytest.raises(Diverged, match="not finite"):
        of.finish_step([], Plan(updates=1))
    saved = plainfiles.load_values(tmp_path / "diverged-0", "batch")
    assert saved["rows"]["replay"]["reward"].tolist() == pytest.approx([3e38] * 8)


# --- normalisation -----------------------------------------------------------------------------------------------------------


def test_running_statistics_are_those_of_all_rows_at_once() -> None:
    rows, running = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 5 + 2, Running()
    for part in rows.split(7):
        running.add(part)
    mean, std = running.statistics()
    assert torch.allclose(mean, rows.mean(0), atol=1e-5)
    assert torch.allclose(std, rows.std(0, correction=0) + LEAST, atol=1e-5)


def test_rewards_are_scaled_by_the_deviation_of_discounted_returns_stream_by_stream() -> None:
    scale = RewardScale(gamma=0.5)
    reward = torch.tensor([[1.0], [2.0], [4.0]])
    ended = torch.tensor([[False], [True], [False]])
    # Returns so far: 1, 1/2 + 2 = 2.5, and 4 of the next episode.
    std = torch.tensor([1.0, 2.5, 4.0]).std(correction=0)
    assert torch.allclose(scale.scaled(0, reward, ended), reward / std)
    # The next chunk goes on with 4: 4 / 2 + 1 = 3.
    std = torch.tensor([1.0, 2.5, 4.0, 3.0]).std(correction=0)
    assert torch.allclose(scale.scaled(0, torch.tensor([[1.0]]), torch.tensor([[False]])), 1.0 / std)
    # Another actor's stream begins at nothing.
    assert scale.scaled(1, torch.tensor([[3.0]]), torch.tensor([[False]])).item() == pytest.approx(
        3.0 / torch.tensor([1.0, 2.5, 4.0, 3.0, 3.0]).std(correction=0).item()
    )


class Recorded:
    """Two episodes with returns 6 and 26."""

    def build(self) -> Episodes:
        obs = torch.arange(6.0)[:, None].expand(6, 3)
        cut = torch.tensor([False, False, True, False, True])
        return Episodes(
            name="two",
            columns={
                "obs": obs[:5],
                "next_obs": obs[1:],
                "action": torch.zeros(5, 2),
                "reward": torch.tensor([1.0, 2.0, 3.0, 6.0, 20.0]),
                "terminated": torch.zeros(5, dtype=torch.bool),
                "truncated": cut,
                "episode": torch.tensor([0, 0, 0, 1, 1]),
                "step": torch.tensor([0, 1, 2, 0, 1], dtype=torch.int32),
            },
        )


def test_a_data_set_fixes_the_scale_of_rewards_and_the_statistics_of_observations() -> None:
    of = trainer(
        iql.Config(hidden=(8,)),
        phases=(Phase(updates=10),),
        sources=(DatasetConfig(data=Recorded()),),
        observations="data",
        rewards="range",
    )
    # Returns from 6 to 26: 1000 / 20.
    stored = of._sources.sources["dataset"].storage.columns
    assert stored["reward"].tolist() == [50.0, 100.0, 150.0, 300.0, 1000.0]
    observer = of._updater.networks["actor"].observer
    assert observer.shift.tolist() == pytest.approx([2.0] * 3)
    assert observer.scale.tolist() == pytest.approx([1 / (2**0.5 + LEAST)] * 3)
    of.start()
    assert of.finish_step([], Plan(updates=10)).version == 1


# --- checkpoints -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "spaces", "settings"),
    [(SAC, BOX, {}), (PPO, KEYS, {"sources": (), "observations": "running", "rewards": "running"})],
    ids=["sac", "ppo"],
)
def test_a_restored_trainer_goes_on_like_the_saved_one(algorithm, spaces, settings, tmp_path) -> None:
    first, again = (trainer(algorithm, spaces, **settings) for _ in range(2))
    first.start()

    def step(of: ControlTrainer, i: int) -> None:
        of.accumulate([chunk(i, spaces, version=i)])
        of.finish_step([], Plan(updates=4))

    for i in range(3):
        step(first, i)
    first.save(tmp_path)
    assert again.load(tmp_path) == 3
    again.start()
    for i in range(3, 6):
        step(first, i)
        step(again, i)
    assert same(first, again)


def test_a_checkpoint_of_other_networks_is_refused(tmp_path) -> None:
    of = trainer()
    of.save(tmp_path)
    with pytest.raises(CheckpointError, match="cannot load"):
        trainer(replace(SAC, hidden=(9,))).load(tmp_path)


def test_a_mapped_storage_lies_in_the_run_directory(tmp_path) -> None:
    of = trainer(sources=(ReplayConfig(capacity=64, mapped=True),), directory=tmp_path)
    of.accumulate([chunk()])
    files = {path.name for path in (tmp_path / "storage-replay").iterdir()}
    assert {"obs", "action", "reward", "next_obs"} <= files
    assert (tmp_path / "storage-replay" / "reward").stat().st_size == 64 * 4


def test_a_phase_may_mix_replay_and_data_in_a_share() -> None:
    phase = Phase(env_steps=100, sources=(Portion(source="replay"), Portion(source="dataset")))
    of = trainer(phases=(phase,), sources=(ReplayConfig(capacity=64), DatasetConfig(data=Recorded())))
    of.start()
    of.accumulate([chunk()])
    of.finish_step([], Plan(updates=2))
    assert {name: len(rows["reward"]) for name, rows in of._last.by_source.items()} == {"replay": 4, "dataset": 4}
