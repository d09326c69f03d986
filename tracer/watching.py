"""Handing events to whoever watches: each watcher has its own queue, and a slow one loses its own events only."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from tracer.clock import boottime
from tracer.model import Event

_QUEUE = 65536


class Watch:
    """A stream of events, as a context manager and an iterator. Events that did not fit are told as one ``lost``."""

    def __init__(
        self, on_close: Callable[[Watch], None], limit: int = _QUEUE, on_event: Callable[[], None] | None = None
    ) -> None:
        self._on_close = on_close
        self._on_event = on_event
        self._limit = limit
        self._queue: deque[Event] = deque()
        self._ready = threading.Condition()
        self._lost = 0
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """Whether nothing comes any more, but for what is queued."""
        return self._closed and not self._queue

    def push(self, events: Iterable[Event]) -> None:
        """Queues events. Never blocks."""
        with self._ready:
            for event in events:
                if len(self._queue) < self._limit:
                    self._queue.append(event)
                else:
                    self._lost += 1
            self._ready.notify()
        if self._on_event is not None:
            self._on_event()

    def next(self, timeout: float | None = None) -> Event | None:
        """The next event; ``None`` when none came within ``timeout`` seconds, or the watch is closed."""
        with self._ready:
            self._ready.wait_for(lambda: self._queue or self._lost or self._closed, timeout)
            if self._queue:
                return self._queue.popleft()
            if self._lost:
                count, self._lost = self._lost, 0
                return Event("lost", boottime(), None, {"count": count})
            return None

    def __iter__(self) -> Iterator[Event]:
        while not self._closed or self._queue:
            if (event := self.next()) is not None:
                yield event

    def close(self) -> None:
        """Ends the stream: iteration stops once what is queued was read."""
        with self._ready:
            if self._closed:
                return
            self._closed = True
            self._ready.notify_all()
        self._on_close(self)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
