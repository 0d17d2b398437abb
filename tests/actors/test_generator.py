"""The executor: weights references adopted without copying, one failure per bad item, replay by arguments."""

from dataclasses import dataclass, field

import pytest
import torch

from freerun.actors.adoption import adopt
from freerun.actors.generator import GeneratorConfig, GeneratorExecutor
from freerun.errors import ConfigError, WeightsError
from freerun.models.tiny_lm import Config
from freerun.types import CachePolicy, Failure, FailureKind, Prompt, Request, Sampling, Trajectory, WeightsRef
from tests.actors.conftest import random_model

TINY = Config(layers=2, width=32, heads=2, kv_heads=1, context=48, alphabet="0123456789+= ")


@dataclass
class Shelf:
    """A subscriber that reads versions from a dictionary."""

    versions: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    adopted: list[int] = field(default_factory=list)

    def put(self, version: int) -> WeightsRef:
        model = TINY.build(seed=version).model
        self.versions[version] = {name: p.detach().clone() for name, p in model.named_parameters()}
        return WeightsRef(version=version, transport="shelf", address=None, manifest={}, num_bytes=0)

    def adopt(self, ref: WeightsRef, *, verify: bool = False) -> dict[str, torch.Tensor]:
        self.adopted.append(ref.version)
        return self.versions[ref.version]

    def close(self) -> None:
        self.adopted.append(-1)


def order(item: int, text: str = "1+2=", samples: int = 2, **sampling) -> Request:
    setting = Sampling(**{"max_tokens": 6, **sampling})
    return Request(item=item, prompt=Prompt(str(item), text), num_samples=samples, sampling=setting, seed=item)


def executor(shelf: Shelf, **config) -> GeneratorExecutor:
    return GeneratorExecutor(TINY, GeneratorConfig(**{"slots": 4, **config}), lambda: shelf)


def test_one_call_adopts_submits_and_decodes() -> None:
    shelf = Shelf()
    generator = executor(shelf)
    report = generator.advance([order(0), order(1)], shelf.put(5), steps=3)
    assert (report.version, report.running, report.waiting, report.finished) == (5, 4, 0, ())
    assert (report.tokens, report.prefill_tokens) == (12, 4)
    report = generator.advance([], None, steps=100)
    assert {(f.item, f.sample) for f in report.finished} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert all(set(f.outcome.version_T[f.outcome.action_T].tolist()) == {5} for f in report.finished)
    assert (report.running, report.waiting) == (0, 0)
    assert report.seconds >= report.swap_seconds >= 0


def test_only_a_newer_reference_is_adopted() -> None:
    shelf = Shelf()
    generator = executor(shelf)
    first, second = shelf.put(1), shelf.put(2)
    for ref in (first, first, second, first, None):
        generator.advance([], ref, steps=1)
    generator.close()
    assert shelf.adopted == [1, 2, -1]


def test_a_bad_request_is_a_failure_of_its_own_samples_only() -> None:
    generator = executor(Shelf())
    report = generator.advance([order(0), order(1, "1" * 60), order(2, "what?"), order(3)], None, steps=50)
    outcomes = {(f.item, f.sample): f.outcome for f in report.finished}
    assert set(outcomes) == {(item, sample) for item in range(4) for sample in range(2)}
    for (item, _), outcome in outcomes.items():
        assert isinstance(outcome, Failure if item in (1, 2) else Trajectory)
        if item == 1:
            assert outcome.kind is FailureKind.MODEL and "leaves no room" in outcome.message


def test_the_same_calls_replay_bit_for_bit() -> None:
    def run() -> list[tuple]:
        shelf = Shelf()
        generator = executor(shelf)
        calls = [([order(0), order(1)], shelf.put(1), 2), ([order(2)], shelf.put(2), 3), ([], None, 1), ([], shelf.put(3), 40)]
        reports = [generator.advance(*call) for call in calls]
        return [
            (f.item, f.sample, f.outcome.tokens_T.tolist(), f.outcome.logp_T.tolist(), f.outcome.version_T.tolist())
            for report in reports
            for f in report.finished
        ]

    assert run() == run()


def test_with_finish_the_report_tells_which_weights_are_in_use() -> None:
    shelf = Shelf()
    generator = executor(shelf, cache_policy=CachePolicy.FINISH)
    generator.advance([order(0)], shelf.put(1), steps=2)
    assert generator.advance([order(1)], shelf.put(2), steps=1).version == 1
    report = generator.advance([], None, steps=50)
    assert report.version == 2
    versions = {f.item: set(f.outcome.version_T[f.outcome.action_T].tolist()) for f in report.finished}
    assert versions == {0: {1}, 1: {2}}


def test_paused_samples_resume_through_the_request() -> None:
    whole = {f.sample: f.outcome for f in executor(Shelf()).advance([order(0)], None, steps=50).finished}
    generator = executor(Shelf())
    generator.advance([order(0)], None, steps=2)
    partial = generator.pause([0])[0]
    resumed = Request(**{**{name: getattr(order(0), name) for name in Request.__slots__}, "partial": partial})
    for finished in generator.advance([resumed], None, steps=50).finished:
        assert finished.outcome.tokens_T.tolist() == whole[finished.sample].tokens_T.tolist()


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs slots"):
        executor(Shelf(), slots=0)
    with pytest.raises(ConfigError, match="larger than the model's context"):
        executor(Shelf(), max_context=49)


def test_adoption_points_at_the_published_tensors_and_never_writes_to_them() -> None:
    model, other = random_model(0), random_model(1)
    published = {name: p.detach().clone() for name, p in other.named_parameters()}
    adopt(model, published)
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == published[name].data_ptr()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    before = {name: tensor.clone() for name, tensor in published.items()}
    adopt(model, {name: tensor.double() for name, tensor in random_model(2).state_dict().items()})
    for name, tensor in published.items():
        assert torch.equal(tensor, before[name])
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.model.norm.weight, random_model(2).model.norm.weight)


def test_weights_that_do_not_fit_are_refused_before_anything_changes() -> None:
    model = random_model(0)
    good = {name: p.detach().clone() for name, p in random_model(1).named_parameters()}
    name = "model.layers.0.mlp.up_proj.weight"
    for broken in (
        {k: v for k, v in good.items() if k != name},
        {**good, "adapter.weight": torch.zeros(2)},
        {**good, name: torch.zeros(3, 3)},
    ):
        with pytest.raises(WeightsError, match="do not fit"):
            adopt(model, broken)
    for (_, mine), (_, fresh) in zip(model.named_parameters(), random_model(0).named_parameters(), strict=True):
        assert torch.equal(mine, fresh)
