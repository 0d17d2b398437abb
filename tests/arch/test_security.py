"""What can be judged from the source of what a stranger may send: no pickle comes from a disk, nobody listens to the network,
and no code of a stranger's is loaded."""

import ast
from collections.abc import Iterator

from tools.source import modules

PICKLES = {
    "placement/wire.py": "messages between processes of one run, which Monarch carries",
}
"""Files that unpickle, each with the reason. None of them reads a file."""

MARSHALS = {
    "rewards/jail.py": "what the supervisor of a sandbox is asked, and what it answers: the program inside has neither end",
    "rewards/sandbox.py": "the other end of that",
}

LISTENERS = {
    "placement/monarch_nursery.py": "a Unix socket in a folder that is its user's alone",
}

UNPICKLING = {"pickle", "cloudpickle", "dill", "shelve", "joblib", "_pickle", "pandas", "yaml"}
LISTENING = {
    "bind",
    "listen",
    "create_server",
    "start_server",
    "start_unix_server",
    "serve_forever",
    "HTTPServer",
    "init_process_group",
}


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    """Every call: where, what, and the name of what is called."""
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call):
                yield module.path, node, ast.unparse(node.func)


def imported() -> Iterator[tuple[str, str]]:
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                yield from ((module.path, alias.name.split(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield module.path, node.module.split(".")[0]


def test_pickles_are_read_from_the_processes_of_a_run_and_from_nowhere_else() -> None:
    assert {path for path, package in imported() if package in UNPICKLING} == set(PICKLES)
    assert {path for path, package in imported() if package == "marshal"} == set(MARSHALS)


def test_files_of_tensors_and_arrays_are_read_without_running_what_is_in_them() -> None:
    """Of torch only with `weights_only`, of numpy only without pickles; what we write is safetensors and JSON."""
    bad = []
    for path, call, name in calls():
        settings = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if name in ("torch.load", "torch.jit.load", "torch.package.PackageImporter", "torch.hub.load", "torch.save"):
            bad += [f"{path}:{call.lineno} {name}"] if settings.get("weights_only") != "True" else []
        if name in ("np.load", "numpy.load", "np.fromfile"):
            bad += [f"{path}:{call.lineno} {name}"] if settings.get("allow_pickle") != "False" else []
    assert not bad


def test_code_that_comes_with_a_model_is_refused_where_models_are_loaded() -> None:
    """Options are made in one place, which says so; a GGUF file comes with no code."""
    loaders = {f"{path}: {name}" for path, _, name in calls() if name.endswith("from_pretrained")}
    assert loaders == {
        "models/lm.py: loader.from_pretrained",
        "models/gguf.py: AutoModelForCausalLM.from_pretrained",
        "models/gguf.py: AutoTokenizer.from_pretrained",
    }
    said = [(m.path, line.strip()) for m in modules().values() for line in m.text.splitlines() if "trust_remote_code" in line]
    assert said == [("models/lm.py", 'SAFELY = {"trust_remote_code": False}')]


def test_nobody_listens_but_on_a_socket_of_the_users_own_files() -> None:
    assert {path for path, _, name in calls() if name.split(".")[-1] in LISTENING} == set(LISTENERS)


def test_nothing_is_evaluated_but_in_the_sandbox() -> None:
    found = {path for path, _, name in calls() if name in ("eval", "exec", "compile")}
    assert found <= {"rewards/trials.py", "rewards/jail.py", "rewards/asserts.py"}
