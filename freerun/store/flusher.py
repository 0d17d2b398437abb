"""Flushing to disk behind the back of whoever writes: one flush for all that was written while the last one went on."""

import threading
from collections.abc import Callable


class Flusher:
    """Calls `flush` on a thread after each `written`, as often as it can. The first `OSError` of a flush ends it, and the next
    `written` raises that."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self._changed = threading.Condition()
        self._dirty = self._ending = False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._work, name="flusher", daemon=True)
        self._thread.start()

    def written(self) -> None:
        """There is something to flush."""
        with self._changed:
            if self._error is not None:
                raise self._error
            self._dirty = True
            self._changed.notify()

    def stop(self) -> None:
        """Flush what is left and end the thread."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty or self._ending)
                if not self._dirty:
                    return
                self._dirty = False
            try:
                self._flush()
            except OSError as error:
                with self._changed:
                    self._error = error
                return
