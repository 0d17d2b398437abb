"""Messages between processes: pickles in which a CPU tensor is its bytes.

Torch pickles a tensor as a small archive of its own: 64 trajectories of 200 tokens take 140 ms there and back, and 5 ms here.
Classes and functions of a script (`__main__`) travel by value, as cloudpickle does it. Torch is not imported here, so that an
executor that needs no tensors starts without it.
"""

import io
import pickle
import sys
from typing import Any

import cloudpickle


class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is None or type(obj) is not torch.Tensor:
            return super().reducer_override(obj)
        if obj.device.type != "cpu" or obj.layout is not torch.strided or obj.requires_grad:
            return NotImplemented
        flat = obj.contiguous().reshape(-1).view(torch.uint8).numpy() if obj.numel() else b""
        return _tensor, (pickle.PickleBuffer(flat), obj.dtype, tuple(obj.shape))


def _tensor(flat: bytearray, dtype: Any, shape: tuple[int, ...]) -> Any:
    torch = sys.modules["torch"]  # unpickling `dtype` has imported it
    return torch.frombuffer(flat, dtype=dtype).view(shape) if len(flat) else torch.empty(shape, dtype=dtype)


def dumps(message: Any) -> bytes:
    """`message` as bytes. Raises what pickling raises."""
    with io.BytesIO() as stream:
        _Pickler(stream, protocol=5).dump(message)
        return stream.getvalue()


def loads(data: bytes) -> Any:
    """The message in `data`, which must come from a process of this run: unpickling runs code."""
    return pickle.loads(data)
