# SPDX-License-Identifier: Apache-2.0
"""A few threads for what waits on the network. They hinder nobody from ending."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from upseal.fleet.http.logs import event

_log = logging.getLogger("upseal.agent")
_Task = tuple[Callable[..., object], tuple[Any, ...]]


class Workers:
    """Threads that are made when they are needed, up to a number.

    Unlike those of `concurrent.futures`, the interpreter does not wait for them at its end: one may
    be in the middle of a request that the other side holds open, and nothing is lost with it.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._busy = self._done = 0
        self._stopped = False

    def submit(self, work: Callable[..., object], *args: Any) -> None:
        """Does it in one of the threads, soon."""
        with self._lock:
            if self._stopped:
                return
            self._busy += 1
            if self._busy > len(self._threads) and len(self._threads) < self._most:
                name = f"{self._name}-{len(self._threads)}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                try:
                    thread.start()
                    self._threads.append(thread)
                except RuntimeError as error:  # the host has no more: those there are must do
                    event(_log, "no thread to be had", level=logging.WARNING, error=error)
            alone = not self._threads
            if not alone:
                self._tasks.put((work, args))
        if alone:  # what is submitted is never left undone: its caller waits for it to be
            self._do(work, args)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._do(*task)

    def _do(self, work: Callable[..., object], args: tuple[Any, ...]) -> None:
        try:
            work(*args)
        except Exception as error:  # one task's trouble is not the next one's
            event(_log, "unexpected error", level=logging.ERROR, error=error, exc=error)
        finally:
            with self._lock:
                self._busy -= 1
                self._done += 1

    @property
    def progress(self) -> tuple[bool, int]:
        """Whether there is something to do, and how much was done."""
        return self._busy > 0, self._done

    def stop(self, patience: float) -> bool:
        """Takes no more; waits a little for what runs. False if something still does."""
        with self._lock:
            self._stopped = True
            threads = list(self._threads)
        for _ in threads:
            self._tasks.put(None)
        end = time.monotonic() + patience
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)
