"""What goes to and fro between the controller and one executor under Monarch."""

import asyncio
import itertools
from typing import Any

from monarch._rust_bindings.monarch_hyperactor.supervision import SupervisionError
from monarch.actor import ActorError, Channel

from freerun.placement.calls import Exited


class Line:
    """Questions to one executor, and answers over one port for all of them: Monarch remembers every port that was
    ever replied to, a kilobyte each, so with a port for each call a long run would fill the memory."""

    def __init__(self, home: Any) -> None:
        self._home = home
        self.port, self._received = Channel.open()
        self._numbers = itertools.count()
        self._open: dict[int, asyncio.Future[bytes]] = {}
        self._ended = ""
        self._reading = asyncio.ensure_future(self._read())

    async def ask(self, what: str, *args: Any) -> bytes:
        """Raises `Exited` if the process ends or Monarch cannot reach it."""
        if self._ended:
            raise Exited(self._ended)
        number = next(self._numbers)
        answer = self._open[number] = asyncio.get_running_loop().create_future()
        try:
            self._home.ask.broadcast(number, what, *args)
            return await answer
        except (ActorError, SupervisionError) as error:
            raise Exited(f"unknown: {error}") from error
        finally:
            del self._open[number]

    async def _read(self) -> None:
        while True:
            number, reply = await self._received.recv()
            answer = self._open.get(number)  # none, if nobody waits for it any more
            if answer is not None and not answer.done():
                answer.set_result(reply)

    def close(self, how: str) -> None:
        """No answer comes any more, because the process ended: `how` says in which way."""
        self._ended = how
        self._reading.cancel()
        for answer in self._open.values():
            if not answer.done():
                answer.set_exception(Exited(how))
