"""A small event loop over epoll: readiness callbacks, timers, and calls handed over from other threads.

It is what a worker's main thread runs. asyncio would do, but costs a worker 10 MB and 60 ms for what fits
here, and its streams copy a byte four times where a console or exec stream must carry 100 MB.

Lock order: none. Only ``call_soon_threadsafe`` and ``call_at_threadsafe`` may be used by other threads; an
exception in a callback goes to ``on_error`` (default: re-raised out of ``run``).
"""

import heapq
import itertools
import os
import select
import time
from collections import deque
from collections.abc import Callable

from hostel.base.linux import eventfd

READ = select.EPOLLIN
WRITE = select.EPOLLOUT


class Timer:
    """A pending call; ``cancel()`` is final and may come from any thread."""

    __slots__ = ("when", "callback")

    def __init__(self, when: float, callback: Callable[[], object]):
        self.when = when
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """``run()`` until ``stop()``. Times are ``time.monotonic()`` seconds."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], object]] = {}
        self._events: dict[int, int] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._soon: deque[Callable[[], object]] = deque()
        self._wake = eventfd.make()
        self._running = False
        self.on_error: Callable[[BaseException], None] | None = None
        self.watch(self._wake, READ, self._woken)

    def watch(self, fd: int, events: int, handler: Callable[[int], object]) -> None:
        """Call ``handler(events)`` whenever ``fd`` is ready; replaces an earlier watch of ``fd``.

        ``events`` may be 0: then only errors and hang-ups are reported.
        """
        if fd in self._handlers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler
        self._events[fd] = events

    def unwatch(self, fd: int) -> None:
        """Forget ``fd``; must come before it is closed. Unknown ones are ignored."""
        if self._handlers.pop(fd, None) is not None:
            del self._events[fd]
            self._epoll.unregister(fd)

    def renew(self) -> None:
        """In a forked child, which has what it watches open under the same numbers: no longer by its parent's epoll."""
        self._epoll.close()
        self._epoll = select.epoll()
        for fd, events in self._events.items():
            self._epoll.register(fd, events)

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        timer = Timer(when, callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        return self.call_at(time.monotonic() + delay, callback)

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        self._soon.append(callback)
        os.eventfd_write(self._wake, 1)

    def call_at_threadsafe(self, when: float, callback: Callable[[], object]) -> Timer:
        timer = Timer(when, callback)
        self.call_soon_threadsafe(lambda: heapq.heappush(self._timers, (when, next(self._order), timer)))
        return timer

    def fileno(self) -> int:
        return self._epoll.fileno()

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        self._running = True
        while self._running:
            self._step()

    def close(self) -> None:
        self._epoll.close()
        os.close(self._wake)

    def _step(self) -> None:
        timeout = -1.0
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if self._timers:
            timeout = max(0.0, self._timers[0][0] - time.monotonic())
        try:
            ready = self._epoll.poll(timeout)
        except InterruptedError:
            return
        for fd, events in ready:
            handler = self._handlers.get(fd)  # an earlier handler of this round may have removed it
            if handler is not None:
                self._call(handler, events)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                self._call(timer.callback)

    def _woken(self, events: int) -> None:
        os.eventfd_read(self._wake)
        for _ in range(len(self._soon)):
            self._call(self._soon.popleft())

    def _call(self, callback: Callable, *args: object) -> None:
        try:
            callback(*args)
        except Exception as error:
            if self.on_error is None:
                raise
            self.on_error(error)
