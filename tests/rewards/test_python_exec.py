"""The verifier of programs: what counts as passing, and programs that want to pass without solving anything."""

import asyncio
import pickle

import pytest

from freerun.errors import ConfigError, DataError, SandboxError
from freerun.rewards.pool import RewardConfig, RewardPool
from freerun.rewards.python_exec import PythonExec, code_block
from freerun.rewards.sandbox import Sandbox, SandboxConfig
from freerun.types import FailureKind, Prompt, RewardRequest

CASES = {"function": "double", "cases": [{"args": [2], "expected": 4}, {"args": ["ab"], "expected": "abab"}]}
ASSERTS = {"asserts": ["assert double(2) == 4", "assert double('ab') == 'abab'"]}
EXAMPLES = {"examples": [{"input": "2\n", "output": "4\n"}, {"input": "5\n", "output": "10\n"}]}
SOLUTION = "def double(x):\n    return x * 2"
PROGRAM = "print(int(input()) * 2)"

needs_sandbox = [pytest.mark.dist, pytest.mark.usefixtures("sandboxed", "nothing_is_left")]


def judge(program, meta, verifier=None):
    return asyncio.run((verifier or PythonExec())("", program, meta))


def fenced(code, language="python"):
    return f"```{language}\n{code}\n```"


class TestFindingTheProgram:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("So:\n" + fenced("x = 1") + "\nDone.", "x = 1\n"),
            (fenced("x = 1") + "\nor better\n" + fenced("x = 2", "py"), "x = 2\n"),
            (fenced("x = 1", "") + "\n" + fenced("ls", "bash"), "x = 1\n"),
            ("```python\nx = 1", "x = 1"),
            ("  ```python\n  x = 1\n  ```", "  x = 1\n"),
            ("x = 1", "x = 1"),
            (fenced("ls", "bash"), None),
            (fenced("", "python"), None),
            (" \n", None),
        ],
    )
    def test_it_is_the_last_block_in_python_or_all_of_a_text_without_blocks(self, text, expected):
        assert code_block(text) == expected

    def test_no_program_is_worth_nothing(self):
        result = judge("```bash\nls\n```", CASES)
        assert result.value == 0.0 and "no program" in result.info["problem"]


class TestJudging:
    pytestmark = needs_sandbox

    @pytest.mark.parametrize(("meta", "program"), [(CASES, SOLUTION), (ASSERTS, SOLUTION), (EXAMPLES, PROGRAM)])
    def test_a_solution_gets_full_marks_and_nonsense_none(self, meta, program):
        result = judge(fenced(program), meta)
        assert (result.value, result.parts) == (1.0, {"passed": 1.0, "stopped": 0.0}) and result.info["passed"] == 2
        for nonsense in ("I do not know", "def double(", "raise SystemExit", "def double(x): return None", "1 / 0"):
            result = judge(nonsense, meta)
            assert result.value == 0.0 and result.info["problem"]

    def test_half_a_solution_is_worth_half_or_nothing(self):
        half = "def double(x):\n    return 4 if x == 2 else 'no'"
        for meta, program in ((CASES, half), (ASSERTS, half), (EXAMPLES, "print(4)")):
            assert judge(program, meta).value == 0.5
            result = judge(program, meta, PythonExec(partial=False))
            assert result.value == 0.0 and result.parts["passed"] == 0.5

    def test_a_program_that_a_limit_stops_is_wrong_and_not_a_failure(self):
        verifier = PythonExec(sandbox=SandboxConfig(cpu_seconds=1, seconds=60), seconds=120, partial=False)
        slow = "def double(x):\n    while x != 2: pass\n    return 4"
        for meta in (CASES, ASSERTS):
            result = judge(slow, meta, verifier)
            assert result.value == 0.0 and result.parts == {"passed": 0.5, "stopped": 0.5} and "cpu" in result.info["problem"]
        result = judge("while True: pass", EXAMPLES, verifier)
        assert (result.value, result.parts["stopped"]) == (0.0, 1.0)

    def test_all_tests_of_an_answer_together_have_a_time_of_their_own(self):
        meta = {"examples": [{"input": str(seconds), "output": ""} for seconds in (0, 60, 0, 0)]}
        result = judge(
            "import time; time.sleep(int(input()))", meta, PythonExec(seconds=1.0, sandbox=SandboxConfig(seconds=60))
        )
        assert result.value <= 0.25 and result.parts["stopped"] == 1 - result.value

    def test_a_program_must_end_well_and_white_space_at_the_ends_does_not_count(self):
        meta = {"examples": [{"input": "", "output": "a\nb\n"}]}
        assert judge("print('a  ')\nprint('b')\nprint()", meta).value == 1.0
        assert judge("print('a')\nprint('b')\nexit(1)", meta).value == 0.0
        assert judge("print('a')\nprint(' b')", meta).value == 0.0

    def test_what_a_function_prints_is_no_answer_and_no_hindrance(self):
        assert judge("def double(x):\n    print('hello')\n    return x * 2", CASES).value == 1.0
        assert judge(SOLUTION + "\nif __name__ == '__main__': 1 / 0", CASES).value == 1.0

    def test_keyword_arguments_and_names_of_builtins_work(self):
        meta = {"function": "sum", "cases": [{"args": [1], "kwargs": {"other": 2}, "expected": 3}]}
        assert judge("def sum(x, other): return x + other", meta).value == 1.0
        meta = {"function": "sum", "asserts": ["assert sum(1, 2) == 3", "assert abs(sum(1, 2)) == 3"]}
        assert judge("def sum(x, other): return x + other", meta).value == 1.0

    def test_asserts_compare_tuples_sets_classes_and_floats_as_python_does(self):
        program = """
class Stack:
    def __init__(self, *items): self.items = items
    def size(self): return len(self.items)
def f(x): return (x, {x}, {x: [x]}, b'x', 1j, None, float('inf'))
def third(x): return x / 3
"""
        meta = {
            "setup": "import math\nfrom collections import Counter\ndef near(a, b):\n    return abs(a - b) < 1e-6",
            "asserts": [
                "assert f(1) == (1, {1}, {1: [1]}, b'x', 1j, None, float('inf'))",
                "assert Stack(1, 2).size() == 2, 'size'",
                "assert math.isclose(third(1), 1 / 3) and near(third(2), 0.6666667)",
                "assert isinstance(third(3), float) and not third(0)",
                "assert statistics.mean(f(2)[2][2]) == 2",
                "assert Counter(f(3)[1]) == Counter({3: 1})",
                "assert f(1) == [1, {1}, {1: [1]}, b'x', 1j, None, float('inf')]",
            ],
        }
        result = judge(program, meta)
        assert result.info["passed"] == 6 and "AssertionError" in result.info["problem"]

    def test_tests_may_print(self):
        assert judge(SOLUTION, {**ASSERTS, "setup": "print('hello')"}).value == 1.0

    def test_an_object_that_is_no_plain_data_is_no_answer(self):
        result = judge("def double(x): return object()", CASES)
        assert result.value == 0.0 and "not plain data" in result.info["problem"]


FORGERIES = {
    "printing a verdict": "print('passed'); print(json.dumps({'value': None})); print('[\"\", \"\", \"\"]'); os._exit(0)",
    "leaving early with success": "os._exit(0)",
    "raising SystemExit": "sys.exit(0)",
    "writing lines of results": r"""
for descriptor in range(1, 64):
    try: os.write(descriptor, b'{"value": null}\n{"value": true}\n{"value": true}\n')
    except OSError: pass
os._exit(0)
""",
    "writing verdicts where the judge would": r"""
for descriptor in range(1, 64):
    try: os.write(descriptor, b'["", "", ""]')
    except OSError: pass
os._exit(0)
""",
    "an object that equals everything": """
class Any:
    __eq__ = __ge__ = __le__ = lambda *a: True
    __ne__ = lambda *a: False
    __hash__ = lambda self: 0
    __bool__ = lambda self: True
double = lambda x: Any()
""",
    "a number that equals everything": """
class Number(int):
    __eq__ = lambda *a: True
    __ne__ = lambda *a: False
    __hash__ = int.__hash__
double = lambda x: Number(0)
""",
    "a text that equals everything": """
class Text(str):
    __eq__ = lambda *a: True
    __hash__ = str.__hash__
double = lambda x: Text('no')
""",
    "patching the encoder": """
import __main__
__main__.encode = lambda value: True
json.dumps = lambda *a, **k: '{"value": true}'
double = lambda x: None
""",
    "patching builtins": """
import builtins
builtins.isinstance = lambda *a: True
builtins.abs = builtins.len = lambda *a: 4
builtins.AssertionError = type('Quiet', (BaseException,), {})
double = lambda x: None
""",
    "turning asserts off": "sys.flags; os.environ['PYTHONOPTIMIZE'] = '2'; double = lambda x: None",
    "reading the expected values out of the frames": """
def double(x):
    frame, found = sys._getframe(), []
    while frame:
        found.append(repr(frame.f_locals) + repr(frame.f_globals.get('job')))
        frame = frame.f_back
    text = ' '.join(found)
    return 'ab' * 2 if 'ab' * 2 in text else None
""",
    "reading the expected values out of memory": """
import gc
def double(x):
    return next((o['expected'] for o in gc.get_objects() if isinstance(o, dict) and 'expected' in o), None)
""",
    "leaving at the end of a thread": """
import threading
def double(x):
    threading.Thread(target=lambda: os._exit(0)).start()
    while True: pass
""",
    "recursion without end": "double = lambda x: double(x)",
    "a list inside itself": "double = lambda x: (y := []).append(y) or y",
    "very deep data": """
def double(x):
    for _ in range(400): x = [x]
    return x
""",
    "lines that nest without end": """
for descriptor in range(1, 64):
    try: os.write(descriptor, b'{"value": ' + b'[' * 60000)
    except OSError: pass
os._exit(0)
""",
    "more lines than anyone wants to read": r"""
for descriptor in range(1, 64):
    try: os.write(descriptor, b'\n' * 900000)
    except OSError: pass
os._exit(0)
""",
    "values that were not encoded by us": r"""
for descriptor in range(1, 64):
    try: os.write(descriptor, b'{"value": 1}\n{"value": {"list": 3}}\n{"value": {"set": [{"list": []}]}}\n')
    except OSError: pass
os._exit(0)
""",
    "a number with too many digits": r"""
for descriptor in range(1, 64):
    try: os.write(descriptor, b'{"value": 1}\n{"value": ' + b'9' * 100000 + b'}\n{"value": NaN}\n')
    except OSError: pass
os._exit(0)
""",
    "killing everything": "os.kill(1, 9); os.kill(0, 9)",
}


class TestForging:
    """Nobody passes without saying what only a solution knows."""

    pytestmark = needs_sandbox

    @pytest.mark.parametrize("trick", FORGERIES)
    def test_a_trick_earns_nothing(self, trick):
        verifier = PythonExec(sandbox=SandboxConfig(cpu_seconds=1, seconds=2))
        for meta in (CASES, ASSERTS):
            result = judge(f"import json, os, sys\n{FORGERIES[trick]}", meta, verifier)
            assert result.value == 0.0 and result.info["passed"] == 0 and result.info["problem"]

    def test_output_is_all_that_counts_of_a_program_with_examples(self):
        for trick in ("printing a verdict", "leaving early with success", "killing everything"):
            assert judge(f"import json, os, sys\n{FORGERIES[trick]}", EXAMPLES).value == 0.0

    def test_a_program_cannot_take_over_what_the_tests_use(self):
        program = """
isinstance = lambda *a: True
class math:
    isclose = lambda *a: True
def near(*a): return True
def double(x): return None
"""
        tests = ["assert isinstance(double(1), int)", "assert math.isclose(double(1), 2)", "assert near(double(1), 2)"]
        result = judge(program, {"asserts": tests, "setup": "def near(a, b): return a - b == 0"})
        assert result.value == 0.0

    def test_the_expected_values_are_not_in_the_interpreter_of_the_program(self):
        # It looks for the word in everything there is, and knows it only backwards, so as not to find itself.
        program = """
import gc
def f(x):
    word = '7eldeen'[::-1]
    return word if any(word in repr(o) for o in gc.get_objects() if type(o) in (dict, list, tuple)) else None
"""
        cases = {"function": "f", "cases": [{"args": ["x"], "expected": "needle7"}]}
        for meta in (cases, {"asserts": ["assert f('x') == 'needle7'"]}):
            assert judge(program, meta).value == 0.0
        cases["cases"][0]["args"] = ["needle7"]
        assert judge(program, cases).value == 1.0, "arguments can be found, so expected values could have been"


class TestRefusing:
    def test_where_there_is_no_sandbox_the_error_stops_the_run(self, monkeypatch):
        async def refuse(self):
            raise SandboxError("no", given="x", expected="y", todo="z")

        monkeypatch.setattr(Sandbox, "check", refuse)

        async def main():
            pool = RewardPool(PythonExec(sandbox=SandboxConfig(seconds=7.5)), RewardConfig())
            await pool.score([RewardRequest(Prompt("p", "q", CASES), SOLUTION)])

        with pytest.raises(SandboxError):
            asyncio.run(main())

    @pytest.mark.parametrize(
        ("meta", "named"),
        [
            ({}, "0 kinds"),
            ({**CASES, **ASSERTS}, "2 kinds"),
            ({"cases": [{"args": [1], "expected": 1}]}, "function"),
            ({"function": 3, "cases": [{"args": [1], "expected": 1}]}, "not text"),
            ({"function": "f", "cases": [{"args": [1]}]}, "expected"),
            ({"function": "f; import os", "cases": [{"args": [], "expected": 1}]}, "cannot be called"),
            ({"function": "f", "cases": [{"args": [float("nan")], "expected": 1}]}, "JSON"),
            ({"examples": [{"input": "x"}]}, "output"),
            ({"examples": [{"input": 3, "output": "x"}]}, "not text"),
            ({"asserts": ["x = 1"]}, "not one assert"),
            ({"asserts": ["assert f(1) ="]}, "SyntaxError"),
            ({"asserts": ["assert 1 == 1"]}, "asks nothing"),
            ({"asserts": ["assert all(f(x) == x for x in (1, 2))"]}, "loop"),
            ({"asserts": ["assert np.allclose(f(1), 2)"]}, "import the tests"),
            ({"asserts": ["assert f(1) == EXPECTED[1]"]}, "EXPECTED"),
            ({"asserts": ["assert callable(f)"], "function": "f"}, "neither a call"),
            ({"asserts": ["assert isclose(f(1), 2)"], "setup": "from math import *"}, "imports *"),
        ],
    )
    def test_tests_that_cannot_be_judged_are_a_data_error_and_no_reward(self, meta, named):
        with pytest.raises(DataError, match="no tests") as caught:
            judge(SOLUTION, meta)
        assert named in caught.value.given

    @pytest.mark.dist
    @pytest.mark.usefixtures("sandboxed")
    def test_a_setup_that_fails_on_its_own_is_a_data_error(self):
        with pytest.raises(DataError, match="setup"):
            judge(SOLUTION, {**ASSERTS, "setup": "limit = double"})

    def test_limits_that_cannot_work_are_refused(self):
        with pytest.raises(ConfigError, match="judged"):
            PythonExec(seconds=0)

    @pytest.mark.dist
    @pytest.mark.usefixtures("sandboxed")
    def test_in_a_pool_wrong_programs_have_rewards_and_broken_tests_are_failures(self):
        async def main():
            pool = RewardPool(PythonExec(), RewardConfig(retries=0))
            good, broken = Prompt("p", "q", CASES), Prompt("r", "q", {})
            outcomes = await pool.score(
                [RewardRequest(good, SOLUTION), RewardRequest(good, "1 / 0"), RewardRequest(broken, "x")]
            )
            await pool.close()
            return outcomes

        right, wrong, failed = asyncio.run(main())
        assert (right.value, wrong.value) == (1.0, 0.0)
        assert failed.kind is FailureKind.VERIFIER and "PythonExec" in failed.where


def test_the_verifier_crosses_process_boundaries():
    verifier = PythonExec(partial=False, sandbox=SandboxConfig(tasks=3))
    assert pickle.loads(pickle.dumps(verifier)) == verifier
