"""Atomic checkpoints: networks, optimiser, credit state, random states, data cursor, ledger and store become durable together.

A checkpoint is a directory `step-00000042` that appears by one rename, after every byte and its directory were flushed. Its
`manifest.json` lists the SHA-256 of every file, so a torn or corrupted one is recognised; the newest whole one is used, and
what was passed over is reported. Writing never touches an older checkpoint: a full disk costs the new one only.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from freerun.controller import Active, Controller
from freerun.errors import CheckpointError, FreerunError
from freerun.metrics import EvalRecord
from freerun.store.admission import Admission
from freerun.types import CachePolicy, Group, Message, Prompt, RewardResult, Stop, Trajectory


class Checkpoints:
    """The checkpoints of one run directory. Keeps the newest `keep`."""

    def __init__(self, directory: Path, *, keep: int = 2) -> None:
        self.directory, self.keep = directory, keep

    async def save(self, controller: Controller) -> Path:
        """Write one. On any failure the attempt is removed, older checkpoints stay as they were, and `CheckpointError` says
        why."""
        final = self.directory / f"step-{controller.step:08d}"
        attempt = self.directory / f".attempt-{controller.step:08d}-{os.getpid()}"
        try:
            (attempt / "trainer").mkdir(parents=True)
            await controller.tracker.call(
                controller.trainer, "save", str(attempt / "trainer"), what="checkpoint", doing="saving a checkpoint"
            )
            (attempt / "controller.json").write_text(json.dumps(controller_state(controller)))
            _seal(attempt)
            if final.exists():
                shutil.rmtree(final)
            attempt.rename(final)
            _flush(self.directory)
        except (OSError, FreerunError) as error:
            shutil.rmtree(attempt, ignore_errors=True)
            kept = [p.name for p in self.all()]
            raise CheckpointError(
                f"the checkpoint of step {controller.step} could not be written",
                given=f"{type(error).__name__}: {error}",
                expected=f"room and permission to write in {self.directory}",
                todo=f"make room, then `freerun resume`; still there: {', '.join(kept) or 'none'}",
            ) from error
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old)
        return final

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(p for p in self.directory.glob("step-*") if p.is_dir())

    def newest_whole(self) -> tuple[Path, list[str]]:
        """The newest checkpoint whose checksums hold, and why newer ones were passed over. Raises `CheckpointError` if none
        does."""
        passed: list[str] = []
        for path in reversed(self.all()):
            damage = damage_of(path)
            if not damage:
                return path, passed
            passed.append(f"{path.name}: {damage}")
        raise CheckpointError(
            "no usable checkpoint",
            given="; ".join(passed) or f"no checkpoint in {self.directory}",
            expected="at least one whole checkpoint",
            todo="start the run anew with `freerun run`",
        )


def damage_of(path: Path) -> str:
    """What is wrong with a checkpoint; empty if every file is there with the bytes that were written."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        return f"manifest unreadable ({error})"
    for name, digest in manifest.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if _digest(file) != digest:
            return f"{name} is not what was written"
    return ""


def controller_state(controller: Controller) -> dict[str, Any]:
    """Everything the controller must know to go on, JSON-able."""
    return {
        "step": controller.step,
        "cursor": controller.cursor,
        "seed": controller.seed,
        "admission": controller.admission.state(),
        "active": {
            str(i): {"prompt": encode_prompt(a.prompt), "seed": a.seed, "attempt": a.attempt}
            for i, a in controller.active.items()
        },
        "groups": [encode_group(g) for g in controller.groups.values()],
        "evaluations": [dataclasses.asdict(e) for e in controller.evaluator.records],
    }


def restore_controller(controller: Controller, checkpoint: Path) -> None:
    """Put a fresh controller where the saved one was: finished groups are in the store again, unfinished items are admitted
    again."""
    state = json.loads((checkpoint / "controller.json").read_text())
    controller.step, controller.cursor = state["step"], state["cursor"]
    controller.admission = Admission.from_state(state["admission"])
    controller.groups = {g.item: g for g in map(decode_group, state["groups"])}
    controller.evaluator.records = [EvalRecord(**e) for e in state["evaluations"]]
    for key, saved in state["active"].items():
        item = int(key)
        controller.active[item] = Active(prompt=decode_prompt(saved["prompt"]), seed=saved["seed"], attempt=saved["attempt"])
        controller.order(item)


def encode_prompt(prompt: Prompt) -> dict[str, Any]:
    content = prompt.content if isinstance(prompt.content, str) else [list(m) for m in prompt.content]
    return {"uid": prompt.uid, "content": content, "meta": dict(prompt.meta)}


def decode_prompt(data: Mapping[str, Any]) -> Prompt:
    content = data["content"]
    return Prompt(data["uid"], content if isinstance(content, str) else tuple(Message(*m) for m in content), data["meta"])


def encode_group(group: Group) -> dict[str, Any]:
    """A group as JSON-able data. float32 log-probs survive exactly: every float32 is a double, and JSON keeps doubles."""
    return {
        "item": group.item,
        "prompt": encode_prompt(group.prompt),
        "trajectories": [
            {
                "tokens": t.tokens_T.tolist(),
                "action": t.action_T.int().tolist(),
                "logp": t.logp_T.tolist(),
                "version": t.version_T.tolist(),
                "text": t.text,
                "stop": t.stop,
                "cache": t.cache_policy,
            }
            for t in group.trajectories
        ],
        "rewards": [{"value": r.value, "parts": dict(r.parts), "info": dict(r.info)} for r in group.rewards],
    }


def decode_group(data: Mapping[str, Any]) -> Group:
    """The inverse of `encode_group`, bit for bit."""
    trajectories = tuple(
        Trajectory(
            tokens_T=torch.tensor(t["tokens"], dtype=torch.int64),
            action_T=torch.tensor(t["action"], dtype=torch.bool),
            logp_T=torch.tensor(t["logp"], dtype=torch.float32),
            version_T=torch.tensor(t["version"], dtype=torch.int32),
            text=t["text"],
            stop=Stop(t["stop"]) if t["stop"] else None,
            cache_policy=CachePolicy(t["cache"]),
        )
        for t in data["trajectories"]
    )
    return Group(
        item=data["item"],
        prompt=decode_prompt(data["prompt"]),
        trajectories=trajectories,
        rewards=tuple(RewardResult(r["value"], r["parts"], r["info"]) for r in data["rewards"]),
    )


def _seal(directory: Path) -> None:
    """Write the manifest and flush every file, so that the rename that follows publishes only durable bytes."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    (directory / "manifest.json").write_text(json.dumps({str(p.relative_to(directory)): _digest(p) for p in files}, indent=1))
    for path in [*files, directory / "manifest.json", directory]:
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
