"""DPO: pairs of responses, and a loss that couples their rows.

Shapes: B trajectories, T action tokens, G groups.
"""

import math

import pytest
import torch

from freerun.algorithms.language import dpo
from freerun.errors import ConfigError
from freerun.types import Batch


def test_dpo_pairs_the_best_with_the_worst_of_each_group():
    batch = Batch(
        {
            "mask": torch.tensor([[True, True], [True, False], [True, True], [True, False], [False, False], [True, False]]),
            "advantage": torch.tensor([[0.2], [0.7], [-0.9], [0.7], [-3.0], [0.0]]).expand(6, 2),
            "group": torch.tensor([0, 0, 0, 0, 0, 1]),
        }
    )
    made = dpo.prepare(batch, {})
    # The first of the two best; the worst has no tokens, so the next one; the group of one is no pair.
    assert made["advantage"].tolist() == [[0, 0], [1, 0], [-1, -1], [0, 0], [0, 0], [0, 0]]
    assert torch.equal(made["mask_selected"], made["advantage"] != 0)


def test_dpo_is_the_loss_of_the_pair_written_out(toy, tools):
    """Loss and gradient against -log sigmoid(beta (difference of log-ratios)), differentiated as a whole."""
    for wrong in (0.0, 0.2):
        algorithm = dpo.Config(beta=0.3, label_smoothing=wrong).build()
        batch = tools.prepared(algorithm, toy.batch)
        ours, theirs = (toy.parameters.clone().requires_grad_() for _ in range(2))
        loss, metrics = tools.step_loss(algorithm, [(toy.outputs(ours), batch)])
        loss.backward()
        u_BT = toy.outputs(theirs)["logp"] - toy.batch["logp_reference"]
        u_B = torch.where(toy.batch["mask"], u_BT, 0.0).sum(-1)
        sign_B = batch["advantage"].sum(-1).sign()
        m_G = 0.3 * torch.stack([(sign_B * u_B)[:4].sum(), (sign_B * u_B)[4:].sum()])
        written = (-(1 - wrong) * m_G.sigmoid().log() - wrong * (-m_G).sigmoid().log()).mean()
        written.backward()
        assert loss.item() == pytest.approx(written.item(), rel=1e-6)
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-6)
        assert metrics["margin"].value == pytest.approx(m_G.mean().item(), rel=1e-5)
        assert metrics["accuracy"].value == float((m_G > 0).double().mean())


def test_dpo_does_not_depend_on_where_micro_batches_cut_a_pair(toy, tools):
    algorithm = dpo.Config().build()
    batch = tools.prepared(algorithm, toy.batch)
    values = []
    for num in (1, 8):
        parts = torch.arange(len(toy.lengths)).chunk(num)
        loss, _ = tools.step_loss(algorithm, [(toy.outputs(toy.parameters, rows), batch.rows(rows)) for rows in parts])
        values.append(loss.item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_at_the_reference_dpo_is_log_two_and_pushes_both_responses_by_half_beta(toy, tools):
    algorithm = dpo.Config(beta=0.1).build()
    batch = tools.prepared(algorithm, toy.on_policy())
    logp_BT = toy.outputs(toy.parameters)["logp"].detach().requires_grad_()
    loss, metrics = tools.step_loss(algorithm, [({"logp": logp_BT}, batch)])
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert torch.allclose(logp_BT.grad, -0.5 * 0.1 / 2 * batch["advantage"], atol=1e-9)
    assert metrics["accuracy"].value == 0.0


def test_a_step_without_a_pair_has_no_gradient(toy, tools):
    flat = toy.batch.with_columns(advantage=torch.ones_like(toy.batch["advantage"]))
    assert tools.step_gradient(dpo.Config().build(), toy, flat).abs().sum() == 0


@pytest.mark.parametrize(
    ("broken", "rule"),
    [({"beta": 0.0}, "beta > 0"), ({"label_smoothing": 0.6}, "0 <= label_smoothing <= 0.5")],
)
def test_a_broken_config_says_which_rule_it_breaks(broken, rule):
    with pytest.raises(ConfigError) as caught:
        dpo.Config(**broken)
    assert caught.value.expected == rule
