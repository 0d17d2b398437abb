"""Runs that are hurt on purpose, and the audit of what became of them: `freerun chaos`.

| file         | what it does                                                              |
|--------------|---------------------------------------------------------------------------|
| `faults.py`  | which faults there are, and a seeded draw of the next one                 |
| `traps.py`   | makes a fault happen at a named moment inside a process of a run          |
| `child.py`   | `freerun` with these traps                                                |
| `attempt.py` | one attempt at a run, from outside: its processes, its records, its files |
| `harness.py` | starts, hurts, watches, resumes, until time or cycles are used up         |
| `audit.py`   | what was lost, repeated or left behind                                    |
| `show.py`    | the result as JSON and as a table                                         |
"""
