"""TensorBoard and Weights & Biases as sinks."""

import importlib
import itertools
import sys
import types
from pathlib import Path

import pytest

from freerun.errors import ConfigError
from freerun.metrics import SampleRecord


def a_sample(step: int, completion: str = "4") -> SampleRecord:
    return SampleRecord(
        step=step, item=step, uid="u", prompt="2+2=", completion=completion, reward=1.0, oldest=0, newest=0, lag=0, stop="eos"
    )


class FakeWandb(types.ModuleType):
    """What the sink uses of wandb, remembering what it was given."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.logged: list[dict] = []
        self.started, self.finished, self.defined = {}, 0, []

    def init(self, **kwargs: object) -> "FakeWandb":
        self.started = kwargs
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.defined.append((name, step_metric))

    def log(self, values: dict) -> None:
        self.logged.append(values)

    def Table(self, columns: list, data: list) -> tuple:
        return columns, data

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delitem(sys.modules, "freerun.watch.wandb", raising=False)
    return fake


def test_tensorboard_event_files_hold_every_metric_under_its_own_name(fake_run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from freerun.watch.tensorboard import TensorBoardSink

    run = fake_run(steps=12)
    sink = TensorBoardSink(tmp_path)
    run.play(sink)
    sink.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    names = set(read.Tags()["scalars"])
    assert {"reward/mean", "ess", "lag/tokens/0", "lag/tokens/1", "loss/policy", "heldout/heldout"} <= names
    rewards = read.Scalars("reward/mean")
    assert [e.step for e in rewards] == list(range(1, 13))
    assert read.Scalars("lag/tokens/1")[-1].value == pytest.approx(0.85)
    assert len(read.Tensors("sample/text_summary")) == 1


def test_what_a_model_wrote_is_a_block_of_code_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from freerun.watch.tensorboard import TensorBoardSink

    sink = TensorBoardSink(tmp_path, sample_every=1)
    sink.sample(a_sample(1, "<img src=x>\n# title"))
    sink.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    text = read.Tensors("sample/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "<img src=x>" in text and all(line.startswith("    ") for line in text.splitlines())


def test_wandb_gets_every_metric_against_the_trainer_step(fake_run, wandb: FakeWandb) -> None:
    module = importlib.import_module("freerun.watch.wandb")
    sink = module.WandbSink("p", Path("runs/n"), {"seed": 0})
    fake_run(steps=12).play(sink)
    sink.close()
    sink.close()
    assert wandb.started == {"project": "p", "name": "n", "config": {"seed": 0}, "dir": "runs/n"}
    assert wandb.defined == [("trainer_step", None), ("*", "trainer_step")] and wandb.finished == 1
    steps = [row for row in wandb.logged if "reward/mean" in row]
    assert [row["trainer_step"] for row in steps] == list(range(1, 13))
    assert steps[-1]["lag/tokens/1"] == pytest.approx(0.85)
    assert [row["trainer_step"] for row in wandb.logged if "heldout/heldout" in row] == [0, 12]


def test_the_table_of_samples_for_wandb_is_bounded_and_spans_the_run(wandb: FakeWandb) -> None:
    module = importlib.import_module("freerun.watch.wandb")
    sink = module.WandbSink("p", Path("runs/n"), {}, max_samples=50)
    for step in range(1000):
        sink.sample(a_sample(step))
    sink.close()
    columns, rows = wandb.logged[-1]["samples"]
    steps = [row[columns.index("step")] for row in rows]
    assert 25 <= len(rows) <= 51 and steps[0] == 0 and steps[-1] > 950
    assert len({b - a for a, b in itertools.pairwise(steps)}) == 1


@pytest.mark.parametrize(
    ("leaf", "package", "extra"),
    [("tensorboard", "torch.utils.tensorboard", "freerun[tensorboard]"), ("wandb", "wandb", "freerun[wandb]")],
)
def test_a_sink_whose_package_is_missing_names_the_extra_to_install(monkeypatch, leaf: str, package: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"freerun.watch.{leaf}", raising=False)
    with pytest.raises(ConfigError) as error:
        importlib.import_module(f"freerun.watch.{leaf}")
    assert extra in error.value.todo
