"""What the trainer publishes, adapters included, and the supervised stage before it."""

import copy

import pytest
import torch

from freerun.algorithms.language import aipo, sft
from freerun.errors import ConfigError, WeightsError
from freerun.trainer.config import LoraConfig
from freerun.trainer.forward import load_weights, named_weights
from freerun.types import Example, Prompt, Source
from freerun.weights import inprocess


def adopt(ref):
    return dict(inprocess.subscriber()().adopt(ref))


def step(trainer, groups, keep=()):
    trainer.accumulate(groups)
    return trainer.finish_step(keep)


# --- publication -------------------------------------------------------------------------------------------------------------


def test_version_0_is_the_model_under_its_own_names(make_trainer, network) -> None:
    ref = make_trainer().start()
    assert ref.version == 0
    torch.testing.assert_close(adopt(ref), named_weights(network), rtol=0, atol=0)


def test_tied_weights_travel_once(make_trainer, llama) -> None:
    ref = make_trainer(model=llama(tie_word_embeddings=True)).start()
    assert "model.embed_tokens.weight" in ref.manifest and "lm_head.weight" not in ref.manifest


def test_a_published_version_does_not_change_when_training_goes_on(make_trainer, group) -> None:
    trainer = make_trainer()
    first = adopt(trainer.start())
    before = {k: v.clone() for k, v in first.items()}
    report = step(trainer, [group(0)], keep=[0])
    torch.testing.assert_close(first, before, rtol=0, atol=0)
    assert not torch.equal(adopt(report.ref)["lm_head.weight"], before["lm_head.weight"])


def test_versions_are_kept_while_a_step_asks_for_them(make_trainer, group) -> None:
    trainer = make_trainer()
    refs = [trainer.start()]
    for keep in ([0], [0, 1], [1, 2], []):
        refs.append(step(trainer, [group(0, version=trainer.version)], keep).ref)
        readable = []
        for ref in refs:
            try:
                adopt(ref)
                readable.append(ref.version)
            except WeightsError:
                pass
        assert set(keep) | {trainer.version} <= set(readable)
    assert 0 not in readable


# --- adapters ----------------------------------------------------------------------------------------------------------------


def test_lora_trains_adapters_only_and_publishes_what_the_adapted_model_computes(make_trainer, group, network) -> None:
    trainer = make_trainer(lora=LoraConfig(rank=4, alpha=8.0))
    start = adopt(trainer.start())
    torch.testing.assert_close(start, named_weights(network), rtol=0, atol=0)
    for item in range(2):
        report = step(trainer, [group(item, version=item)])
    adapted = trainer.model.model
    frozen = {k.replace(".base_layer", ""): v for k, v in named_weights(adapted).items() if "lora_" not in k}
    torch.testing.assert_close(frozen, named_weights(network), rtol=0, atol=0)
    assert all("lora_" in name for name in trainer._learner.trained)

    merged = copy.deepcopy(network)
    load_weights(merged, adopt(report.ref))
    tokens_RL = torch.arange(2, 20)[None]
    with torch.no_grad():
        logits, expected, before = (m(input_ids=tokens_RL).logits for m in (merged, adapted, network))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert (expected - before).abs().max() > 0.1


def test_lora_targets_have_to_exist(make_trainer) -> None:
    with pytest.raises(ConfigError, match="does not have: kv_proj"):
        make_trainer(lora=LoraConfig(targets=("q_proj", "kv_proj")))


def test_lora_works_beside_recomputed_activations(make_trainer, group) -> None:
    norms = []
    for recompute in (False, True):
        trainer = make_trainer(lora=LoraConfig(rank=2), checkpoint_activations=recompute)
        trainer.start()
        norms.append(step(trainer, [group(0)]).metrics["grad_norm"].value)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) and norms[0] > 0


# --- warm start --------------------------------------------------------------------------------------------------------------

DEMONSTRATIONS = [
    Example(uid="a", prompt=Prompt("a", "2+2="), responses=("4",), source=Source.EXPERT),
    Example(uid="b", prompt=Prompt("b", "10+7="), responses=("17",), source=Source.EXPERT),
]


def test_a_warm_start_learns_the_demonstrations_without_making_a_version(make_trainer) -> None:
    trainer = make_trainer()
    losses = [trainer.warm_start(DEMONSTRATIONS, sft.Config(), 1e-2)["loss/nll"].value for _ in range(20)]
    assert losses[-1] < 0.1 * losses[0]
    assert trainer.version == 0 and trainer._num_updates == 0
    assert trainer.start().version == 0


def test_a_demonstration_is_prompt_response_and_end(make_trainer, network, naive_logps) -> None:
    trainer = make_trainer()
    loss = trainer.warm_start(DEMONSTRATIONS, sft.Config(), 1e-6)["loss/nll"].value
    logps = []
    for example in DEMONSTRATIONS:
        prompt, response = example.prompt, example.responses[0]
        # 63 is what this tokenizer puts in front of any text, 1 is the end of sequence.
        tokens_T = torch.tensor([63, *(ord(c) % 60 for c in prompt.content), *(ord(c) % 60 for c in response), 1])
        logps.append(naive_logps(network, tokens_T)[len(prompt.content) :])
    assert loss == pytest.approx(-float(torch.cat(logps).detach().mean()), rel=1e-4)


def test_rl_starts_with_a_fresh_optimiser(make_trainer, group) -> None:
    trainer = make_trainer()
    trainer.warm_start(DEMONSTRATIONS, sft.Config(), 1e-2)
    assert not trainer._learner.optimizer.state
    trainer.start()
    step(trainer, [group(0)])
    assert {int(s["step"]) for s in trainer._learner.optimizer.state.values()} == {1}


def test_only_a_supervised_algorithm_can_warm_start(make_trainer) -> None:
    with pytest.raises(
        ConfigError, match="'aipo' asks for batch columns that this trainer does not have: advantage, logp_behaviour"
    ):
        make_trainer().warm_start(DEMONSTRATIONS, aipo.Config(), 1e-3)
