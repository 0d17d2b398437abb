"""The layers of the design: who may import whom, and which files talk to which packages.

Tables, not code, say what is allowed; a new part of the package has to be entered in `LAYERS` before its first file passes.
"""

import fnmatch
import subprocess
import sys
from collections.abc import Iterable, Iterator

from tools.source import ROOT, Import, Module, imports, modules

LAYERS = {
    **dict.fromkeys(["types", "transitions", "networks", "config", "errors"], 0),
    **dict.fromkeys(["ops"], 1),
    **dict.fromkeys(["algorithms", "store", "weights", "models", "rewards", "datasets", "plainfiles"], 2),
    **dict.fromkeys(["actors", "trainer", "placement"], 3),
    **dict.fromkeys(["controller", "schedule", "tracker", "checkpoint", "evaluate", "metrics"], 4),
    **dict.fromkeys(["program", "loops", "intake", "crew", "elastic", "replay", "encoding"], 4),
    **dict.fromkeys(["env_schedule", "env_controller", "collection", "federation"], 4),
    **dict.fromkeys(["rundir", "environment", "runlock"], 4),
    **dict.fromkeys(["cli", "attempt", "launch", "launch_control", "clients", "dataset_cli", "staging", "stages"], 5),
    **dict.fromkeys(["discovery", "suite", "supervise", "chaos", "tasks", "recipes", "claims", "plan", "watch"], 5),
}

PROTOCOLS = {"freerun.placement.base", "freerun.weights.channel", "freerun.actors.engine"}
"""What the control layer knows of the executors."""

CONTRACTS = {"freerun.algorithms.base", "freerun.algorithms.control_base"}
"""What says what an algorithm is, of language and of control."""

HOMES = {
    "monarch": ["placement/monarch*.py", "weights/monarch*.py"],
    "transformers": ["models/*.py", "actors/*.py", "trainer/*.py"],
    "peft": ["models/*.py", "trainer/*.py"],
    "jinja2": ["models/lm.py"],
    "vllm": ["actors/vllm*.py"],
    "cloudpickle": ["placement/wire.py"],
    "reasoning_gym": ["rewards/procedural.py", "tasks/*.py"],
    "math_verify": ["rewards/*.py", "tasks/*.py"],
    "gymnasium": ["actors/gymnasium.py", "datasets/minari.py", "tasks/*.py"],
    "h5py": ["datasets/hdf5.py"],
    "minari": ["datasets/minari.py"],
    "mujoco": ["actors/mujoco.py"],
    "scipy": ["models/neighbours.py"],
    "triton": ["actors/gpu.py"],
    "tyro": ["cli.py", "claims/*.py", "plan/*.py"],
    "rich": [
        "cli.py",
        "attempt.py",
        "dataset_cli.py",
        "suite.py",
        "chaos/show.py",
        "chaos/command.py",
        "claims/show.py",
        "claims/staleness.py",
        "watch/terminal.py",
        "watch/screen.py",
    ],
    "tensorboard": ["watch/tensorboard.py"],
    "torch.utils.tensorboard": ["watch/tensorboard.py"],
    "wandb": ["watch/wandb.py"],
}
"""Heavy or optional packages, and the files that are about them."""

ANYWHERE = {"torch", "numpy", "safetensors"}
"""Packages that need no home of their own (the lowest layers are stricter, see below)."""

OPTIONAL = {"monarch", "peft", "vllm", "reasoning_gym", "math_verify", "tensorboard", "wandb"}
OPTIONAL |= {"gymnasium", "minari", "mujoco", "h5py", "scipy", "triton"}
"""Packages without which the core has to import and run."""


def objection(importer: Module, target: str) -> str | None:
    """Why `importer` may not import our module `target`, or None if it may."""
    part = target.split(".")[1] if "." in target else ""
    if not part:
        return None
    here, there = LAYERS.get(importer.part, 5), LAYERS.get(part, 5)
    if importer.part == part:
        if part == "algorithms" and target not in CONTRACTS:
            return "an algorithm imports no other algorithm but the contracts"
        return None
    if here == 5:
        return None
    if here == 4:
        allowed = there in (0, 4) or part == "store" or target in PROTOCOLS
        return None if allowed else "the control layer knows the words, the store and the protocols only"
    if there > here:
        return f"layer {here} may not import layer {there}"
    if there == here and here > 0:
        return f"siblings of layer {here} may not import each other"
    return None


def test_every_module_belongs_to_a_layer() -> None:
    unknown = sorted({m.part for m in modules().values() if m.part and m.part not in LAYERS})
    assert not unknown, "enter them in LAYERS, after deciding what they may import"


def test_imports_point_downwards_and_never_to_a_sibling() -> None:
    assert not [
        f"{module.path}:{found.line} imports {found.target}: {why}"
        for module, found in every_import()
        if found.target.split(".")[0] == "freerun" and (why := objection(module, found.target))
    ]


def test_packages_are_imported_only_where_they_are_at_home() -> None:
    assert not [
        f"{module.path}:{found.line} imports {found.target}: {why}"
        for module, found in every_import()
        if (why := homelessness(module, found))
    ]


def test_imports_inside_functions_only_defer_optional_packages_or_speed_up_the_edges() -> None:
    """A leaf about an optional package is loaded where it is chosen; the edges load what a command needs when it runs."""
    assert not [
        f"{module.path}:{found.line} imports {found.target}"
        for module, found in every_import()
        if found.lazy and LAYERS.get(module.part) != 5 and not is_leaf(found.target)
    ]


def is_leaf(name: str) -> bool:
    """Whether `name` is a module of ours that is about an optional package."""
    return name in modules() and any(i.target.split(".")[0] in OPTIONAL for i in imports(modules()[name]))


def every_import() -> Iterator[tuple[Module, Import]]:
    return ((module, found) for module in modules().values() for found in imports(module))


def homelessness(module: Module, found: Import) -> str | None:
    """Why the package `found` may not be imported in `module`, or None if it may."""
    package = found.target.split(".")[0]
    if package == "freerun" or package in sys.stdlib_module_names:
        return None
    layer = LAYERS.get(module.part, 0)
    if layer == 0:
        named = module.part in ("types", "transitions") and found.target == "torch"
        return None if named else "the words need the standard library and the tensor type only"
    if layer == 1 and package != "torch":
        return "the maths needs torch only"
    if module.part == "store" and package == "torch" and not found.typing:
        return "the store decides about items, it holds no tensors"
    if layer == 4 and package == "torch" and module.part != "encoding":
        return "the control layer holds no tensors"
    homes = next((HOMES[name] for name in (found.target, package) if name in HOMES), None)
    if homes is None:
        return None if package in ANYWHERE else "give it a home in HOMES"
    return None if any(fnmatch.fnmatch(module.path, home) for home in homes) else f"its home is {', '.join(homes)}"


def loaded_after(*names: str, missing: Iterable[str] = ()) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after importing `names`, to which the `missing` ones are not
    installed."""
    program = f"import importlib, sys\nsys.modules.update(dict.fromkeys({sorted(missing)}))\n"
    program += "for name in sys.argv[1:]: importlib.import_module(name)\nprint(*(n for n, m in sys.modules.items() if m))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *names], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stdout.split()}


def test_reading_configs_and_deciding_about_items_loads_no_torch() -> None:
    names = ["freerun.config", "freerun.errors", *(n for n in modules() if n.startswith("freerun.store"))]
    assert "torch" not in loaded_after(*names)


def test_the_core_imports_without_any_optional_package() -> None:
    core = [m.name for m in modules().values() if LAYERS.get(m.part, 5) < 5 and not is_leaf(m.name)]
    assert not loaded_after(*core, missing=OPTIONAL) & OPTIONAL
