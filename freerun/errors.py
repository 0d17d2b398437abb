"""Every error that Freerun raises on purpose, in one four-part form.

An error says what was wrong, what was given, what was expected and what to do. Errors a user can cause also subclass the
standard exception a caller would expect (`ValueError`, `TimeoutError`), so that generic code can catch them.
"""


class FreerunError(Exception):
    """Base of all errors raised on purpose.

    `what` is one sentence without a full stop; `given`, `expected` and `todo` complete it. All four survive pickling, so an
    error keeps its form when it crosses a process boundary.
    """

    def __init__(self, what: str, *, given: object, expected: object, todo: str) -> None:
        super().__init__(what, given, expected, todo)
        self.what, self.given, self.expected, self.todo = what, str(given), str(expected), todo

    def __reduce__(self) -> tuple:
        return _rebuild, (type(self), self.what, self.given, self.expected, self.todo)

    def __str__(self) -> str:
        return f"{self.what}\n  given:    {self.given}\n  expected: {self.expected}\n  to do:    {self.todo}"


def _rebuild(kind: type[FreerunError], what: str, given: str, expected: str, todo: str) -> FreerunError:
    return kind(what, given=given, expected=expected, todo=todo)


class ConfigError(FreerunError, ValueError):
    """A recipe, a config key or a combination of values cannot work. Raised before anything starts."""


class DataError(FreerunError, ValueError):
    """A dataset, prompt, model folder or tokenizer is unusable."""


class RewardError(FreerunError, ValueError):
    """A reward function raised, returned something that is not a finite number, or did not answer in time."""


class SandboxError(RewardError):
    """Code cannot be run with the protection that was asked for, so it was not run. A property of the machine, not of the code,
    which is why the reward pool does not count it against a response but stops."""


class MissingColumn(FreerunError, KeyError):
    """An algorithm read, or declares that it reads, a batch column that nobody produced."""

    __str__ = FreerunError.__str__


class StaleItem(FreerunError, AssertionError):
    """An item reached the trainer with a lag above the bound. Admission makes this impossible; seeing it is a bug."""


class IllegalTransition(FreerunError, AssertionError):
    """A caller asked the store for a transition that its state machine forbids. A bug in the caller, refused before any
    change."""


class Diverged(FreerunError, ArithmeticError):
    """A loss or a gradient is not finite. The batch was saved before this was raised."""


class AllFailed(FreerunError, RuntimeError):
    """Every item of a step failed, so training on would train on nothing."""


class ExecutorDied(FreerunError, RuntimeError):
    """An executor's process or thread is gone."""


class ExecutorFailed(FreerunError, RuntimeError):
    """A call on an executor raised; the executor itself is alive."""


class DeadlineExceeded(FreerunError, TimeoutError):
    """A named wait took longer than its deadline."""


class Stalled(FreerunError, TimeoutError):
    """Nobody is at work and nobody can go on: everyone waits for somebody else."""


class ReplayDiverged(FreerunError, RuntimeError):
    """A replayed run asked its executors for something else than the recorded run did."""


class WeightsError(FreerunError, RuntimeError):
    """A weight version cannot be published, found or verified."""


class CheckpointError(FreerunError, RuntimeError):
    """A checkpoint cannot be written, is torn, or belongs to another run."""


class RunDirectoryError(FreerunError, RuntimeError):
    """A run directory is missing, in use, or was made by something else."""
