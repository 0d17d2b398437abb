"""What is particular to the methods that learn from data sets: losses by hand, and identities with other methods.

Shapes: B rows, M critics, A action dimensions.
"""

import math

import pytest
import torch

from freerun.algorithms.control import awac, bc, calql, cql, edac, prdc, rlpd, sac, td3_bc, wsrl
from freerun.errors import ConfigError
from freerun.models import control as models
from freerun.networks import Neighbours
from freerun.ops.distributions import SquashedGaussian
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig
from freerun.trainer.control_update import Updater
from freerun.transitions import Spaces
from tests.control.by_hand import Fixed, Number, batch, tensor, values_of

CONTINUOUS = Spaces(obs=(3,), actions=2, discrete=False)
ONE = Spaces(obs=(1,), actions=1, discrete=False)


# AWAC


def advantage_of_two(obs, action):
    """The data's action 0.5 is worth 3 and 4, the policy's 0.2 is worth 1 and 2."""
    return torch.where(action[:, 0] > 0.4, tensor([3.0], [4.0]), tensor([1.0], [2.0]))


def test_awac_imitates_in_proportion_to_the_advantage_over_its_own_action():
    networks = {"actor": Fixed(0.2, logp=-0.5), "critic": advantage_of_two}
    loss, watched = values_of(awac, networks, batch(), term=1, temperature=2.0)
    assert loss == pytest.approx([math.exp(2.0 / 2.0) * 0.5])
    assert watched["weight"] == pytest.approx(math.e)
    assert values_of(awac, networks, batch(), term=1, temperature=0.1, cap=5.0)[0] == pytest.approx([5.0 * 0.5])


def test_awac_with_softmax_weights_imitates_every_batch_as_much_on_average():
    networks = {"actor": Fixed(0.2), "critic": lambda obs, action: (action[:, 0] * obs[:, 0])[None]}
    rows = batch(obs=tensor([1.0], [2.0], [40.0]), action=tensor([0.1], [0.2], [0.3]))
    _, watched = values_of(awac, networks, rows, term=1, weights="softmax", temperature=1.0)
    assert watched["weight"] == pytest.approx(1.0)


def test_awac_critics_regress_on_the_value_of_a_clipped_action_of_the_policy():
    networks = {
        "actor": Fixed(3.0),
        "critic_target": lambda obs, action: torch.stack([action[:, 0], action[:, 0] + 1.0]),
        "critic": lambda obs, action: torch.stack([action[:, 0], 3 * action[:, 0]]),
    }
    loss, _ = values_of(awac, networks, batch())
    assert loss == pytest.approx([(0.5 - 1.5) ** 2 + (1.5 - 1.5) ** 2])


def test_awac_at_an_infinite_temperature_clones(toys):
    left, right = toys(awac.Config(temperature=1e12), CONTINUOUS), toys(bc.Config(hidden=(256, 256, 256)), CONTINUOUS)
    right.networks["actor"].load_state_dict(left.networks["actor"].state_dict())
    assert torch.allclose(left.gradients(left.batch)["actor"], right.gradients(right.batch)["actor"], rtol=1e-4, atol=1e-6)


# CQL


def test_cql_pushes_down_what_is_not_in_the_data():
    """All proposals are worth 2, the data's action 1: the gap is 2 + log 2, for the range of actions has length 2."""

    def critic(obs, action):
        return torch.where(action[..., 0] == 0.5, 1.0, 2.0)[None]

    networks = {
        "actor": lambda obs: SquashedGaussian(obs, obs),
        "critic_target": lambda obs, action: torch.full((2, 1), 4.0),
        "critic": critic,
        "temperature": Number(0.0),
    }
    loss, watched = values_of(cql, networks, batch(), weight=5.0, num_actions=4000)
    gap = 2.0 + math.log(2.0) - 1.0
    assert watched["gap"] == pytest.approx(gap, abs=0.05)
    assert loss == pytest.approx([(1.0 - 3.0) ** 2 + 5.0 * gap], abs=0.2)


def test_cql_learns_the_weight_of_a_gap_that_is_wanted(toys):
    toy = toys(cql.Config(wanted_gap=0.5), CONTINUOUS)
    gap = toy.losses(toy.batch)["critic"][1].watch["gap"]
    gradient = toy.gradients(toy.batch)["critic"][-1]
    weight = toy.networks["multiplier"]().exp()
    assert gradient.item() == pytest.approx(-10.0 * weight.item() * (gap - 0.5).sum(0).mean().item(), rel=1e-4)


def test_cql_with_no_weight_is_sac_without_entropy_in_its_targets(toys):
    left = toys(cql.Config(weight=0.0, hidden=(32,)), CONTINUOUS)
    right = toys(sac.Config(alpha=0.0, hidden=(32,)), CONTINUOUS)
    assert torch.allclose(left.gradients(left.batch)["critic"], right.gradients(right.batch)["critic"], rtol=1e-4, atol=1e-5)


def test_cql_pays_for_entropy_in_the_target_where_it_is_told_to():
    networks = {
        "actor": Fixed(0.2, logp=-3.0),
        "critic_target": lambda obs, action: torch.full((2, 1), 4.0),
        "temperature": Number(math.log(0.5)),
    }
    config = cql.Config(entropy_target=True)
    value = cql.next_value(networks, batch(), torch.Generator(), config)
    assert value.tolist() == pytest.approx([4.0 + 0.5 * 3.0])


def test_cql_may_value_the_next_state_by_the_best_of_several_actions():
    networks = {
        "actor": lambda obs: SquashedGaussian(obs - 1.0, obs - 1.0),
        "critic_target": lambda obs, action: torch.stack([action[..., 0], action[..., 0] + 1.0]),
        "temperature": Number(0.0),
    }
    best = cql.next_value(networks, batch(), torch.Generator().manual_seed(0), cql.Config(max_target=True, num_actions=200))
    assert best.item() > 0.95


@pytest.mark.parametrize("method", [cql, calql])
def test_a_phase_without_conservatism_is_sac_and_looks_at_no_gap(method, toys):
    left = toys(method.Config(hidden=(32,), wanted_gap=1.0), CONTINUOUS)
    right = toys(sac.Config(alpha=0.0, hidden=(32,)), CONTINUOUS)
    left.state = {"conservatism": 0.0}
    assert "gap" not in left.losses(left.batch)["critic"][1].watch
    assert torch.allclose(
        left.gradients(left.batch)["critic"][:-1], right.gradients(right.batch)["critic"], rtol=1e-4, atol=1e-5
    )
    assert left.gradients(left.batch)["critic"][-1] == 0.0


# Cal-QL


def test_calql_where_no_return_is_known_is_cql(toys):
    left, right = (
        toys(calql.Config(weight=10.0, least=None, hidden=(32,)), CONTINUOUS),
        toys(cql.Config(hidden=(32,)), CONTINUOUS),
    )
    rows = left.batch.with_columns(mc_return=torch.full((24,), math.nan))
    assert torch.allclose(left.gradients(rows)["critic"], right.gradients(rows)["critic"], rtol=1e-5)


def test_calql_leaves_values_alone_that_are_below_what_the_data_earned():
    """Policies propose what is worth 2; the data's episode earned 7. Uniform actions are pushed down as ever."""

    def critic(obs, action):
        return torch.where(action[..., 0] == 0.5, 1.0, 2.0)[None]

    networks = {
        "actor": lambda obs: SquashedGaussian(obs, obs),
        "critic_target": lambda obs, action: torch.full((2, 1), 4.0),
        "critic": critic,
        "temperature": Number(0.0),
    }
    _, watched = values_of(calql, networks, batch(mc_return=tensor(7.0)), num_actions=4000)
    # A third of the estimate is of exp(2), two thirds are of exp(7), over a range of length 2.
    assert watched["gap"] == pytest.approx(math.log(2 * (math.exp(2.0) + 2 * math.exp(7.0)) / 3) - 1.0, abs=0.05)
    _, low = values_of(calql, networks, batch(mc_return=tensor(-7.0)), num_actions=4000)
    assert low["gap"] == pytest.approx(2.0 + math.log(2.0) - 1.0, abs=0.05)


def test_calql_does_not_push_a_gap_that_is_low_enough(toys):
    toy = toys(calql.Config(least=1e6, weight=5.0, hidden=(32,)), CONTINUOUS)
    free = toys(calql.Config(weight=0.0, hidden=(32,)), CONTINUOUS)
    assert torch.equal(toy.gradients(toy.batch)["critic"], free.gradients(free.batch)["critic"])


# EDAC


class Slopes:
    """Critics whose slopes in the action are given: Q_i(s, a) = slope_i a."""

    def __init__(self, *slopes):
        self.slopes = torch.tensor(slopes)[:, None]

    def __call__(self, obs, action):
        return (self.slopes * action).sum(-1)

    apart = __call__


def test_edac_adds_how_alike_the_slopes_of_its_critics_are():
    """Slopes (1, 0), (0, 2) and (-1, 0): of the six ordered pairs two have cosine -1, and the sum counts half."""
    networks = {
        "actor": Fixed(0.2, logp=-3.0),
        "critic": Slopes((1.0, 0.0), (0.0, 2.0), (-1.0, 0.0)),
        "critic_target": lambda obs, action: torch.tensor([[4.0], [5.0], [6.0]]),
        "temperature": Number(math.log(0.5)),
    }
    rows = batch(action=tensor([0.5, 0.25]))
    errors = sum((q - (1.0 + 0.5 * (4.0 + 0.5 * 3.0))) ** 2 for q in (0.5, 0.5, -0.5))
    loss, watched = values_of(edac, networks, rows, members=3, diversity=10.0)
    assert watched["likeness"] == pytest.approx(-1.0)
    assert loss == pytest.approx([errors - 10.0])
    assert values_of(edac, networks, rows, members=3, diversity=0.0)[0] == pytest.approx([errors])


def test_edac_with_two_critics_and_no_diversity_is_sac(toys):
    left = toys(edac.Config(members=2, diversity=0.0, hidden=(32,)), CONTINUOUS)
    right = toys(sac.Config(hidden=(32,)), CONTINUOUS)
    for name in ("critic", "actor"):
        assert torch.allclose(left.gradients(left.batch)[name], right.gradients(right.batch)[name], rtol=1e-4, atol=1e-6)


def test_the_slopes_of_critics_at_copies_of_an_action_are_those_at_the_action(toys):
    toy = toys(edac.Config(members=3, hidden=(32, 32)), CONTINUOUS)
    critic, obs, action = toy.networks["critic"], toy.batch["obs"], toy.batch["action"].clone().requires_grad_()
    alone = torch.stack([torch.autograd.grad(critic(obs, action)[i].sum(), action)[0] for i in range(3)])
    copies = action.detach().expand(3, *action.shape).clone().requires_grad_()
    together = torch.autograd.grad(critic.apart(obs.expand(3, *obs.shape), copies).sum(), copies)[0]
    assert torch.allclose(alone, together, rtol=1e-5)


def test_edac_in_one_action_dimension_has_the_gradient_of_sac_n(toys):
    """There a cosine is a sign: without a slope, but for one without end where a critic is flat, as some row nearly is."""
    spaces = Spaces(obs=(3,), actions=1, discrete=False)
    made = (toys(edac.Config(diversity=eta, hidden=(32,)), spaces) for eta in (5.0, 0.0))
    left, right = (toy.gradients(toy.batch)["critic"] for toy in made)
    assert torch.equal(left, right)


# RLPD


def test_rlpd_targets_are_the_least_of_a_few_critics_and_its_actor_climbs_the_mean():
    networks = {
        "actor": Fixed(0.2, logp=-3.0),
        "critic_target": lambda obs, action: torch.tensor([[4.0], [4.0], [6.0]]),
        "critic": lambda obs, action: torch.stack([action[:, 0], 2 * action[:, 0], 6 * action[:, 0]]),
        "temperature": Number(math.log(0.5)),
    }
    few = {"members": 3, "least_of": 2}
    target = 1.0 + 0.5 * (4.0 + 0.5 * 3.0)
    assert values_of(rlpd, networks, batch(), **few)[0] == pytest.approx([sum((q - target) ** 2 for q in (0.5, 1.0, 3.0))])
    bare, _ = values_of(rlpd, networks, batch(), entropy_target=False, **few)
    assert bare == pytest.approx([sum((q - 3.0) ** 2 for q in (0.5, 1.0, 3.0))])
    actor, _ = values_of(rlpd, networks, batch(), term=1, **few)
    assert actor == pytest.approx([0.5 * -3.0 - 0.6 - math.log(0.5) * (-3.0 - 0.5)])


def test_rlpd_with_the_least_of_all_and_no_layer_norm_has_the_critics_of_sac(toys):
    left = toys(rlpd.Config(members=2, layer_norm=False, hidden=(32,)), CONTINUOUS)
    right = toys(sac.Config(hidden=(32,)), CONTINUOUS)
    assert torch.allclose(left.gradients(left.batch)["critic"], right.gradients(right.batch)["critic"], rtol=1e-4, atol=1e-6)


def test_rlpd_trains_its_actor_once_per_step_of_the_environment():
    assert [term.every for term in rlpd.Config().build().terms] == [1, 20]


# PRDC


def test_prdc_holds_its_actor_to_the_action_of_a_neighbour():
    """Of a far state with action 0.1 and a near one with action 0.9: which is nearer to (0, 0.2) depends on the scale."""
    recorded_R, action_R = tensor([0.5], [0.1]), tensor([0.1], [0.9])
    near = models.build({"data": Neighbours(obs_scale=1.0), "far": Neighbours(obs_scale=4.0)}, ONE, seed=0)
    for network in near.values():
        network.remember(recorded_R, action_R)
    assert near["data"](tensor([0.0]), tensor([0.2])).item() == pytest.approx(0.1)
    assert near["far"](tensor([0.0]), tensor([0.2])).item() == pytest.approx(0.9)
    networks = {"actor": lambda obs: tensor([0.2]), "critic": lambda obs, action: tensor([-4.0]), "data": near["far"]}
    loss, watched = values_of(prdc, networks, batch(), term=1, alpha=6.0)
    assert watched["distance"] == pytest.approx(0.49)
    assert loss == pytest.approx([0.49 + 6.0 / 4.0 * 4.0])


def test_prdc_sees_states_as_its_networks_do():
    """With the first dimension scaled down a hundredfold, the neighbour is whoever is near in the second."""
    spaces = Spaces(obs=(2,), actions=1, discrete=False)
    built = models.build({"data": Neighbours()}, spaces, seed=0, normalise=True)
    built["data"].remember(tensor([1.0, 0.0], [0.0, 1.5]), tensor([0.1], [0.9]))
    assert built["data"](tensor([0.0, 0.0]), tensor([0.5])).item() == pytest.approx(0.1)
    models.set_statistics(built, torch.zeros(2), tensor(1.0, 100.0))
    assert built["data"](tensor([0.0, 0.0]), tensor([0.5])).item() == pytest.approx(0.9)


def test_prdc_with_an_infinite_scale_of_states_is_td3_bc(toys):
    left, right = toys(prdc.Config(obs_scale=1e9), CONTINUOUS), toys(td3_bc.Config(), CONTINUOUS)
    for name in ("critic", "actor"):
        assert torch.allclose(left.gradients(left.batch)[name], right.gradients(right.batch)[name], rtol=1e-4, atol=1e-6)


def test_prdc_searches_no_more_steps_than_it_is_told():
    built = models.build({"data": Neighbours(most=2)}, ONE, seed=0)["data"]
    built.remember(torch.arange(5.0)[:, None], torch.arange(5.0)[:, None] / 10)
    found = {built(tensor([float(at)]), tensor([at / 10])).item() for at in range(5)}
    assert sorted(found) == pytest.approx([0.0, 0.3])


def test_neighbours_without_a_data_set_say_what_is_missing():
    built = models.build({"data": Neighbours(source="demonstrations")}, ONE, seed=0)["data"]
    with pytest.raises(ConfigError, match="demonstrations"):
        built(tensor([0.0]), tensor([0.0]))


# WSRL


def test_wsrl_offline_with_two_critics_is_calql_or_cql(toys):
    few = {"members": 2, "least_of": 2, "layer_norm": False, "weight": 10.0}
    for calibrated, other in ((True, calql.Config(weight=10.0)), (False, cql.Config(hidden=(256, 256)))):
        left, right = toys(wsrl.Config(calibrated=calibrated, **few), CONTINUOUS), toys(other, CONTINUOUS)
        for name in ("critic", "actor"):
            assert torch.allclose(left.gradients(left.batch)[name], right.gradients(right.batch)[name], rtol=1e-4, atol=1e-5)


def test_wsrl_online_is_sac_whose_targets_are_the_least_of_a_few(toys):
    left = toys(wsrl.Config(layer_norm=False), CONTINUOUS)
    right = toys(rlpd.Config(layer_norm=False, entropy_target=False), CONTINUOUS)
    left.state = {"conservatism": 0.0}
    assert torch.allclose(left.gradients(left.batch)["critic"], right.gradients(right.batch)["critic"], rtol=1e-4, atol=1e-5)


def test_wsrl_actor_climbs_the_least_of_all_its_critics():
    networks = {
        "actor": Fixed(0.2, logp=-3.0),
        "critic": lambda obs, action: torch.stack([5 * action[:, 0], 10 * action[:, 0], 20 * action[:, 0]]),
        "temperature": Number(math.log(0.5)),
    }
    assert values_of(wsrl, networks, batch(), term=1)[0] == pytest.approx([0.5 * -3.0 - 1.0 - math.log(0.5) * (-3.0 - 1.0)])


def test_a_phase_may_train_the_actor_at_a_pace_of_its_own(toys):
    toy = toys(wsrl.Config(members=2), CONTINUOUS)
    updater = Updater(toy.algorithm, CONTINUOUS, ControlTrainerConfig())
    online = Phase(env_steps=1, every={"actor": 4})
    due = []
    for number in range(8):
        updater.num_updates = number
        due.append([term.name for term in updater.due(online)])
    assert due == [["critic"]] * 3 + [["critic", "actor"]] + [["critic"]] * 3 + [["critic", "actor"]]


# Configs


@pytest.mark.parametrize(
    "method, broken, rule",
    [
        (awac, {"temperature": 0.0}, "temperature, cap > 0"),
        (cql, {"num_actions": 0}, "num_actions >= 1"),
        (cql, {"weight": -1.0}, "weight >= 0"),
        (edac, {"members": 1}, "members >= 2"),
        (prdc, {"obs_scale": -1.0}, "obs_scale, alpha, explore, noise and bound >= 0"),
        (wsrl, {"least_of": 0}, "1 <= least_of <= members"),
        (rlpd, {"least_of": 11}, "1 <= least_of <= members"),
    ],
)
def test_a_broken_config_says_which_rule_it_breaks(method, broken, rule):
    with pytest.raises(ConfigError) as caught:
        method.Config(**broken)
    assert caught.value.expected == rule
