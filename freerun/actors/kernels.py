"""Two kernels of our own for a CPU, in C (`decode.c`), compiled at first use, which takes seconds and happens once per machine,
where a C compiler is found. Elsewhere the library's are used.

Shapes: M rows, K inputs, O outputs; N tokens of one pass, S slots, H query heads, K key/value heads, T positions, D head width.

`product` multiplies a few rows by a plain weight matrix. The library's product waits for weights, which are never in cache when
they are needed; this one fetches them ahead.

`attend` is attention over slots. The library's works on rectangles, so it reads every decoding response up to the longest
beside it, and with the few query rows of a response it is slow. This one reads each response over exactly its own length.

Measured in `docs/results.md`.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import itertools
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from freerun.models.gguf import cache_directory

_SOURCE = Path(__file__).with_name("decode.c")
_FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
_TUNED = ("-march=native", "-mcpu=native")
"""How compilers are told to use all that this machine has; each knows one of them."""
_TYPES = (torch.float32, torch.bfloat16)
_POINTER, _LONG, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int


def usable(tensor: Tensor) -> bool:
    """Whether the kernels can read this weight, or these keys or values: on a CPU, of a type that they know, without gaps, rows
    that fill whole vectors, and compiled."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype in _TYPES
        and tensor.is_contiguous()
        and (library := _library()) is not None
        and tensor.shape[-1] % library.multiple() == 0
    )


def attention(keys_SKTD: Tensor) -> Callable[..., Tensor] | None:
    """Our attention over slots with such keys and values, called as `attend` is; None where there is none: on CUDA without
    Triton, or if they are not `usable`."""
    if keys_SKTD.is_cuda:
        return gpu_kernels().attend if gpu_there() else None
    return attend if usable(keys_SKTD) else None


def gpu_there() -> bool:
    """Whether there are kernels for CUDA, which takes Triton."""
    return importlib.util.find_spec("triton") is not None


def gpu_kernels() -> ModuleType:
    """`freerun.actors.gpu`. Triton comes with torch where that is built for CUDA, and nowhere else."""
    from freerun.actors import gpu

    return gpu


def product(x_MK: Tensor, weight_OK: Tensor, out_MO: Tensor) -> None:
    """`out = x weight^T` for a `usable` weight, `x` of its type, at least one row, and `out` of that type or float32. Rows of
    `x_MK` and `out_MO` may be strided, elements of a row may not."""
    (rows, inputs), outputs = x_MK.shape, weight_OK.shape[0]
    _library().product(
        *(x_MK.data_ptr(), x_MK.stride(0), weight_OK.data_ptr(), out_MO.data_ptr(), out_MO.stride(0)),
        *(rows, outputs, inputs, torch.get_num_threads(), x_MK.dtype is torch.bfloat16, out_MO.dtype is torch.bfloat16),
    )


def attend(
    query_NHD: Tensor,
    key_NKD: Tensor,
    value_NKD: Tensor,
    keys_SKTD: Tensor,
    values_SKTD: Tensor,
    slot_N: Tensor,
    position_N: Tensor,
    *,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Store each token's key and value at its position (int64) of its slot, then attend over positions 0 to that of the token,
    the last `window` of them if given: [N, H, D]. For `usable` keys and values in slots; what is given may be strided, but
    for the elements of a head."""
    count, heads, width = query_NHD.shape
    _, kv_heads, capacity, _ = keys_SKTD.shape
    out_NHD = query_NHD.new_empty(count, heads, width)
    strides = (_LONG * 6)(*query_NHD.stride()[:2], *key_NKD.stride()[:2], *value_NKD.stride()[:2])
    _library().attend(
        *(query_NHD.data_ptr(), key_NKD.data_ptr(), value_NKD.data_ptr(), strides),
        *(keys_SKTD.data_ptr(), values_SKTD.data_ptr(), slot_N.data_ptr(), position_N.data_ptr(), out_NHD.data_ptr()),
        *(count, kv_heads, heads // kv_heads, width, capacity, scale, window or 0),
        *(torch.get_num_threads(), query_NHD.dtype is torch.bfloat16),
    )
    return out_NHD


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be compiled. They lie in the user's cache, under a name that changes with
    the source and the processor, and appear there by a rename, so that processes that start together do not see each other's
    half."""
    digest = hashlib.sha256(_SOURCE.read_bytes() + _processor().encode()).hexdigest()[:16]
    path = cache_directory() / "kernels" / f"decode-{digest}.so"
    if not path.exists() and not _compiled(path):
        return None
    library = ctypes.CDLL(str(path))
    library.product.argtypes = [_POINTER, _LONG, _POINTER, _POINTER, *[_LONG] * 4, _INT, _INT, _INT]
    library.attend.argtypes = [*[_POINTER] * 9, *[_LONG] * 5, _FLOAT, _LONG, _INT, _INT]
    library.product.restype = library.attend.restype = None
    return library


def _compiled(path: Path) -> bool:
    """Compile to `path`; False without a compiler that can, or without a place to write to."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        return False
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            if any(
                _attempt(compiler, [tuned, *openmp], made) for openmp, tuned in itertools.product((["-fopenmp"], []), _TUNED)
            ):
                made.rename(path)
                return True
    return False


def _attempt(compiler: str, flags: list[str], made: Path) -> bool:
    """Compile to `made` and see whether it can be loaded. OpenMP is left for the loader to find, because torch has brought its
    own and a second one would have a second set of threads; where it is not found the kernels are made for one thread."""
    part = made.with_suffix(".o")
    for command in ([*_FLAGS, *flags, "-c", str(_SOURCE), "-o", str(part)], ["-shared", str(part), "-o", str(made)]):
        if subprocess.run([compiler, *command], capture_output=True, check=False).returncode:
            return False
    try:
        ctypes.CDLL(str(made))
    except OSError:
        return False
    return True


def _processor() -> str:
    """What decides which instructions the compiler chooses."""
    return f"{platform.machine()} {torch.cpu.get_capabilities()}"
