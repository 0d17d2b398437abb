"""The model of characters."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from freerun.errors import ConfigError, DataError
from freerun.models import tiny_lm
from freerun.models.base import resolve_dtype
from freerun.types import Message, Prompt

SMALL = tiny_lm.Config(layers=2, width=32, heads=4, kv_heads=2, alphabet="0123456789+=")


def test_the_default_has_about_a_million_parameters():
    assert 0.9e6 < sum(p.numel() for p in tiny_lm.Config().build().model.parameters()) < 1.1e6


def test_weights_depend_on_the_seed_alone_and_leave_the_random_state_of_torch_alone():
    before = torch.get_rng_state()
    once = SMALL.build(seed=1).model.state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(5)
    again, other = SMALL.build(seed=1).model.state_dict(), SMALL.build(seed=2).model.state_dict()
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not torch.equal(once["lm_head.weight"], other["lm_head.weight"])


def test_it_begins_with_the_weights_of_a_file_whatever_the_seed(tmp_path):
    trained = SMALL.build(seed=3).model
    save_file(trained.state_dict(), tmp_path / "policy.safetensors")
    loaded = replace(SMALL, weights=str(tmp_path / "policy.safetensors")).build(seed=4).model
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in trained.state_dict().items())


def test_weights_that_are_missing_broken_or_of_another_size_are_refused_by_name(tmp_path):
    save_file(replace(SMALL, width=64).build().model.state_dict(), tmp_path / "wide.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    for name in ("wide", "torn", "absent"):
        with pytest.raises(DataError, match=f"{name}.safetensors"):
            replace(SMALL, weights=str(tmp_path / f"{name}.safetensors")).build()


def test_characters_are_tokens_and_padding_and_the_end_are_not_text():
    lm = SMALL.build()
    tokens = lm.encode(Prompt("p", "12+3="))
    assert len(tokens) == 5 and lm.decode([*tokens, *lm.eos, lm.pad]) == "12+3="
    assert not {*lm.eos, lm.pad} & set(tokens) and lm.pad not in lm.eos


def test_the_network_predicts_one_distribution_per_character_and_is_in_evaluation_mode():
    lm = SMALL.build()
    with torch.no_grad():
        logits = lm.model(torch.tensor([lm.encode(Prompt("p", "1+1="))])).logits
    assert logits.shape == (1, 4, len(SMALL.alphabet) + tiny_lm.NUM_SPECIAL)
    assert not lm.model.training and lm.model.dtype is resolve_dtype("auto", "cpu") and lm.context == SMALL.context


def test_a_character_outside_the_alphabet_is_named():
    with pytest.raises(DataError, match="'x'") as caught:
        SMALL.build().encode(Prompt("p", "1+x="))
    assert SMALL.alphabet in caught.value.expected


def test_chat_turns_and_empty_prompts_are_refused():
    lm = SMALL.build()
    with pytest.raises(DataError, match="raw text"):
        lm.encode(Prompt("p", (Message("user", "1+1="),)))
    with pytest.raises(DataError, match="no tokens"):
        lm.encode(Prompt("p", ""))


@pytest.mark.parametrize("changes", [{"width": 30}, {"heads": 3}, {"kv_heads": 3}, {"alphabet": "aba"}, {"alphabet": ""}])
def test_sizes_and_alphabets_that_cannot_work_are_refused(changes):
    with pytest.raises(ConfigError):
        tiny_lm.Config(**changes).build()


def test_types_are_named_and_auto_is_bfloat16_only_where_the_cpu_multiplies_it(monkeypatch):
    assert resolve_dtype("bfloat16", "cpu") is torch.bfloat16
    with pytest.raises(ConfigError, match="int4"):
        resolve_dtype("int4", "cpu")
    for features, expected in (
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features)
        assert resolve_dtype("auto", "cpu") is expected


def test_a_cuda_device_that_is_not_there_is_a_config_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="cuda:0"):
        resolve_dtype("auto", "cuda:0")
