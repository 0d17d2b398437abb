"""What readers of files are given: anything, whole files that were hurt, and whole values that were changed."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st


@dataclass(frozen=True)
class Target:
    """`check(input)` raises if the reader does what it must not."""

    inputs: st.SearchStrategy
    check: Callable[[Any], None]


@cache
def scratch() -> Path:
    """A directory of this process."""
    return Path(tempfile.mkdtemp(prefix="freerun-fuzz-"))


# --- inputs -------------------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def hurt(draw, wholes: list[bytes]) -> bytes:
    """One of `wholes` with bytes flipped, cut off, cut out, put in or repeated; or any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=64))
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 5)):
            case 0 if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 1 if data:
                data[at] = draw(st.integers(0, 255))
            case 2:
                del data[at:]
            case 3:
                del data[at : at + draw(st.integers(1, 16))]
            case 4:
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case _:
                data[at:at] = data[: draw(st.integers(0, 32))]
    return bytes(data)


@st.composite
def changed(draw, whole: Any) -> Any:
    """A JSON value like `whole` with a few values replaced, removed or added anywhere in it."""
    value = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        place, parents = value, []
        while isinstance(place, dict | list) and place and draw(st.integers(0, 4)):
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
            parents.append((place, key))
            place = place[key]
        if not parents:
            return draw(VALUES)
        parent, key = parents[-1]
        if draw(st.booleans()):
            parent[key] = draw(VALUES)
        else:
            del parent[key]
    return value


def json_bytes(whole: Any) -> st.SearchStrategy[bytes]:
    return changed(whole).map(lambda value: json.dumps(value).encode()) | hurt([json.dumps(whole).encode()])
