"""Routing replay in the trainer: R3 from the generator's record, R2 from its own, whatever micro-batches look like.

Shapes: L routers, T positions of a trajectory, k experts per token, B and T of a batch.
"""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from freerun.algorithms.base import LossOut, Term
from freerun.algorithms.language import minirl
from freerun.encoding import decode_group, encode_group
from freerun.errors import ConfigError, DataError
from freerun.metrics import plain
from freerun.models.routing import Routers
from freerun.types import Source

WAYS = [{"packing": "rows"}, {}, {"micro_tokens": 20}, {"packing": "rows", "micro_tokens": 30}]


@pytest.fixture(scope="module")
def mixture():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = Qwen3MoeConfig(
            vocab_size=64,
            hidden_size=32,
            moe_intermediate_size=32,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            initializer_range=0.3,
            attn_implementation="sdpa",
        )
        return Qwen3MoeForCausalLM(sizes).eval()


@torch.no_grad()
def own_routing(model, tokens_T):
    with Routers(model).recording() as expert_Nk:
        model(tokens_T[None], use_cache=False)
    return torch.stack(expert_Nk).to(torch.int16)


def routed(group, model, shift=None):
    """`group` with the routing of its own model, or that moved on by `shift(i)` experts for sample i from its first action."""
    trajectories = []
    for i, t in enumerate(group.trajectories):
        routing_LTk = own_routing(model, t.tokens_T)
        if shift is not None:
            moved = (routing_LTk + shift(i)) % 8
            routing_LTk = torch.where(t.action_T[None, :, None], moved, routing_LTk)
        trajectories.append(replace(t, routing_LTk=routing_LTk))
    return replace(group, trajectories=tuple(trajectories))


@torch.no_grad()
def logps_under(model, trajectory, routing_LTk):
    """Log-probs of the action tokens when the trajectory is computed alone, along `routing_LTk`."""
    last = len(trajectory.tokens_T) - 1
    with Routers(model).replaying(routing_LTk[:, :last].long()):
        logits_TV = model(trajectory.tokens_T[None, :last], use_cache=False).logits[0]
    return logits_TV.log_softmax(-1).gather(-1, trajectory.tokens_T[1:, None])[trajectory.action_T[1:], 0]


def spying(reinforce, routing, seen, network=None):
    """REINFORCE that notes which log-probs it was given, by reward; and, of `network`, the weights that gave them."""

    def loss(outputs, batch, state):
        weights = None if network is None else copy.deepcopy(network().state_dict())
        for logp_T, mask_T, reward in zip(outputs["logp"].detach(), batch["mask"], batch["reward"], strict=True):
            seen.append((float(reward), logp_T[mask_T], weights))
        return LossOut(-batch["advantage"] * outputs["logp"])

    return reinforce(
        changes={
            "terms": (Term(name="policy", loss=loss),),
            "needs": frozenset({"mask", "advantage", "reward"}),
            "routing": routing,
        }
    )


def step(trainer, groups):
    trainer.start()
    trainer.accumulate(groups)
    return plain(trainer.finish_step().metrics)


@pytest.fixture
def groups(group, mixture):
    """Their rewards tell their trajectories apart."""
    made = [group(item, model=mixture, rewards=[10.0 * item + i for i in range(4)]) for item in range(4)]
    return [routed(one, mixture) for one in made]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_replaying_the_models_own_routing_changes_nothing(make_trainer, reinforce, mixture, groups, way):
    results = []
    for routing in ("free", "rollout"):
        trainer = make_trainer(reinforce(changes={"routing": routing}), model=mixture, clip_norm=0.0, **way)
        results.append(step(trainer, groups))
    for name in ("grad_norm", "loss/policy", "entropy", "mismatch/abs_max", "tokens/computed"):
        assert results[1][name] == pytest.approx(results[0][name], rel=1e-5, abs=1e-6)
    assert results[1]["mismatch/abs_max"] < 1e-4


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_token_goes_where_its_own_trajectory_says(make_trainer, reinforce, mixture, groups, way):
    """Siblings that begin alike, but went to other experts, are not computed as one."""
    seen, moved = [], [routed(one, mixture, shift=lambda i: i % 3) for one in groups]
    step(make_trainer(spying(reinforce, "rollout", seen), model=mixture, **way), moved)
    assert len(seen) == 16
    found = {reward: logp_A for reward, logp_A, _ in seen}
    far = 0.0
    for one in moved:
        for trajectory, reward in zip(one.trajectories, one.rewards, strict=True):
            expected = logps_under(mixture, trajectory, trajectory.routing_LTk)
            torch.testing.assert_close(found[reward.value], expected, rtol=1e-4, atol=1e-4)
            free = logps_under(mixture, trajectory, own_routing(mixture, trajectory.tokens_T))
            far = max(far, float((expected - free).abs().max()))
    assert far > 0.5


def test_trees_share_a_prefix_only_as_far_as_routing_agrees(make_trainer, reinforce, mixture, groups):
    computed = []
    for shift in (lambda i: 0, lambda i: i):
        trainer = make_trainer(reinforce(changes={"routing": "rollout"}), model=mixture)
        computed.append(step(trainer, [routed(one, mixture, shift) for one in groups])["tokens/computed"])
    assert computed[0] < computed[1]


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_gradient_of_a_replay_is_that_of_its_log_probs(make_trainer, reinforce, mixture, groups, checkpoint):
    """Against autograd through each trajectory alone; with activations recomputed in the backward pass too."""
    moved = [routed(one, mixture, shift=lambda i: 1 + i) for one in groups]
    algorithm = reinforce(changes={"routing": "rollout"})
    trainer = make_trainer(algorithm, model=mixture, clip_norm=0.0, checkpoint_activations=checkpoint, micro_tokens=40)
    found = step(trainer, moved)["grad_norm"]
    model, total, num = copy.deepcopy(mixture), 0.0, 0
    routers = Routers(model)
    for one in moved:
        mean = sum(r.value for r in one.rewards) / 4
        for t, r in zip(one.trajectories, one.rewards, strict=True):
            last = len(t.tokens_T) - 1
            with routers.replaying(t.routing_LTk[:, :last].long()):
                logp_TV = model(t.tokens_T[None, :last], use_cache=False).logits[0].log_softmax(-1)
            total = total - (r.value - mean) * logp_TV.gather(-1, t.tokens_T[1:, None])[t.action_T[1:]].sum()
            num += t.num_actions
    gradients = torch.autograd.grad(total / num, list(model.parameters()), allow_unused=True)
    expected = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    assert found == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_later_minibatches_go_where_the_start_of_the_step_went(make_trainer, reinforce, mixture, groups, way):
    """R2: weights change in between, so much that the router would choose otherwise."""
    seen, held = [], []
    algorithm = spying(reinforce, "update", seen, network=lambda: held[0]._learner.policy.model)
    held.append(make_trainer(algorithm, model=mixture, minibatches=4, lr=0.05, **way))
    step(held[0], groups)
    flips, model = 0, copy.deepcopy(mixture)
    trajectories = {r.value: t for one in groups for t, r in zip(one.trajectories, one.rewards, strict=True)}
    for reward, logp_A, weights in seen:
        model.load_state_dict(weights)
        trajectory = trajectories[reward]
        expected = logps_under(model, trajectory, own_routing(mixture, trajectory.tokens_T))
        torch.testing.assert_close(logp_A, expected, rtol=1e-3, atol=1e-3)
        flips += int((own_routing(model, trajectory.tokens_T) != own_routing(mixture, trajectory.tokens_T)).sum())
    assert len(seen) == 16
    assert flips > 20


def test_a_single_update_has_nothing_to_replay(make_trainer, reinforce, mixture, groups):
    free, update = (
        step(make_trainer(reinforce(changes={"routing": routing}), model=mixture), groups) for routing in ("free", "update")
    )
    for name in ("grad_norm", "loss/policy", "tokens/computed"):
        assert update[name] == free[name]


def test_the_column_of_the_proximal_policy_is_computed_along_the_replayed_routing(make_trainer, from_proximal, mixture, groups):
    """With R3 and the weights that sampled, the trainer's start of the update is the generator's policy, flips or not."""
    changed = replace(from_proximal, changes={**from_proximal.changes, "routing": "rollout"})
    moved = []
    for one in (routed(g, mixture, shift=lambda i: 2) for g in groups):
        trajectories = []
        for t in one.trajectories:
            logp_T = torch.zeros(len(t.tokens_T))
            logp_T[t.action_T] = logps_under(mixture, t, t.routing_LTk)
            trajectories.append(replace(t, logp_T=logp_T))
        moved.append(replace(one, trajectories=tuple(trajectories)))
    for config in ({}, {"minibatches": 2, "epochs": 2}):
        metrics = step(make_trainer(changed, model=mixture, **config), moved)
        assert metrics["algorithm/from_behaviour"] == pytest.approx(0.0, abs=1e-4)


def test_data_without_routing_is_refused_by_name(make_trainer, mixture, groups, group):
    trainer = make_trainer(minirl.Config(routing="rollout"), model=mixture)
    bare = replace(group(7, model=mixture), source=Source.DATASET)
    with pytest.raises(DataError, match="does not have") as caught:
        trainer.accumulate([groups[0], bare])
    assert "algorithm 'minirl' replays the generator's routing, which sample 0 of item 7" in caught.value.what
    assert "routing_LTk" in caught.value.given and "dataset" in caught.value.given
    short = replace(groups[1].trajectories[0], routing_LTk=groups[1].trajectories[0].routing_LTk[:, 1:])
    with pytest.raises(DataError, match="cannot be trained on"):
        trainer.accumulate([replace(groups[1], trajectories=(short, *groups[1].trajectories[1:]))])


@pytest.mark.parametrize("routing", ["update", "rollout"])
def test_a_dense_model_is_refused(make_trainer, reinforce, routing):
    with pytest.raises(ConfigError, match="routing cannot be replayed"):
        make_trainer(reinforce(changes={"routing": routing}))


def test_routing_survives_the_journal_and_the_checkpoint_to_the_bit(groups, group):
    for original in (groups[0], replace(group(5), trajectories=(groups[1].trajectories[0], *group(5).trajectories[1:]))):
        again = decode_group(encode_group(original), original.item, original.prompt)
        for left, right in zip(original.trajectories, again.trajectories, strict=True):
            assert torch.equal(left.tokens_T, right.tokens_T) and torch.equal(left.logp_T, right.logp_T)
            assert (left.routing_LTk is None) == (right.routing_LTk is None)
            if left.routing_LTk is not None:
                assert torch.equal(left.routing_LTk, right.routing_LTk)
