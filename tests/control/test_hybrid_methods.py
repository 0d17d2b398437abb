"""What is particular to the methods that put on-policy and offline data together: losses by hand, and identities.

Shapes: B rows, M critics, A action dimensions.
"""

import math

import pytest
import torch

from freerun.algorithms.control import hnpg
from freerun.ops.distributions import Categorical
from freerun.ops.natural import divergence
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig
from freerun.trainer.control_update import Updater, joined
from freerun.trainer.sources import Batches
from freerun.transitions import Spaces, transitions
from tests.control.by_hand import tensor

CONTINUOUS, DISCRETE = Spaces(obs=(3,), actions=2, discrete=False), Spaces(obs=(3,), actions=2, discrete=True)


def losses_of(method, networks, rows, term, **changes):
    """Loss of each row, and watched means, of the term of that name."""
    algorithm = method.Config(**changes).build()
    (found,) = [one for one in algorithm.terms if one.name == term]
    out = found.loss(networks, rows, algorithm.init(), torch.Generator().manual_seed(0))
    return out.loss.tolist(), {name: value.float().mean().item() for name, value in out.watch.items()}


# HNPG


def policy(*probs):
    return lambda obs: Categorical(torch.tensor(probs).log().expand(*obs.shape[:-1], len(probs)))


def worth(*values):
    """A critic of two actions."""
    return lambda obs, action: torch.tensor(values)[action][None]


ROWS = transitions(
    {
        "obs": torch.zeros(2, 1),
        "next_obs": torch.zeros(2, 1),
        "action": torch.tensor([0, 1]),
        "log_prob": tensor(0.5, 0.5).log(),
        "reward": tensor(1.0, 2.0),
        "discount": tensor(0.5, 0.0),
        "returns": tensor(3.0, 4.0),
        "advantage": tensor(2.0, -1.0),
    }
)


def test_hnpg_fits_its_critic_to_returns_on_policy_and_to_one_step_targets_offline():
    networks = {"critic": worth(1.0, 5.0), "critic_target": worth(4.0, 8.0), "actor": policy(0.25, 0.75)}
    assert losses_of(hnpg, networks, ROWS, "critic_rollout")[0] == [4.0, 1.0]
    # V' = 0.25 * 4 + 0.75 * 8 = 7: targets 1 + 0.5 * 7, and 2.
    assert losses_of(hnpg, networks, ROWS, "critic_offline", weight=0.5)[0] == pytest.approx([0.5 * 3.5**2, 0.5 * 9.0])


def test_hnpg_credits_on_policy_actions_by_gae_or_by_its_critic():
    networks = {"critic": worth(1.0, 5.0), "actor": policy(0.25, 0.75), "actor_before": policy(0.5, 0.5)}
    assert losses_of(hnpg, networks, ROWS, "policy_rollout")[0] == pytest.approx([-0.5 * 2.0, 1.5 * 1.0])
    # V of the policy before the step = 0.5 * 1 + 0.5 * 5 = 3.
    assert losses_of(hnpg, networks, ROWS, "policy_rollout", credit="critic")[0] == pytest.approx([-0.5 * -2.0, -1.5 * 2.0])


def test_hnpg_credits_fresh_actions_at_offline_states_and_not_those_of_the_data():
    """V = 3 before the step: an action drawn there is worth -2 or 2 more, and has become half or one and a half as likely."""
    networks = {"critic": worth(1.0, 5.0), "actor": policy(0.25, 0.75), "actor_before": policy(0.5, 0.5)}
    rows = transitions({"obs": torch.zeros(40, 1), "action": torch.zeros(40, dtype=torch.int64)})
    loss, _ = losses_of(hnpg, networks, rows, "policy_offline", weight=2.0)
    assert {round(value, 4) for value in loss} == {2.0 * -0.5 * -2.0, 2.0 * -1.5 * 2.0}


def test_a_critic_that_knows_nothing_moves_hnpg_nowhere_offline(toys):
    toy = toys(hnpg.Config(), DISCRETE)
    for parameter in toy.networks["critic"].parameters():
        torch.nn.init.zeros_(parameter)
    assert float(toy.gradients(toy.batch)["policy_offline"].abs().max()) < 1e-7


def test_hnpg_without_weight_is_on_policy_alone():
    algorithm = hnpg.Config(weight=0.0).build()
    assert {term.source for term in algorithm.terms} == {"rollout"}
    assert not algorithm.needs & {"next_obs", "reward", "discount"}


def test_hnpg_returns_are_those_of_the_episode_and_bootstrap_where_it_was_cut(toys):
    toy = toys(hnpg.Config(gamma=0.9), DISCRETE)
    made = toy.prepared(toy.chunk)["returns"]
    reward = toy.chunk["reward"]
    assert made[2, 1].item() == pytest.approx(reward[2, 1].item(), rel=1e-5)
    assert made[1, 1].item() == pytest.approx((reward[1, 1] + 0.9 * reward[2, 1]).item(), rel=1e-4)
    beyond = [toy.networks["critic"](toy.chunk["next_obs"][4, 3], torch.tensor(a))[0] for a in range(2)]
    chances = toy.networks["actor"](toy.chunk["next_obs"][4, 3]).logp_BA.exp()
    bootstrapped = sum(p * q for p, q in zip(chances, beyond, strict=True))
    assert made[4, 3].item() == pytest.approx((reward[4, 3] + 0.9 * bootstrapped).item(), rel=1e-4)


@pytest.mark.parametrize("spaces", [CONTINUOUS, DISCRETE])
def test_a_step_of_hnpg_stays_within_the_radius_and_leaves_the_region_to_no_halving(toys, spaces):
    toy = toys(hnpg.Config(critic_steps=1, radius=0.02), spaces)
    updater = Updater(toy.algorithm, spaces, ControlTrainerConfig())
    for name, network in updater.networks.items():
        network.load_state_dict(toy.networks["actor" if name == "actor_before" else name].state_dict())
    before = updater.networks["actor"](toy.batch["obs"])
    rows = toy.batch.with_columns(log_prob=before.log_prob(toy.batch["action"]).detach())
    batches = Batches({"rollout": rows, "dataset": rows})
    metrics, _ = updater.update(batches, {}, torch.Generator(), Phase(updates=1), lr_share=1.0, report=True)
    far = divergence(before, updater.networks["actor"](toy.batch["obs"])).mean().item()
    assert 0.0 < far <= 0.02
    assert metrics["kl/update"].value == pytest.approx(far, rel=1e-3)
    assert math.isfinite(metrics["grad_norm/policy_rollout"].value)


# Terms that make one step


def test_terms_that_join_make_one_step_of_the_sum():
    algorithm = hnpg.Config().build()
    assert [[term.name for term in group] for group in joined(algorithm.terms)] == [
        ["critic_rollout", "critic_offline"],
        ["policy_rollout", "policy_offline"],
    ]


def test_the_gradient_of_joined_terms_is_the_sum_of_theirs(toys):
    toy = toys(hnpg.Config(lr=1e6), DISCRETE)
    algorithm, config = toy.algorithm, ControlTrainerConfig(betas=(0.0, 0.0), eps=1e6)
    updater = Updater(algorithm, DISCRETE, config)
    for name, network in updater.networks.items():
        network.load_state_dict(toy.networks[name].state_dict())
    before = torch.cat([p.detach().flatten().clone() for p in updater.networks["critic"].parameters()])
    updater.update(Batches(toy.by_source), {}, torch.Generator(), Phase(updates=1), lr_share=1.0, report=False)
    moved = torch.cat([p.detach().flatten() for p in updater.networks["critic"].parameters()]) - before
    gradients = toy.gradients(toy.batch)
    expected = gradients["critic_rollout"] + gradients["critic_offline"]
    # With no memory and a huge epsilon Adam's step is -lr / epsilon times the gradient.
    assert torch.allclose(-moved, expected, rtol=1e-3, atol=1e-5)
