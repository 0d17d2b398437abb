"""The audit of a run that was hurt: was every item trained exactly once, and with what was generated for it the first time?

It trusts no counter of the run. Its evidence is what the trainer was given (`samples.jsonl`, one trajectory of every group of
every step) and what was finished (the journal, read after every attempt).
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from freerun.encoding import decode_group
from freerun.errors import CheckpointError
from freerun.rundir import METRICS_LOG, SAMPLES_LOG, read_log
from freerun.store import journal
from freerun.types import Prompt


@dataclass(frozen=True, slots=True)
class Finding:
    """Sentences about items that were lost, about items that were trained or generated more than once, and about items that
    were trained on something else than what was finished."""

    lost: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)


class Ledger:
    """Everything that was ever finished in the run below `directory`, as far as its journal was looked at."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._finished: dict[int, dict[str, bytes]] = {}
        self._dropped: dict[int, str] = {}
        self._again: set[int] = set()
        self._forgiven: set[int] = set()

    def note(self, path: Path) -> None:
        """Take up what the journal says now, whole or not."""
        times: Counter[int] = Counter()
        for record in _records(path):
            if record.reason:
                self._dropped[record.item] = record.reason
            else:
                times[record.item] += 1
                digest = hashlib.sha256(record.payload).hexdigest()
                self._finished.setdefault(record.item, {})[digest] = record.payload
        self._again |= {item for item, number in times.items() if number > 1}

    def forgive(self, path: Path) -> None:
        """The journal is about to be hurt: items in it may have to be generated again."""
        self._forgiven |= {record.item for record in _records(path)}

    def audit(self) -> Finding:
        """After the end of the run."""
        self.note(self._directory / "journal")
        samples = read_log(self._directory / SAMPLES_LOG).rows
        steps = read_log(self._directory / METRICS_LOG).rows
        finding = Finding()
        numbers = [row["step"] for row in steps]
        if numbers != list(range(1, len(numbers) + 1)):
            finding.lost.append(f"steps {sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers))}")
        times = Counter(row["item"] for row in samples)
        finding.repeated.extend(f"item {item} trained {number} times" for item, number in times.items() if number > 1)
        last = steps[-1]["metrics"] if steps else {}
        missing = set(range(max(times, default=-1) + 1)) - set(times) - set(self._dropped)
        finding.lost.extend(f"item {item} neither trained nor dropped" for item in sorted(missing))
        if last and last["items/trained"] != len(times):
            finding.lost.append(f"{last['items/trained']:g} items trained by the ledger, {len(times)} by the samples")
        finding.repeated.extend(f"item {item} trained and dropped" for item in sorted(set(times) & set(self._dropped)))
        for item, payloads in sorted(self._finished.items()):
            if (len(payloads) > 1 or item in self._again) and item not in self._forgiven:
                finding.repeated.append(f"item {item} generated again after it was finished")
        for row in samples:
            payloads = self._finished.get(row["item"], {})
            if payloads and row["completion"] not in [_completion(data, row["item"]) for data in payloads.values()]:
                finding.unlike.append(f"item {row['item']} of step {row['step']}")
        return finding


def _completion(payload: bytes, item: int) -> str:
    """The text of the trajectory that the records show of a group (see `tracker.sample_record`)."""
    group = decode_group(payload, item, Prompt("", ""))
    return group.trajectories[item % len(group.trajectories)].text


def _records(path: Path) -> list[journal.Record]:
    try:
        return journal.read(path) if path.exists() and path.stat().st_size >= len(journal.MAGIC) else []
    except CheckpointError:
        return [journal.parsed(body) for body in journal.salvaged(path.read_bytes())]
