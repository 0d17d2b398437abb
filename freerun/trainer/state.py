"""What the trainer writes: its checkpoint as plain files (safetensors and JSON, nothing that runs code when read), and the
batch on which it diverged. Atomicity is the caller's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from freerun.plainfiles import load_values, save_values, unusable
from freerun.trainer.forward import load_weights, named_weights
from freerun.types import Group

__all__ = ["load_networks", "load_optimizer", "load_values", "save_batch", "save_networks", "save_optimizer", "save_values"]


def save_networks(directory: Path, networks: Mapping[str, nn.Module]) -> None:
    """One `<name>.safetensors` each."""
    for name, network in networks.items():
        save_file({k: v.contiguous() for k, v in named_weights(network).items()}, directory / f"{name}.safetensors")


def load_networks(directory: Path, networks: Mapping[str, nn.Module]) -> None:
    """Undo `save_networks`. Raises `CheckpointError` if a file is missing or does not fit its network."""
    for name, network in networks.items():
        path = directory / f"{name}.safetensors"
        try:
            load_weights(network, load_file(path))
        except (OSError, KeyError, RuntimeError, ValueError, SafetensorError) as error:
            raise unusable(path, f"{type(error).__name__}: {error}", "the weights of the configured model") from error


def save_optimizer(path: Path, optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor]) -> None:
    """The optimiser's tensors as `<parameter>/<key>`."""
    states = {name: optimizer.state[p] for name, p in names.items() if p in optimizer.state}
    save_file({f"{name}/{key}": tensor for name, state in states.items() for key, tensor in state.items()}, path)


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor]) -> None:
    """Undo `save_optimizer`. Raises `CheckpointError` if the file is missing or holds other parameters."""
    try:
        stored = load_file(path)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise unusable(path, str(error), "the optimiser's state") from error
    optimizer.state.clear()
    for flat_name, tensor in stored.items():
        name, _, key = flat_name.rpartition("/")
        if name not in names:
            raise unusable(path, f"state of '{name}'", "state of the parameters that this config trains")
        # A copy: what was loaded is a view of the file. Fused kernels want the step count beside the parameter, as a tensor.
        optimizer.state[names[name]][key] = tensor.to(names[name].device, copy=True)


def save_batch(directory: Path, groups: Sequence[Group], about: Mapping[str, Any]) -> None:
    """`groups` with everything that training on them read, for a look at what went wrong."""
    directory.mkdir(parents=True, exist_ok=True)
    listed = [
        {
            "item": group.item,
            "uid": group.prompt.uid,
            "content": group.prompt.content,
            "meta": dict(group.prompt.meta),
            "rewards": [reward.value for reward in group.rewards],
            "trajectories": [
                {"text": t.text, "tokens": t.tokens_T, "action": t.action_T, "logp": t.logp_T, "version": t.version_T}
                for t in group.trajectories
            ],
        }
        for group in groups
    ]
    save_values(directory, "batch", {**about, "groups": listed})
