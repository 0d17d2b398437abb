"""New weights into a model that is in use: parameters are pointed at the published tensors, so nothing is copied where the
transport maps memory and the types agree."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from freerun.errors import WeightsError


def adopt(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Point every parameter of `model` at its tensor in `tensors`: the tensor itself if device and dtype agree, else a fresh
    copy. What the parameter pointed at before is never written to, since it may be a buffer that others still read.

    Tied parameters need one of their names. Raises `WeightsError`, before changing anything, if a parameter has no tensor, a
    shape differs, or a tensor has no parameter.
    """
    names: dict[int, list[str]] = {}
    parameters: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        parameters[id(parameter)] = parameter
    chosen = {key: next((name for name in aliases if name in tensors), None) for key, aliases in names.items()}
    missing = [names[key][0] for key, name in chosen.items() if name is None]
    unknown = sorted(set(tensors) - {name for aliases in names.values() for name in aliases})
    wrong = [name for key, name in chosen.items() if name and tensors[name].shape != parameters[key].shape]
    if missing or unknown or wrong:
        raise WeightsError(
            "published weights do not fit the generator's model",
            given=f"missing {_few(missing)}; unknown {_few(unknown)}; other shape {_few(wrong)}",
            expected=f"the {len(names)} parameters of {type(model).__name__}",
            todo="build trainer and generator from the same model config, and merge adapters before publishing",
        )
    with torch.no_grad():
        for key, name in chosen.items():
            parameter = parameters[key]
            # What is done on the device later waits for the copy by itself.
            parameter.data = tensors[name].to(device=parameter.device, dtype=parameter.dtype, non_blocking=parameter.is_cuda)


def _few(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "none"
