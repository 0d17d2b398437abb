"""A trainer that was saved and loaded goes on as if nothing had happened."""

import json

import pytest
import torch

from freerun.errors import CheckpointError
from freerun.ops.reduce import Reduction
from freerun.trainer.config import LoraConfig
from freerun.weights import inprocess


def train(trainer, group, steps, *, network=None):
    for step in steps:
        trainer.accumulate([group(2 * step + i, version=trainer.version, model=network) for i in range(2)])
        report = trainer.finish_step()
    return report


def published(report):
    return dict(inprocess.subscriber()().adopt(report.ref))


def counting(group, state):
    """Credit that depends on everything credited before it."""
    reward_G = torch.tensor([r.value for r in group.rewards])
    mean = state["mean"] * 0.9 + 0.1 * reward_G.mean()
    return reward_G - mean, {"mean": mean, "groups": state["groups"] + 1}


STATEFUL = {"credit": counting, "init": lambda: {"mean": torch.tensor(0.5), "groups": 0}}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"minibatches": 2, "epochs": 2, "warmup_steps": 5},
        {"lora": LoraConfig(rank=2)},
        {"schedule": "cosine", "schedule_steps": 9, "weight_decay": 0.1},
    ],
)
def test_a_loaded_trainer_continues_bit_for_bit(make_trainer, reinforce, group, tmp_path, config) -> None:
    algorithm = reinforce(Reduction.TOKEN_MEAN, STATEFUL)
    unbroken = make_trainer(algorithm, **config)
    unbroken.start()
    train(unbroken, group, range(2))
    unbroken.save(tmp_path)
    expected = train(unbroken, group, range(2, 4))

    resumed = make_trainer(algorithm, **config)
    assert resumed.load(tmp_path) == 2
    resumed.start()
    report = train(resumed, group, range(2, 4))
    assert report.version == expected.version == 4
    torch.testing.assert_close(published(report), published(expected), rtol=0, atol=0)
    timed = {k for k in expected.metrics if k.startswith("time/")}
    assert {k: v for k, v in report.metrics.items() if k not in timed} == {
        k: v for k, v in expected.metrics.items() if k not in timed
    }
    assert resumed._state == unbroken._state


def test_saving_in_the_middle_of_a_step_saves_the_moment_before_it(make_trainer, reinforce, group, tmp_path) -> None:
    algorithm = reinforce(Reduction.TOKEN_MEAN, STATEFUL)
    trainer = make_trainer(algorithm, micro_tokens=20)
    trainer.start()
    train(trainer, group, range(1))
    trainer.accumulate([group(2, version=1)])
    trainer.save(tmp_path)
    trainer.accumulate([group(3, version=1)])
    expected = trainer.finish_step()

    resumed = make_trainer(algorithm, micro_tokens=20)
    assert resumed.load(tmp_path) == 1
    resumed.start()
    resumed.accumulate([group(2, version=1)])
    resumed.accumulate([group(3, version=1)])
    torch.testing.assert_close(published(resumed.finish_step()), published(expected), rtol=0, atol=0)


def test_the_reference_policy_is_restored(make_trainer, from_reference, group, network, tmp_path) -> None:
    unbroken = make_trainer(from_reference)
    unbroken.start()
    train(unbroken, group, range(2), network=network)
    unbroken.save(tmp_path)
    resumed = make_trainer(from_reference)
    resumed.load(tmp_path)
    resumed.start()
    expected = train(unbroken, group, range(2, 3), network=network).metrics["algorithm/distance"]
    assert train(resumed, group, range(2, 3), network=network).metrics["algorithm/distance"] == expected
    assert expected.value > 0.01


def test_a_checkpoint_is_safetensors_and_json(make_trainer, group, tmp_path) -> None:
    trainer = make_trainer()
    trainer.start()
    train(trainer, group, range(1))
    trainer.save(tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"policy.safetensors", "optimizer.safetensors", "trainer.json", "trainer.safetensors"}
    assert json.loads((tmp_path / "trainer.json").read_text())["version"] == 1


@pytest.mark.parametrize("missing", ["policy.safetensors", "optimizer.safetensors", "trainer.json", "trainer.safetensors"])
def test_a_missing_file_is_named(make_trainer, tmp_path, missing) -> None:
    make_trainer().save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(CheckpointError, match=missing.split(".")[0]):
        make_trainer().load(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(make_trainer, llama, group, tmp_path) -> None:
    trainer = make_trainer()
    trainer.start()
    train(trainer, group, range(1))
    trainer.save(tmp_path)
    with pytest.raises(CheckpointError, match="cannot load policy"):
        make_trainer(model=llama(hidden_size=64)).load(tmp_path)
    with pytest.raises(CheckpointError, match="cannot load policy"):
        make_trainer(lora=LoraConfig(rank=2)).load(tmp_path)


def test_what_happens_to_a_checkpoint_after_it_was_loaded_does_not_reach_the_trainer(make_trainer, reinforce, group, tmp_path):
    algorithm = reinforce(Reduction.TOKEN_MEAN, STATEFUL)
    unbroken = make_trainer(algorithm)
    unbroken.start()
    train(unbroken, group, range(2))
    unbroken.save(tmp_path)
    resumed = make_trainer(algorithm)
    resumed.load(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        with path.open("r+b") as file:  # in place, as a bad disk would
            file.write(bytes(path.stat().st_size))
    resumed.start()
    expected, report = (train(trainer, group, range(2, 3)) for trainer in (unbroken, resumed))
    torch.testing.assert_close(published(report), published(expected), rtol=0, atol=0)
    assert resumed._state == unbroken._state
