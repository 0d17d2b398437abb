"""Our losses, gradients and advantages against those of TRL's own trainers, on the same responses, log-probs and rewards.

`make test-peers` installs TRL in an environment of its own and runs this. `bench/peers/trl_losses.py` asks TRL there and writes
what it says; PEERS_PYTHON names another interpreter that has TRL. Without one these tests fail: they are asked for, or not run.

Shapes: B trajectories, T action tokens.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from freerun.algorithms.language import cispo, dapo, dpo, drgrpo, grpo, gspo, rloo, sft
from freerun.ops.reduce import count, element_weights, weighted_sum
from freerun.types import Batch, Group, Prompt, RewardResult, Stop, Trajectory

pytestmark = pytest.mark.peers

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = Path(os.environ.get("PEERS_PYTHON", ROOT / ".venv-peers/bin/python"))
TRL_EPS = 1e-4
"""What TRL adds to a standard deviation; ours is 1e-6, as in verl."""


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """What TRL was asked, and what it answered: tensors by case."""
    if not PYTHON.is_file():
        pytest.fail(f"no interpreter at {PYTHON}: run `make bench-peers-env`, or set PEERS_PYTHON to one that has TRL")
    out = tmp_path_factory.mktemp("trl") / "losses"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [PYTHON, ROOT / "bench/peers/trl_losses.py", out],
        env={**environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    about = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    answers = {}
    for name, tensor in load_file(out.with_suffix(".safetensors")).items():
        case, _, what = name.partition("/")
        answers.setdefault(case, {})[what] = tensor
    return about, answers


def ours(about):
    """For each case, the config that says the same in our words."""
    settings = about["asked"]
    clip = {name: {"clip_low": s["epsilon"], "clip_high": s["epsilon_high"]} for name, s in settings.items() if "epsilon" in s}
    return {
        "grpo": grpo.Config(**clip["grpo"], kl_coefficient=settings["grpo"]["beta"]),
        "grpo_weighted_kl": grpo.Config(
            **clip["grpo_weighted_kl"], kl_coefficient=settings["grpo_weighted_kl"]["beta"], kl_estimator="weighted_k3"
        ),
        "drgrpo": drgrpo.Config(**clip["drgrpo"], length=about["max_completion_length"]),
        "dapo": dapo.Config(**clip["dapo"], overlong="none"),
        "gspo": gspo.Config(**clip["gspo"]),
        "cispo": cispo.Config(clip_low=1.0, clip_high=settings["cispo"]["epsilon_high"] - 1.0),
        "rloo": rloo.Config(**clip["rloo"], clip="sequence", kl_coefficient=settings["rloo"]["beta"]),
        "dpo": dpo.Config(beta=settings["dpo"]["beta"]),
        "sft": sft.Config(),
    }


CASES = ["grpo", "grpo_weighted_kl", "drgrpo", "dapo", "gspo", "cispo", "rloo", "dpo", "sft"]


def batch_of(case, found, group_size):
    """TRL's tensors as our columns. A pair of DPO is row i and row i + N of its batch."""
    mask_BT = found["mask"]
    num = len(mask_BT)
    if case == "dpo":
        group_B = torch.arange(num) % (num // 2)
        advantage_B = torch.where(torch.arange(num) < num // 2, 1.0, -1.0).double()
    else:
        group_B = torch.arange(num) // group_size
        advantage_B = found.get("advantage", torch.ones(num).double())
    known = {name: found[name] for name in ("logp_behaviour", "logp_reference") if name in found}
    return Batch({"mask": mask_BT, "advantage": advantage_B[:, None].expand(mask_BT.shape), "group": group_B, **known})


def step(algorithm, batch, logp_BT):
    """Loss and gradient of one step, as the trainer takes them; columns as `prepare` leaves them."""
    logp_BT = logp_BT.clone().requires_grad_()
    outputs = {"logp": logp_BT}
    state = algorithm.init()
    if algorithm.probe is not None:
        state = algorithm.probe({"logp": logp_BT.detach()}, batch, state)
    total = torch.zeros((), dtype=torch.float64)
    for term in algorithm.terms:
        mask_BT = batch[term.mask]
        loss_BT = term.loss(outputs, batch, state).loss
        value = weighted_sum(loss_BT, element_weights(mask_BT, term.reduction, batch))
        total = total + term.weight * value / count(mask_BT, term.reduction, batch)
    total.backward()
    return total.detach(), logp_BT.grad


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_trl(asked, case):
    about, answers = asked
    found, algorithm = answers[case], ours(about)[case].build()
    batch = batch_of(case, found, about["group_size"])
    if case == "dpo":
        batch = batch.with_columns(**algorithm.prepare(batch, {}))
    loss, gradient_BT = step(algorithm, batch, found["logp"])
    assert float(loss) == pytest.approx(float(found["loss"]), rel=1e-6)
    assert found["gradient"].abs().max() > 0
    if case in ("drgrpo", "dapo", "gspo", "rloo"):
        assert bool((found["gradient"][found["mask"]] == 0).any()), "some tokens are beyond the clip"
    assert torch.allclose(gradient_BT, found["gradient"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", ["grpo", "drgrpo", "dapo", "gspo", "cispo"])
def test_credit_is_the_advantage_of_trl(asked, case):
    """But for what is added to the standard deviation: the same once that is undone."""
    about, answers = asked
    found, algorithm, size = answers[case], ours(about)[case].build(), about["group_size"]
    for start in range(0, len(found["reward"]), size):
        reward_G = found["reward"][start : start + size]
        advantage_G, _ = algorithm.credit(group_of(reward_G.tolist(), found["mask"][start : start + size]), {})
        std = float(reward_G.std())
        scale = 1.0 if case == "drgrpo" else (std + 1e-6) / (std + TRL_EPS)
        assert torch.allclose(advantage_G.double() * scale, found["advantage"][start : start + size], rtol=1e-5, atol=1e-6)


def test_credit_of_rloo_with_its_kl_is_the_advantage_of_trl(asked):
    about, answers = asked
    found, algorithm, size = answers["rloo"], ours(about)["rloo"].build(), about["group_size"]
    credit_B = torch.cat(
        [
            algorithm.credit(group_of(found["reward"][i : i + size].tolist(), found["mask"][i : i + size]), {})[0]
            for i in range(0, len(found["reward"]), size)
        ]
    )
    batch = batch_of("rloo", {**found, "advantage": credit_B.double()}, size)
    made_BT = algorithm.prepare(batch, {})["advantage"]
    assert torch.allclose(made_BT[:, 0], found["advantage"], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(credit_B.double(), found["advantage"], atol=1e-3), "the KL makes a difference"


def group_of(rewards, mask_GT):
    """A group with these rewards, and responses of the lengths that the mask says."""

    def trajectory(num):
        action_T = torch.arange(1 + num) >= 1
        return Trajectory(
            tokens_T=torch.zeros(1 + num, dtype=torch.int64),
            action_T=action_T,
            logp_T=torch.zeros(1 + num),
            version_T=action_T.int() - 1,
            text="",
            stop=Stop.EOS,
        )

    trajectories = tuple(trajectory(int(num)) for num in mask_GT.sum(-1))
    return Group(item=0, prompt=Prompt("p", "?"), trajectories=trajectories, rewards=tuple(map(RewardResult, rewards)))
