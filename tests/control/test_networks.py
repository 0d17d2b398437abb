"""Networks from their descriptions: members of an ensemble are networks of their own, seeds fix weights, inputs are scaled."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from freerun.errors import ConfigError
from freerun.models.control import CLIP, build, set_statistics
from freerun.networks import Body, Deterministic, Ensemble, Policy, Scalar
from freerun.ops.distributions import Categorical, Gaussian, SquashedGaussian
from freerun.transitions import Spaces

BOX, KEYS = Spaces(obs=(3,), actions=2, discrete=False), Spaces(obs=(3,), actions=4, discrete=True)
SCREEN = Spaces(obs=(4, 84, 84), actions=4, discrete=True, pixels=True)
GRID = Spaces(obs=(3, 7, 7), actions=7, discrete=True)
WALL = Spaces(obs=(40, 40), actions=7, discrete=True)
SMALL = Body(hidden=(8, 6))


def one(network: object, spaces: Spaces = BOX, *, seed: int = 0, normalise: bool = False) -> torch.nn.Module:
    return build({"it": network}, spaces, seed=seed, normalise=normalise)["it"]


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("outputs", [1, 3])
def test_members_computed_together_are_each_a_plain_network(outputs, layer_norm) -> None:
    body = Body(hidden=(8, 6), layer_norm=layer_norm)
    both = one(Ensemble(members=3, outputs=outputs, body=body))
    single = one(Ensemble(members=1, outputs=outputs, body=body))
    obs, action = inputs(5, 3), inputs(5, 2)
    together = both(obs, action).reshape(3, 5, -1)
    for member in range(3):
        with torch.no_grad():
            for i, layer in enumerate(single.layers.linear):
                layer.weight.copy_(both.layers.weights[i][member].T)
                layer.bias.copy_(both.layers.biases[i][member, 0])
        assert torch.allclose(single(obs, action).reshape(5, -1), together[member], atol=1e-6)


@pytest.mark.parametrize("network", [Ensemble(members=2, body=SMALL), Ensemble(body=SMALL)], ids=["two", "one"])
def test_a_copy_computes_with_weights_of_its_own_and_takes_those_that_are_loaded(network) -> None:
    first = one(network)
    target, other = copy.deepcopy(first), one(network, seed=1)
    obs, action = inputs(5, 3), inputs(5, 2)
    before = first(obs, action)
    with torch.no_grad():
        torch._foreach_add_(list(target.parameters()), 1.0)
    assert torch.equal(first(obs, action), before)
    assert not torch.equal(target(obs, action), before)
    target.load_state_dict(other.state_dict())
    assert torch.equal(target(obs, action), other(obs, action))
    assert torch.equal(target.to("cpu", torch.float64).float()(obs, action), other(obs, action))


def test_a_gradient_through_one_member_leaves_the_others_alone() -> None:
    both = one(Ensemble(members=2, body=SMALL))
    both(inputs(5, 3), inputs(5, 2))[1].sum().backward()
    assert all(not p.grad[0].any() and p.grad[1].any() for p in both.layers.weights)


def test_members_begin_with_different_weights() -> None:
    first, second = one(Ensemble(members=2, body=SMALL)).layers.weights[0]
    assert not torch.equal(first, second)


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu"])
@pytest.mark.parametrize("members", [1, 2])
def test_a_network_leaves_what_it_is_given_as_it_was_and_knows_second_derivatives(activation, members) -> None:
    network = one(Ensemble(members=members, body=Body(hidden=(8, 6), activation=activation))).double()
    obs, action = inputs(5, 3).double(), inputs(5, 2).double().requires_grad_()
    before = obs.clone(), action.detach().clone()
    network(obs, action)
    assert torch.equal(obs, before[0])
    assert torch.equal(action, before[1])
    assert torch.autograd.gradcheck(lambda a: network(obs, a), action)
    assert torch.autograd.gradgradcheck(lambda a: network(obs, a), action)


def test_rows_may_have_any_leading_dimensions() -> None:
    for members in (1, 3):
        critic = one(Ensemble(members=members, body=SMALL))
        obs, action = inputs(4, 5, 3), inputs(4, 5, 2)
        whole = critic(obs, action)
        assert whole.shape == (members, 4, 5)
        assert torch.allclose(whole[:, 2], critic(obs[2], action[2]), atol=1e-6)


def test_a_discrete_action_is_one_hot() -> None:
    critic = one(Ensemble(body=SMALL), KEYS)
    assert critic.layers.linear[0].in_features == 3 + 4
    values = critic(inputs(1, 3).expand(4, 3), torch.arange(4))
    assert len(values.unique()) == 4


def test_an_output_for_each_action_and_a_context_have_their_widths() -> None:
    assert one(Ensemble(reads=("obs",), outputs="actions", members=2, body=SMALL), KEYS)(inputs(5, 3)).shape == (2, 5, 4)
    assert one(Ensemble(context=6, body=SMALL))(inputs(5, 3), inputs(5, 2), inputs(5, 6)).shape == (1, 5)
    assert one(Deterministic(context=2, body=SMALL))(inputs(5, 3), inputs(5, 2)).shape == (5, 2)
    assert one(Scalar(value=-1.5))().item() == -1.5


def test_policies_give_the_distribution_that_the_actions_ask_for() -> None:
    assert isinstance(one(Policy(body=SMALL))(inputs(5, 3)), SquashedGaussian)
    assert isinstance(one(Policy(body=SMALL, squash=False))(inputs(5, 3)), Gaussian)
    assert isinstance(one(Policy(body=SMALL), KEYS)(inputs(5, 3)), Categorical)


def test_deviations_stay_within_their_bounds_with_a_gradient_at_either() -> None:
    policy = one(Policy(body=SMALL, log_std=(-3.0, 1.0)))
    log_std = policy(1e4 * inputs(64, 3)).log_std_BA
    assert log_std.min() >= -3.0
    assert log_std.max() <= 1.0
    free = one(Policy(body=SMALL, squash=False, state_std=False))
    assert torch.equal(free(inputs(5, 3)).log_std_BA, torch.zeros(5, 2))
    assert [name for name, _ in free.named_parameters() if name == "log_std"]


def test_the_same_seed_builds_the_same_weights_and_each_name_has_its_own() -> None:
    networks = {"a": Deterministic(body=SMALL), "b": Deterministic(body=SMALL)}
    first, again, other = (build(networks, BOX, seed=seed) for seed in (0, 0, 1))
    weight = [n["a"].layers.linear[0].weight for n in (first, again, other)]
    assert torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[0], weight[2])
    assert not torch.equal(weight[0], first["b"].layers.linear[0].weight)


def test_default_weights_are_within_the_bounds_of_pytorchs_linear_layers() -> None:
    critic = one(Ensemble(members=4, body=Body(hidden=(64, 64))))
    for weight, inputs_ in zip(critic.layers.weights, (5, 64, 64), strict=True):
        bound = 1.0 / math.sqrt(inputs_)
        assert 0.9 * bound < weight.abs().max() <= bound


def test_orthogonal_weights_are_orthogonal_with_their_gains() -> None:
    policy = one(Policy(body=Body(hidden=(8, 8), activation="tanh", init="orthogonal"), squash=False, state_std=False))
    hidden, last = policy.layers.linear[1].weight, policy.layers.linear[2].weight
    assert torch.allclose(hidden @ hidden.T, 2.0 * torch.eye(8), atol=1e-5)
    assert torch.allclose(last @ last.T, 1e-4 * torch.eye(2), atol=1e-9)
    assert not policy.layers.linear[0].bias.any()


def test_observations_are_normalised_and_clipped_once_statistics_are_known() -> None:
    networks = build({"it": Deterministic(body=SMALL)}, BOX, seed=0, normalise=True)
    plain, obs = one(Deterministic(body=SMALL)), inputs(5, 3)
    assert torch.equal(networks["it"](obs), plain(obs))
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0])
    set_statistics(networks, mean, std)
    assert torch.allclose(networks["it"](obs), plain(((obs - mean) / std).clamp(-CLIP, CLIP)), atol=1e-6)
    assert {"observer.shift", "observer.scale"} <= set(networks["it"].state_dict())


def test_pixels_are_bytes_divided_by_255_and_go_through_convolutions() -> None:
    critic = one(Ensemble(reads=("obs",), outputs="actions", body=Body(hidden=(16,), encoder="pixels")), SCREEN)
    black, white = torch.zeros(2, 4, 84, 84, dtype=torch.uint8), torch.full((2, 4, 84, 84), 255, dtype=torch.uint8)
    assert critic(black).shape == (1, 2, 4)
    assert torch.allclose(critic(white), critic(white.float()), atol=1e-6)
    assert not torch.allclose(critic(white), critic(black))
    assert critic.observer.width == 64 * 7 * 7
    assert critic(black.view(2, 1, 4, 84, 84)).shape == (1, 2, 1, 4)


def test_small_grids_have_convolutions_of_their_own() -> None:
    policy = one(Policy(body=Body(hidden=(16,), encoder="grid")), GRID)
    assert policy(inputs(5, 3, 7, 7)).logp_BA.shape == (5, 7)
    assert policy.observer.width == 64 * 4 * 4
    symbols = replace(GRID, pixels=True, largest=10)
    tens = torch.full((1, 3, 7, 7), 10, dtype=torch.uint8)
    same = one(Policy(body=Body(hidden=(16,), encoder="grid")), symbols)
    assert torch.allclose(same(tens).logp_BA, policy(torch.ones(1, 3, 7, 7)).logp_BA, atol=1e-6)


@pytest.mark.parametrize(("body", "spaces"), [(Body(encoder="flat"), SCREEN), (Body(encoder="pixels"), BOX), (Body(), WALL)])
def test_an_encoder_that_does_not_fit_the_observations_is_refused(body, spaces) -> None:
    with pytest.raises(ConfigError, match="does not fit the observations"):
        one(Deterministic(body=body), spaces)


@pytest.mark.parametrize("spaces", [BOX, SCREEN, GRID])
def test_an_encoder_can_be_what_the_observations_ask_for(spaces) -> None:
    fitting = {BOX: "flat", SCREEN: "pixels", GRID: "grid"}[spaces]
    chosen, same = (one(Policy(body=Body(hidden=(16,), encoder=encoder)), spaces) for encoder in ("auto", fitting))
    assert all(torch.equal(a, b) for a, b in zip(chosen.state_dict().values(), same.state_dict().values(), strict=True))
