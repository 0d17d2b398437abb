"""Low-rank adapters through `peft`, which only this file imports."""

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from freerun.errors import ConfigError
from freerun.trainer.config import LoraConfig

_BASE = ".base_layer."


def add_adapters(model: nn.Module, config: LoraConfig, seed: int) -> None:
    """Freeze `model` and put a trainable adapter beside each target layer, in place. The model's function does not change until
    the adapters are trained. Raises `ConfigError` if a target names no layer."""
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if unknown := sorted(set(config.targets) - names):
        raise ConfigError(
            f"trainer.lora.targets names layers that the model does not have: {', '.join(unknown)}",
            given=", ".join(config.targets),
            expected=f"some of: {', '.join(sorted(names))}",
            todo="correct trainer.lora.targets in the recipe",
        )
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft_config = PeftConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets), lora_dropout=0.0)
        inject_adapter_in_model(peft_config, model)


@torch.no_grad()
def merged(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`weights` (named as in the model with adapters) with each adapter added into the layer it stands beside, under the names
    that the model had without them. Adapted matrices are new tensors, all others the ones given."""
    deltas = {
        f"{name}.weight": module.get_delta_weight(adapter)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
        for adapter in module.active_adapters
    }
    plain = {name.replace(_BASE, "."): tensor for name, tensor in weights.items() if ".lora_" not in name}
    return {name: tensor + deltas[name].to(tensor.dtype) if name in deltas else tensor for name, tensor in plain.items()}
