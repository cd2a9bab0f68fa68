"""The thread that the model runs in, one answer after another, seen from the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.generate.generate import Generation, Session
from minigpt_edge_runtime.generate.grammar import Grammars
from minigpt_edge_runtime.serve.errors import ApiError


class Worker:
    """Runs generations in one thread. Close it before the engine.

    Args:
        engine: whose cache is the worker's alone from now on.
        queue: requests that may wait while one is answered.
        timeout: seconds until a request is given up, waiting included.
    """

    def __init__(self, engine: Engine, queue: int, timeout: float) -> None:
        self.session, self.grammars = Session(engine), Grammars(engine)
        self._queue, self._timeout = queue, timeout
        self._taken = 0
        self._limits: set[asyncio.Timeout] = set()
        self._stopping = False
        self._thread = ThreadPoolExecutor(1, "model")

    @asynccontextmanager
    async def request(self) -> AsyncIterator[asyncio.Timeout]:
        """The time for one request; let it expire to end the request early.

        Raises:
            ApiError: it has expired.
        """
        try:
            async with asyncio.timeout(self._timeout) as limit:
                self._limits.add(limit)
                try:
                    yield limit
                finally:
                    self._limits.discard(limit)
        except TimeoutError as error:
            if self._stopping:
                raise ApiError(503, "the server stops", code="stopping", kind="server_error") from error
            message = f"the request took longer than this server's {self._timeout:g} seconds"
            # OpenAI's clients would send it again, which makes it worse.
            headers = {"x-should-retry": "false"}
            raise ApiError(504, message, code="timeout", kind="timeout_error", headers=headers) from error

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue.

        Raises:
            ApiError: there is none.
        """
        if self._taken > self._queue:
            message = f"the server is busy: one request is answered and {self._queue} wait"
            headers = {"retry-after": "1"}
            raise ApiError(429, message, code="queue_full", kind="rate_limit_error", headers=headers)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def pieces(self, generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, str | None], None]:
        """One request's generations, none of another request between them. Leaving the iterator cancels them.

        Yields:
            A generation's index and a piece of its text, None at its end.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[int, str | None] | None] = asyncio.Queue()

        def put(item: tuple[int, str | None] | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        def work() -> None:
            try:
                for index, generation in enumerate(generations):
                    for piece in generation:
                        put((index, piece))
                    put((index, None))
            finally:
                put(None)

        future = self._thread.submit(work)
        try:
            while (item := await queue.get()) is not None:
                yield item
                await asyncio.sleep(0)  # a full queue never waits, and nobody would see that the client left
            await asyncio.wrap_future(future)  # raises what the generation raised
        finally:
            for generation in generations:
                generation.cancel()
            if not future.cancel():  # it has begun, and ends within a step
                await asyncio.wait([asyncio.wrap_future(future)])

    async def stop(self, seconds: float) -> None:
        """Give all requests this long to end, and wait for them."""
        self._stopping = True
        last = asyncio.get_running_loop().time() + seconds
        for limit in self._limits:
            if not limit.expired() and (limit.when() or last) >= last:
                limit.reschedule(last)
        while self._limits:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Wait for the thread's end."""
        self._thread.shutdown(cancel_futures=True)
