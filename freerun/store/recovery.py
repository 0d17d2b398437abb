"""Going on after a crash: the admission state of a checkpoint, plus the journal since, say what became of every item.

| the checkpoint says                  | the journal says | so it is now                                               |
|--------------------------------------|------------------|------------------------------------------------------------|
| trained or dropped                   | anything         | that, for good                                             |
| waiting, in flight, stored, training | finished         | stored: not generated again                                |
|                                      | dropped          | dropped                                                    |
|                                      | nothing          | stored if the checkpoint has the payload, else waiting     |
| nothing: it was admitted later       | finished, dropped| the same, when it is admitted for the second time          |

What was trained after the checkpoint was trained into weights that are lost. It is stored again, and its training into the
weights that survive is the first. Items keep their ids because prompts are drawn in an order that the checkpoint restores.

A controller goes on with `recovery.admission`, decodes the payloads of `recovery.stored`, orders `recovery.waiting`, and then

    while (item := admission.admit(next_prompt.uid)) is not None:
        record = recovery.settle(item)
        if record is None: ...                  # generate it
        elif not record.reason: ...             # stored: decode record.payload

Before the first checkpoint there is a journal too: then the state to start from is that of an `Admission` just made.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from freerun.errors import CheckpointError
from freerun.store.admission import Admission, State
from freerun.store.journal import Record


class Recovery:
    """What a restarted controller needs.

    admission   the state machine to go on with
    stored      record of each item that is stored again, its payload to be decoded; items in `held` are not among them
    waiting     items that are to be generated, in order
    too_old     number of finished items that are generated again, because here the bound on lag does not allow them. A
                controller that fills free slots at once admits no item later than before, so this stays 0

    `held` are the stored items whose payload the checkpoint itself has.
    """

    def __init__(self, state: Mapping[str, Any], records: Iterable[Record], *, held: Collection[int] = ()) -> None:
        self.admission = Admission.from_state(state)
        self.stored: dict[int, Record] = {}
        self.too_old = 0
        self._records = {record.item: record for record in records}
        for item, entry in sorted(self.admission.items.items()):
            dropped = item in self._records and self._records[item].reason
            if entry.state == State.STORED and (dropped or item not in held):
                self.admission.requeue(item)
            if entry.state == State.WAITING:
                self.settle(item)
        self._records = {i: r for i, r in self._records.items() if i >= self.admission.next_item}
        self.waiting = [i for i, entry in sorted(self.admission.items.items()) if entry.state == State.WAITING]

    def settle(self, item: int) -> Record | None:
        """Call this on every item right after its admission. If the item ended before the crash, it is now where it was then,
        stored or dropped, and its record is returned. None: generate it."""
        record, entry = self._records.get(item), self.admission.items[item]
        if record is None:
            return None
        if record.uid != entry.uid:
            raise CheckpointError(
                f"item {item} of the journal was made from another prompt",
                given=f"prompt {entry.uid}",
                expected=f"prompt {record.uid}",
                todo="resume with the data set and the seed of the run",
            )
        if record.reason:
            self.admission.drop(item, record.reason)
        elif self.admission.recall(item, record.oldest):
            self.stored[item] = record
        else:
            self.too_old += 1
            return None
        return record


def needed_by(state: Mapping[str, Any]) -> Callable[[int], bool]:
    """Whether a recovery from this admission state could ask for an item's record: the test for `Journal.compact`."""
    live = {int(item) for item, entry in state["items"].items() if entry["state"] != State.TRAINED}
    return lambda item: item in live or item >= state["next_item"]
