"""Whole runs with everything that learns on CUDA."""

import pytest
import torch

from freerun.actors.generator import GeneratorConfig
from freerun.trainer.control_config import ControlTrainerConfig
from freerun.trainer.trainer import TrainerConfig
from tests.control import test_runs as control
from tests.test_runs import run, small

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def on_cuda(dtype: str, **control):
    """The small run, inline."""
    return small(
        generator=GeneratorConfig(max_context=16, dtype=dtype, device="cuda"),
        trainer=TrainerConfig(lr=1e-3, dtype=dtype, device="cuda"),
        control=control,
    )


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-4), ("bfloat16", 0.06)])
def test_at_lag_zero_generator_and_trainer_agree_on_every_log_prob(tmp_path, dtype, most) -> None:
    outcome, rows = run(on_cuda(dtype, max_lag=0, window=1), tmp_path / "run")
    measured = [row["metrics"]["mismatch/abs_max"] for row in rows if "mismatch/abs_max" in row["metrics"]]
    assert outcome.finished
    assert measured
    assert max(measured) < most


def test_a_run_is_resumed_from_its_checkpoint(tmp_path) -> None:
    run(on_cuda("float32"), tmp_path / "run")
    outcome, rows = run(on_cuda("float32", steps=6), tmp_path / "run", resume=True)
    assert outcome.finished
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_control_run_trains_on_cuda_and_is_resumed(tmp_path) -> None:
    pytest.importorskip("gymnasium", reason="no gymnasium")
    recipe = control.run_of(trainer=ControlTrainerConfig(batch=16, device="cuda"))
    outcome, rows = control.run(recipe, tmp_path / "run")
    assert outcome.finished
    assert all(row["loss/critic"] == row["loss/critic"] for row in rows if "loss/critic" in row)
    before = control.state(tmp_path / "run")
    _, again = control.run(recipe, tmp_path / "run", resume=True)
    assert len(again) == len(rows)
    assert control.same(before, control.state(tmp_path / "run"))
