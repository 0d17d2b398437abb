"""What is particular to the methods that put on-policy and offline data together: losses by hand, and identities.

Shapes: B rows, M critics, A action dimensions.
"""

import math

import pytest
import torch

from freerun.algorithms.control import h2o, hnpg, moorl, ppo, ppo_imitation, props, sac
from freerun.algorithms.control_base import Ask
from freerun.ops import dynamics_gap
from freerun.ops.distributions import Categorical
from freerun.ops.natural import divergence
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig
from freerun.trainer.control_update import Updater, joined
from freerun.trainer.sources import Batches
from freerun.transitions import Spaces, transitions
from tests.control.by_hand import Fixed, tensor

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
    metrics = updater.update(batches, {}, torch.Generator(), Phase(updates=1), lr_share=1.0, report=True).metrics
    far = divergence(before, updater.networks["actor"](toy.batch["obs"])).mean().item()
    assert 0.0 < far <= 0.02
    assert metrics["kl/update"].value == pytest.approx(far, rel=1e-3)
    assert math.isfinite(metrics["grad_norm/policy_rollout"].value)


# PROPS


def props_rows(**columns):
    rows = {"obs": torch.zeros(2, 1), "action": torch.tensor([0, 1]), "log_prob_start": tensor(0.5, 0.5).log()}
    return transitions({**rows, "advantage": tensor(1.0, -1.0), "returns": tensor(3.0, 1.0), **columns})


def test_props_makes_less_likely_what_is_there_until_the_clip():
    networks = {"behaviour": policy(0.6, 0.4), "actor": policy(0.5, 0.5)}
    loss, watched = losses_of(props, networks, props_rows(), "behaviour", penalty=0.0, behaviour_clip=0.3)
    assert loss == pytest.approx([1.2, 0.8])
    networks["behaviour"] = policy(0.9, 0.1)
    loss, watched = losses_of(props, networks, props_rows(), "behaviour", penalty=0.0, behaviour_clip=0.3)
    assert loss == pytest.approx([1.8, 0.7])
    assert watched["behaviour_clipped"] == 0.5


def test_props_is_paid_to_stay_near_its_policy():
    networks = {"behaviour": policy(0.25, 0.75), "actor": policy(0.5, 0.5)}
    far = 0.5 * math.log(2.0) + 0.5 * math.log(2.0 / 3.0)
    loss, watched = losses_of(props, networks, props_rows(), "behaviour", penalty=2.0, behaviour_clip=9.0)
    assert loss == pytest.approx([0.5 + 2.0 * far, 1.5 + 2.0 * far])
    assert watched["kl_policy"] == pytest.approx(far)


def test_the_behaviour_of_props_is_pushed_towards_what_was_drawn_too_seldom(toys):
    """Of two actions that the policy likes as much the first was drawn three times, the second once: by hand, the gradient at
    the start is that of 3/4 log phi(1) + 1/4 log phi(2)."""
    algorithm = props.Config(penalty=0.0).build()
    logits = torch.zeros(2, requires_grad=True)
    networks = {"behaviour": lambda obs: Categorical(logits.log_softmax(-1).expand(len(obs), 2)), "actor": policy(0.5, 0.5)}
    rows = transitions(
        {"obs": torch.zeros(4, 1), "action": torch.tensor([0, 0, 0, 1]), "log_prob_start": torch.full((4,), 0.5).log()}
    )
    (term,) = [one for one in algorithm.terms if one.name == "behaviour"]
    term.loss(networks, rows, {}, torch.Generator()).loss.mean().backward()
    assert logits.grad.tolist() == pytest.approx([0.25, -0.25])


def test_props_learns_from_ratios_to_where_the_update_began_and_not_to_who_acted(toys):
    toy = toys(props.Config(), DISCRETE)
    made = toy.prepared(toy.chunk)
    logp = toy.networks["actor"](toy.chunk["obs"]).log_prob(toy.chunk["action"])
    assert torch.equal(made["log_prob_start"], logp.detach())
    assert "log_prob" not in toy.algorithm.columns


def test_props_explores_by_its_behaviour_and_is_judged_by_its_policy():
    algorithm = props.Config().build()
    networks = {"behaviour": policy(0.0, 1.0), "actor": policy(1.0, 0.0)}
    played = {
        mode: algorithm.act(networks, torch.zeros(50, 1), Ask(mode, 0, DISCRETE), torch.Generator())["action"].unique().tolist()
        for mode in ("explore", "greedy")
    }
    assert played == {"explore": [1], "greedy": [0]}


def test_props_that_does_not_adapt_is_ppo_on_a_buffer(toys):
    algorithm = props.Config(adapt=False, batches=3, batch_steps=2).build()
    assert set(algorithm.networks) == {"actor", "value"}
    assert [(stage.terms, stage.every) for stage in algorithm.stages] == [(("policy", "value"), 2)]
    assert algorithm.recall == 6
    left, right = toys(props.Config(adapt=False), DISCRETE), toys(ppo.Config(), DISCRETE)
    start = left.networks["actor"](right.batch["obs"]).log_prob(right.batch["action"]).detach()
    rows = right.batch.with_columns(log_prob=start)
    for mine, theirs in (("policy", "policy"), ("value", "value")):
        assert torch.allclose(left.gradients(left.batch)[mine], right.gradients(rows)[theirs], rtol=1e-4, atol=1e-6)


# H2O


def told(gap_real, gap_simulated=0.0):
    """Discriminators whose bounded logits of s' are these: real, simulated."""
    raw = torch.tensor([gap_real / 2, gap_simulated / 2]).atanh()
    return lambda *inputs: raw.expand(1, *inputs[0].shape[:-1], 2)


def h2o_networks(**changes):
    return {
        "actor": Fixed(0.0),
        "critic": lambda obs, action: torch.stack([action[:, 0], 3.0 * action[:, 0]]),
        "critic_target": lambda obs, action: torch.full((2, len(obs)), 4.0),
        "tells_sa": told(0.0),
        "tells_sas": told(0.0),
        **changes,
    }


def h2o_rows(*actions):
    num = len(actions)
    rows = {"obs": torch.zeros(num, 1), "next_obs": torch.zeros(num, 1), "action": tensor(*actions)[:, None]}
    return transitions({**rows, "reward": torch.ones(num), "discount": torch.full((num,), 0.5)})


def test_h2o_believes_real_rows_and_lifts_their_values():
    """y = 1 + 0.5 * 4 = 3, and values 0.5 and 1.5."""
    loss, _ = losses_of(h2o, h2o_networks(), h2o_rows(0.5), "critic_real", penalty=0.1)
    assert loss == pytest.approx([2.5**2 + 1.5**2 - 0.1 * 2.0])


def test_h2o_believes_the_simulator_as_far_as_its_transitions_could_be_real():
    loss, watched = losses_of(h2o, h2o_networks(tells_sas=told(-1.0)), h2o_rows(0.5), "critic_simulated", penalty=0.0)
    assert loss == pytest.approx([math.exp(-1.0) * (2.5**2 + 1.5**2)])
    assert watched["ratio_dynamics"] == pytest.approx(math.exp(-1.0))
    loss, _ = losses_of(h2o, h2o_networks(tells_sas=told(1.0)), h2o_rows(0.5), "critic_simulated", penalty=0.0)
    assert loss == pytest.approx([2.5**2 + 1.5**2]), "more than as much as a real one is never believed"


def test_h2o_holds_values_down_where_the_worlds_differ():
    """Two rows with values 0.5 and 1.5, 1 and 3; the worlds differ by 3 at the first and by 1 at the second, so the shares are
    3/4 and 1/4."""

    def tells(obs, action, next_obs):
        gap = torch.where(action[..., 0] < 0.75, -1.5, -0.5)
        raw = torch.stack([gap / 2, -gap / 2], -1).atanh()
        return raw[None]

    networks = h2o_networks(tells_sas=tells)
    held = sum(math.log(0.75 * math.exp(a) + 0.25 * math.exp(b)) for a, b in ((0.5, 1.0), (1.5, 3.0)))
    with_penalty, _ = losses_of(h2o, networks, h2o_rows(0.5, 1.0), "critic_simulated", penalty=1.0)
    without, _ = losses_of(h2o, networks, h2o_rows(0.5, 1.0), "critic_simulated", penalty=0.0)
    assert [a - b for a, b in zip(with_penalty, without, strict=True)] == pytest.approx([held, held], rel=1e-5)


def tell_apart(shift, updates=400):
    """Log-ratios that H2O's discriminators learn for a simulated world of `s' = s + a + shift(s)`, real without the shift."""
    algorithm, spaces = h2o.Config(hidden=(32,), lr=3e-3).build(), Spaces(obs=(1,), actions=1, discrete=False)
    updater = Updater(algorithm, spaces, ControlTrainerConfig())
    make = torch.Generator().manual_seed(0)

    def rows(num, shift):
        obs, action = torch.randn(num, 1, generator=make), torch.rand(num, 1, generator=make) * 2 - 1
        next_obs = obs + action + 0.3 * torch.randn(num, 1, generator=make) + shift(obs)
        paid = {"reward": torch.zeros(num), "discount": torch.ones(num)}
        return transitions({"obs": obs, "action": action, "next_obs": next_obs, **paid})

    phase = Phase(updates=1, off=("critic_real", "critic_simulated", "actor"))
    for _ in range(updates):
        batches = Batches({"dataset": rows(128, torch.zeros_like), "replay": rows(128, shift)})
        updater.update(batches, {}, make, phase, lr_share=1.0, report=False)
    simulated = rows(2000, shift)
    with torch.no_grad():
        logits = dynamics_gap.bounded(updater.networks["tells_sas"](*(simulated[n] for n in ("obs", "action", "next_obs")))[0])
    return simulated["obs"][:, 0], dynamics_gap.log_ratio(logits)


def test_the_discriminators_of_h2o_find_no_gap_between_equal_worlds():
    _, log_ratio = tell_apart(torch.zeros_like)
    assert log_ratio.exp().mean().item() == pytest.approx(1.0, abs=0.2)
    assert log_ratio.abs().mean().item() < 0.2


def test_the_discriminators_of_h2o_find_the_gap_where_it_is():
    obs, log_ratio = tell_apart(lambda obs: torch.where(obs > 0, 1.0, 0.0))
    assert log_ratio[obs > 0.3].mean().item() < -1.0
    assert log_ratio[obs < -0.3].abs().mean().item() < 0.4


# MOORL


def after_updates(method, num, **changes):
    """All networks after so many updates on made-up rows that are the same for every method."""
    algorithm, spaces = method.Config(hidden=(8,), **changes).build(), Spaces(obs=(3,), actions=2, discrete=False)
    updater = Updater(algorithm, spaces, ControlTrainerConfig())
    start = {name: network.state_dict() for name, network in updater.networks.items()}
    start = {f"{name}.{key}": tensor.clone() for name, state in start.items() for key, tensor in state.items()}
    for i in range(num):
        make = torch.Generator().manual_seed(i)
        rows = {name: torch.randn(16, 3, generator=make) for name in ("obs", "next_obs")}
        rows |= {"action": torch.rand(16, 2, generator=make) * 2 - 1, "reward": torch.randn(16, generator=make)}
        batches = Batches({"all": transitions({**rows, "discount": torch.full((16,), 0.9)})})
        updater.update(batches, {}, make, Phase(updates=1), lr_share=1.0, report=False)
    return start, updater.weights()


def test_moorl_of_one_update_and_whole_steps_is_sac():
    _, mine = after_updates(moorl, 5, inner=1, meta_rate=1.0)
    _, theirs = after_updates(sac, 5)
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())


def test_moorl_steps_a_share_of_the_way_that_its_inner_updates_lead():
    start, inner = after_updates(moorl, 3, inner=4, meta_rate=0.25)
    _, mine = after_updates(moorl, 4, inner=4, meta_rate=0.25)
    _, led_to = after_updates(sac, 4)
    for name in (n for n in start if n.startswith(("actor.", "critic.", "temperature."))):
        network, _, key = name.partition(".")
        assert torch.allclose(mine[name], start[name] + 0.25 * (led_to[name] - start[name]), atol=1e-6)
        assert torch.equal(mine[name], mine[f"{network}_meta.{key}"])
        assert not torch.equal(inner[name], inner[f"{network}_meta.{key}"]), "within the inner loop they differ"
    assert all(torch.allclose(mine[n], led_to[n]) for n in mine if n.startswith("critic_target."))


# PPO with imitation


def test_imitation_is_the_likelihood_of_demonstrations():
    networks = {"actor": policy(0.25, 0.75)}
    loss, _ = losses_of(ppo_imitation, networks, ROWS, "imitation", weight=2.0)
    assert loss == pytest.approx([-2.0 * math.log(0.25), -2.0 * math.log(0.75)])
    (term,) = [one for one in ppo_imitation.Config(source="demos").build().terms if one.name == "imitation"]
    assert (term.source, term.trains) == ("demos", ("actor",))


def test_imitation_follows_each_step_of_ppo_or_leaves_it_alone():
    stages = ppo_imitation.Config(times=5).build().stages
    assert [(stage.terms, stage.epochs) for stage in stages] == [(("policy", "value"), 0), (("imitation",), 5)]
    assert len(ppo_imitation.Config(times=0).build().stages) == 1


def test_between_imitations_it_is_ppo(toys):
    left, right = toys(ppo_imitation.Config(entropy=0.0), DISCRETE), toys(ppo.Config(), DISCRETE)
    mine, theirs = left.gradients(left.batch), right.gradients(right.batch)
    assert all(torch.equal(mine[name], theirs[name]) for name in ("policy", "value"))


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
