"""Everything that reads what somebody else may have written, or what a bad disk may have changed: given any input, it returns
something usable or raises one of our own errors.

A target is a strategy and a function of one input. `tools/fuzz.py` runs them for long and counts the inputs; the suite runs a
few of each.
"""

import json
from functools import cache
from typing import Any

import torch
from fuzzing.control_targets import CONTROL
from fuzzing.inputs import VALUES, Target, changed, hurt, json_bytes, scratch
from hypothesis import strategies as st
from safetensors.torch import save_file

from freerun import config as configs
from freerun import elastic, runlock
from freerun.checkpoint import GROUPS, MANIFEST, REPLAY, _seal, controller_state, damage_of, restore_controller
from freerun.encoding import decode_group, encode_group
from freerun.errors import CheckpointError, ConfigError, DataError, FreerunError, RunDirectoryError
from freerun.placement.interleaving import read as read_interleaving
from freerun.recipes import base as recipes
from freerun.rundir import LOGS, RunDirectory
from freerun.staging import stored_config
from freerun.store import journal
from freerun.store.admission import Admission
from freerun.tasks import addition, examples, jsonl
from freerun.trainer import state as trainer_files
from freerun.types import Group, Prompt, RewardResult, Stop, Trajectory
from freerun.watch import records
from freerun.watch.report import write_report

# --- configs ------------------------------------------------------------------------------------------------------------------


@cache
def recipe() -> Any:
    return recipes.load("tiny-faults").recipe()


KEYS = sorted(configs.flatten(recipes.load("tiny-faults").recipe()))
WORDS = st.lists(
    st.one_of(
        st.sampled_from(KEYS).map(lambda key: f"--{key}"),
        st.sampled_from(KEYS).map(lambda key: f"--{key[:-1]}"),
        st.sampled_from(["none", "true", "1", "-1", "1e400", "nan", "serial", "a,b", "0x10", "1_0", "--", "=", "--="]),
        st.text(max_size=12),
        st.integers().map(str),
    ),
    max_size=6,
)


def check_overrides(words: list[str]) -> None:
    try:
        changed = configs.override(recipe(), configs.read_overrides(words))
    except ConfigError:
        return
    assert json.loads(configs.dumps(changed).replace("Infinity", "0").replace("NaN", "0"))
    assert configs.flatten(changed).keys() >= {"seed"}


STORED = {"recipe": "tiny-faults", "overrides": {"seed": "3"}, "config": {"seed": 3}}


def check_stored_config(data: bytes) -> None:
    directory = scratch() / "stored"
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_bytes(data)
    try:
        config, stored = stored_config(directory)
    except FreerunError:
        return
    assert configs.flatten(config) and isinstance(stored["config"], dict)


# --- data sets ----------------------------------------------------------------------------------------------------------------

PROBLEMS = [
    {"prompt": "1+1=", "answer": "2"},
    {"prompt": [{"role": "user", "content": "hi"}], "answer": "x", "more": [1]},
]
RESPONSES = [
    {"prompt": "p", "responses": ["a", "b"], "rewards": [1, 0.5], "logps": [[-1.0], [-2.0, -0.5]], "meta": {"k": 1}},
    {"prompt": [{"role": "user", "content": "hi"}], "chosen": "a", "rejected": "b"},
]


def lines(rows: list[Any]) -> st.SearchStrategy[bytes]:
    row = st.sampled_from(rows).flatmap(changed) | st.sampled_from(rows) | VALUES
    odd = st.sampled_from(
        [
            b'"\\ud800"',
            b'{"prompt": "\\ud800"}',
            b"[" * 100_000,
            b"1" * 5000,
            b'{"responses": ["a"], "rewards": [1' + b"0" * 400 + b"]}",
        ]
    )
    written = st.lists(row.map(lambda value: json.dumps(value).encode()) | odd, max_size=4).map(b"\n".join)
    return written | hurt([b"\n".join(json.dumps(row).encode() for row in rows)])


def check_problems(data: bytes) -> None:
    path = scratch() / "problems.jsonl"
    path.write_bytes(data)
    try:
        task = jsonl.Config(path=str(path), heldout=1).build()
    except (DataError, ConfigError):
        return
    for prompt in (*task.train, *task.heldout):
        (json.dumps([prompt.uid, dict(prompt.meta)]) + str(prompt.content)).encode()


def check_responses(data: bytes) -> None:
    path = scratch() / "responses.jsonl"
    path.write_bytes(data)
    try:
        found = examples.File(path=str(path)).build(addition.Config(digits=1, train=10, heldout=2).build())
    except DataError:
        return
    for example in found:
        assert len(example.rewards) in (0, len(example.responses)) and len(example.logps) in (0, len(example.responses))
        "".join(example.responses).encode()
        dict(example.prompt.meta)


# --- what a run wrote ---------------------------------------------------------------------------------------------------------


def group(item: int) -> Group:
    one = torch.ones(3)
    trajectory = Trajectory(
        tokens_T=one.long(), action_T=one.bool(), logp_T=-one, version_T=one.int(), text=f"t{item}", stop=Stop.EOS
    )
    return Group(item=item, prompt=Prompt("u", "p"), trajectories=(trajectory,) * 2, rewards=(RewardResult(1.0),) * 2)


def whole_journal() -> bytes:
    path = scratch() / "whole-journal"
    path.unlink(missing_ok=True)
    file = journal.Journal(path, fsync_every=0)
    for item in range(3):
        file.finished(item, f"u{item}", item, encode_group(group(item)))
    file.dropped(3, "u3", "timeout")
    file.close()
    return path.read_bytes()


def framed(body: bytes) -> bytes:
    """A frame with right checksums around anything."""
    return journal._framed(body)


def check_journal(data: bytes) -> None:
    path = scratch() / "journal"
    for other in scratch().glob("journal*"):
        other.unlink()
    path.write_bytes(data)
    try:
        journal.mend(path)
        file = journal.Journal(path, fsync_every=0)
    except CheckpointError:
        return
    try:
        found = list(file.records())
        file.dropped(9, "u9", "later")
        assert list(file.records())[:-1] == found
    except CheckpointError:
        return
    finally:
        file.close()
    assert journal.read(path)[-1].item == 9


def check_group(data: bytes) -> None:
    try:
        found = decode_group(data, 1, Prompt("u", "p"))
    except CheckpointError:
        return
    assert decode_group(encode_group(found), 1, found.prompt).rewards is not None


@cache
def admission() -> dict:
    one = Admission(batch=2, max_lag=1)
    for item in range(4):
        one.admit(f"u{item}")
        one.begin(item, 0)
    one.finish(0, 0)
    one.finish(1, 0)
    one.trained(one.take(2, 0), 1)
    return one.state()


def whole_state() -> dict:
    return json.loads(json.dumps({**controller_state(controller()), "admission": admission(), "step": 1}))


def controller() -> Any:
    """A controller on fakes that were never started: enough to be restored."""
    from fakes import PROMPTS, Records, small

    from freerun.controller import Controller
    from freerun.placement.inline import InlinePlacement
    from freerun.types import Sampling

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

    return Controller(
        small(groups=2, max_lag=1),
        placement=InlinePlacement(schedule="serial"),
        generators=[Named("generator")],
        rewarder=Named("rewarder"),
        trainer=Named("trainer"),
        prompts=[Prompt(f"u{i}", p.content) for i, p in enumerate(PROMPTS)],
        heldout=PROMPTS[:2],
        sampling=Sampling(),
        eval_sampling=Sampling(),
        accuracy=float,
        sink=Records(),
        seed=0,
    )


def check_state(state: Any) -> None:
    directory = scratch() / "step-00000001"
    directory.mkdir(exist_ok=True)
    (directory / MANIFEST).unlink(missing_ok=True)
    (directory / "controller.json").write_text(json.dumps(state))
    for name in (GROUPS, REPLAY):
        (directory / name).write_bytes(journal.MAGIC)
    _seal(directory)
    assert damage_of(directory) == ""
    restored = controller()
    try:
        restore_controller(restored, directory)
    except FreerunError:
        return
    restored.intake.admission.audit()


@cache
def whole_manifest() -> bytes:
    directory = scratch() / "step-00000002"
    directory.mkdir(exist_ok=True)
    (directory / MANIFEST).unlink(missing_ok=True)
    (directory / "controller.json").write_text("{}")
    _seal(directory)
    return (directory / MANIFEST).read_bytes()


def check_manifest(data: bytes) -> None:
    whole = whole_manifest()
    directory = scratch() / "step-00000002"
    (directory / MANIFEST).write_bytes(data)
    assert bool(damage_of(directory)) == (data != whole)


@cache
def trainer_wholes() -> dict[str, bytes]:
    directory = scratch() / "trainer"
    directory.mkdir(exist_ok=True)
    trainer_files.save_values(
        directory, "trainer", {"version": 3, "random": {"cpu": torch.ones(4)}, "list": [torch.ones(2), 1]}
    )
    save_file({"w/exp_avg": torch.ones(2), "w/step": torch.ones(())}, directory / "optimizer.safetensors")
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir())}


def check_trainer_files(hurt_file: tuple[str, bytes]) -> None:
    name, data = hurt_file
    directory = scratch() / "trainer-hurt"
    directory.mkdir(exist_ok=True)
    for other, whole in trainer_wholes().items():
        (directory / other).write_bytes(data if other == name else whole)
    weight = torch.nn.Parameter(torch.zeros(2))
    network = torch.nn.ParameterDict({"w": weight})
    for load in (
        lambda: trainer_files.load_values(directory, "trainer"),
        lambda: trainer_files.load_optimizer(directory / "optimizer.safetensors", torch.optim.AdamW([weight]), {"w": weight}),
        lambda: trainer_files.load_networks(directory, {"optimizer": network}),
    ):
        try:
            load()
        except CheckpointError:
            continue


STEP = {
    "step": 1,
    "version": 1,
    "seconds": 1.0,
    "metrics": {"reward/mean": 0.5, "lag/tokens": {"0": 3.0}, "items/trained": 4.0},
}
ROWS = {
    "metrics.jsonl": STEP,
    "events.jsonl": {"executor": "trainer", "what": "train", "start": 0.0, "end": 1.0, "detail": {"doing": "x"}},
    "evals.jsonl": {"step": 1, "split": "heldout", "accuracy": 0.5, "count": 4, "oldest": 0, "newest": 1, "seconds": 1.0},
    "samples.jsonl": {
        "index": 0, "step": 1, "item": 0, "uid": "u", "prompt": "p", "completion": "<b>", "reward": 1.0,
        "oldest": 0, "newest": 0, "lag": 0, "stop": "eos", "parts": {},
    },
}  # fmt: skip
MORE = {
    "evals.jsonl": [
        {
            "step": 1, "split": "heldout", "returns": [1.0, 2.0], "length": 5.0, "version": 1, "taken": 8, "seconds": 1.0,
            "score": None, "picture": "step-00000001.png",
        }
    ]
}  # fmt: skip
"""Rows of a run of control that look otherwise."""


def check_logs(damage: tuple[str, bytes]) -> None:
    """A run directory with a damaged log is reported on and resumed."""
    name, data = damage
    directory = scratch() / "run"
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(STORED))
    (directory / "environment.json").write_text(json.dumps({"attempts": []}))
    for log in LOGS:
        (directory / log).write_bytes(data if log == name else json.dumps(ROWS[log]).encode() + b"\n")
    try:
        records.load(directory)
        write_report(directory)
        RunDirectory.resume(directory, 1).close()
    except RunDirectoryError:
        return
    records.load(directory)


def check_scale(data: bytes) -> None:
    (scratch() / elastic.REQUEST).write_bytes(data)
    try:
        found = elastic.asked(scratch())
    except ValueError:
        return
    assert found >= 1


def check_lock(data: bytes) -> None:
    directory = scratch() / "locked"
    directory.mkdir(exist_ok=True)
    (directory / runlock.LOCK).write_bytes(data)
    lock = runlock.RunLock(directory)
    held = lock.is_held()
    try:
        lock.acquire()
    except RunDirectoryError:
        assert held
        return
    lock.release()


def check_interleaving(data: bytes) -> None:
    path = scratch() / "interleaving.jsonl"
    path.write_bytes(data)
    try:
        read_interleaving(path)
    except RunDirectoryError:
        return


COMPLETION = b'{"executor": "a", "method": "m", "number": 0, "ending": "returned"}\n'
HOLDER = {"host": "h", "pid": 1, "started": "2"}

TARGETS: dict[str, Target] = {
    "config overrides": Target(WORDS, check_overrides),
    "stored config of a run": Target(json_bytes(STORED), check_stored_config),
    "data set of problems": Target(lines(PROBLEMS), check_problems),
    "data set of responses": Target(lines(RESPONSES), check_responses),
    "journal": Target(
        st.deferred(lambda: hurt([whole_journal()]) | st.binary(max_size=40).map(lambda b: journal.MAGIC + framed(b))),
        check_journal,
    ),
    "group in a journal": Target(st.deferred(lambda: hurt([encode_group(group(1))])), check_group),
    "index of a checkpoint": Target(st.deferred(lambda: hurt([whole_manifest()])), check_manifest),
    "controller's state in a checkpoint": Target(st.deferred(lambda: changed(whole_state())), check_state),
    "trainer's files in a checkpoint": Target(
        st.deferred(
            lambda: st.sampled_from(sorted(trainer_wholes())).flatmap(
                lambda name: hurt([trainer_wholes()[name]]).map(lambda data: (name, data))
            )
        ),
        check_trainer_files,
    ),
    "logs of a run": Target(
        st.sampled_from(LOGS).flatmap(lambda log: st.tuples(st.just(log), lines([ROWS[log], *MORE.get(log, [])]))), check_logs
    ),
    "request for actors": Target(json_bytes({"actors": 2}), check_scale),
    "lock of a run": Target(json_bytes(HOLDER), check_lock),
    "recorded order of calls": Target(hurt([COMPLETION * 2]), check_interleaving),
    **CONTROL,
}
