"""A moving picture of one episode, as an animated PNG, which every browser shows. The standard library is enough to write one.

Shapes: H and W of a scene, 3 bytes of colour.
"""

import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from freerun.actors.environment import EnvConfig
from freerun.errors import ConfigError

WIDTH = 240
"""Pixels; wider scenes are made smaller."""
MILLISECONDS = 60
"""How long each frame is shown."""


def film(
    env: EnvConfig, act: Callable[[np.ndarray], np.ndarray], path: Path, *, seed: int, frames: int, most: int = 1000
) -> str:
    """Play one episode, of at most `most` steps, and write at most `frames` frames of it, evenly spread, to `path`. Returns why
    there is none where the environment cannot be drawn: a missing display is no reason to end a run.

    Drawing takes longer than acting, and nobody knows how long an episode will be. So every scene is drawn at first, and every
    other one is left out, of those drawn and of those to come, whenever there are twice as many as wanted."""
    if not os.environ.get("DISPLAY"):
        # Both libraries can draw without a display, and must be told.
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("MUJOCO_GL", "egl")
    scenes: list[np.ndarray] = []
    stride = 1
    try:
        world = env.build(picture=True)
        try:
            obs = world.reset(seed)
            for t in range(most):
                if t % stride == 0:
                    scene = world.picture()
                    if scene is None:
                        return "the environment gives no picture"
                    scenes.append(smaller(scene.astype(np.uint8)))
                    if len(scenes) == 2 * frames:
                        scenes, stride = scenes[::2], 2 * stride
                step = world.step(act(obs))
                obs = step.obs
                if step.terminated or step.truncated:
                    break
        finally:
            world.close()
    except Exception as error:
        if isinstance(error, MemoryError | ConfigError):
            raise
        return f"{type(error).__name__}: {error}"
    count = min(frames, len(scenes))
    chosen = [scenes[round(i * (len(scenes) - 1) / max(count - 1, 1))] for i in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(animated_png(chosen))
    return ""


def smaller(scene_HW3: np.ndarray) -> np.ndarray:
    """A scene at most `WIDTH` wide, its pixels averaged in whole blocks."""
    block = -(-scene_HW3.shape[1] // WIDTH)
    height, width = (n // block * block for n in scene_HW3.shape[:2])
    cut = scene_HW3[:height, :width].reshape(height // block, block, width // block, block, 3)
    return cut.mean((1, 3)).round().astype(np.uint8)


def animated_png(scenes: Sequence[np.ndarray]) -> bytes:
    """Scenes of one size as a picture that repeats for ever. Of each frame only what changed is in the file."""
    height, width = scenes[0].shape[:2]
    chunks = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    chunks.append(_chunk(b"acTL", struct.pack(">II", len(scenes), 0)))
    number, shown = 0, None
    for i, scene in enumerate(scenes):
        top, bottom, left, right = (0, height, 0, width) if shown is None else _changed(shown, scene)
        place = struct.pack(">IIIII", number, right - left, bottom - top, left, top)
        chunks.append(_chunk(b"fcTL", place + struct.pack(">HHBB", MILLISECONDS, 1000, 0, 0)))
        rows = scene[top:bottom, left:right]
        data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows), 9)
        chunks.append(_chunk(b"IDAT", data) if i == 0 else _chunk(b"fdAT", struct.pack(">I", number + 1) + data))
        number, shown = number + (1 if i == 0 else 2), scene
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + _chunk(b"IEND", b"")


def _changed(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the smallest rectangle that holds every pixel that changed; one pixel if none did."""
    different = (before != after).any(-1)
    rows, columns = different.any(1).nonzero()[0], different.any(0).nonzero()[0]
    if not len(rows):
        return 0, 1, 0, 1
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
