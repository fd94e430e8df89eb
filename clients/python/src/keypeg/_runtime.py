"""The background thread of a client that blocks, with its event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from ._session import CLOSE_PATIENCE, Session

T = TypeVar("T")


class Runtime:
    """The background thread of a client, with its event loop."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="keypeg", daemon=True)
        self.thread.start()
        self.session: Session | None = None
        self.is_stopped = False

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def stop(self) -> None:
        """Releases the leases that are held, closes the connections and ends the thread."""
        if self.is_stopped or self.pid != os.getpid():
            return
        self.is_stopped = True
        if self.loop.is_closed():
            return

        async def end() -> None:
            try:
                if self.session is not None:
                    await self.session.close()
            finally:
                current = asyncio.current_task()
                tasks = [task for task in asyncio.all_tasks() if task is not current]
                for task in tasks:
                    task.cancel()
                if tasks:
                    await asyncio.wait(tasks, timeout=1.0)
                self.loop.call_soon(self.loop.stop)

        work = end()
        try:
            self.start(work)
        except RuntimeError:
            work.close()
            return
        # A finalizer may run in the thread itself.
        if threading.current_thread() is not self.thread:
            self.thread.join(CLOSE_PATIENCE + 2.0)
