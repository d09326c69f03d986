"""The threads that keep pods fresh over the kubelet's Pods API: a watch, and a list from time to time.

A session is one watch: it is good from when the kubelet has told of all pods, and ends with whatever fails first,
the watch or a list. Then comes the next, after a pause that grows until a session lasted. Nothing is kept but what
a list in flight may have missed: when sessions fail, nobody is told anything, and what was known stays.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tracer.clock import boottime
from tracer.errors import SourceError
from tracer.identity.pods import PodList
from tracer.model import Pod
from tracer.sources.health import LAST_PAUSE, Health, back_off, tell
from tracer.sources.kubelet import PodFetch
from tracer.sources.pods_api import PodEvent, PodEventKind, PodsApiClient, PodWatch
from tracer.sources.state import SourceState

_log = logging.getLogger("podtracer.pods_api")

MAX_FIRST = 64 << 20
"""Bytes of pods that a watch may begin with, and that there may be at any time later."""

_EVENT = 100  # bytes that an event counts for, however short it is
_STOP_WAIT = 1.0
# A session that lasted this long was a good one, and the next failure begins with a short pause again.
_STABLE = 10_000_000_000


@dataclass(slots=True, eq=False)
class _Session:
    """``first`` are the pods told of before the kubelet said that these are all; ``None`` after it."""

    watch: PodWatch
    began: int
    first: dict[str, Pod] | None = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    size: int = 0
    # What each pod that was told of counts for, by UID, and all of them together.
    sizes: dict[str, int] = field(default_factory=dict)
    kept: int = 0
    error: SourceError | None = None

    def keep(self, pod_uid: str, size: int) -> bool:
        """Counts a pod that there is, or with 0 no more; whether there is room for it."""
        self.kept += size - self.sizes.pop(pod_uid, 0)
        if size:
            self.sizes[pod_uid] = size
        return self.kept <= MAX_FIRST


class PodsApiSource:
    """Watches pods, and lists them every ``interval_s`` seconds, since edited labels are not told by the watch.

    ``on_pods`` gets every complete list, ``on_change`` a pod that was added or whose status changed, with the boot
    time in nanoseconds at which that came, ``on_delete`` the UID of one that is gone, ``on_state`` the state when it
    changes. A list is never older than what was told before it. They are never called at the same time, and may call
    every method. What they raise is logged.
    """

    def __init__(
        self,
        client: PodsApiClient,
        *,
        interval_s: float = 10.0,
        on_pods: Callable[[PodFetch], None],
        on_change: Callable[[Pod, int], None],
        on_delete: Callable[[str, int], None],
        on_state: Callable[[SourceState], None],
    ) -> None:
        self._client = client
        self._interval = interval_s
        self._on_pods = on_pods
        self._on_change = on_change
        self._on_delete = on_delete
        self._telling = threading.RLock()
        self._health = Health(lambda state: self._tell(on_state, state))
        self._changed = threading.Condition()
        self._stopped = False
        self._session: _Session | None = None
        # What the watch told while a list was in flight, which may be newer than that; None for a deletion.
        self._meanwhile: dict[str, Pod | None] | None = None
        self._thread = threading.Thread(target=self._run, name="podtracer-pods-api", daemon=True)

    @property
    def state(self) -> SourceState:
        """The state now."""
        return self._health.state

    def start(self) -> None:
        """Begin; the watch is asked for at once. Raises RuntimeError the second time."""
        self._thread.start()

    def stop(self) -> None:
        """End the threads and close the client, also while calls hang; back within a second."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._client.close()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(_STOP_WAIT)

    def _run(self) -> None:
        failures = 0
        while True:
            began = boottime()
            error = self._run_session(began)
            if self._stopped:
                return
            self._health.bad(error)
            failures = 1 if boottime() - began >= _STABLE else failures + 1
            self._wait(lambda: False, back_off(failures, min(self._interval, LAST_PAUSE)))

    def _run_session(self, began: int) -> SourceError:
        """Watch and list until something fails, and return what."""
        session = None
        try:
            session = _Session(self._client.watch(), began)
            self._session = session
            threading.Thread(target=self._read, args=[session], name="podtracer-pods-watch", daemon=True).start()
            return self._keep(session)
        except SourceError as error:
            return error
        except Exception as bug:  # this thread outlives what nobody thought of
            _log.exception("watching pods failed in a way nobody thought of")
            return SourceError(f"internal error: {bug!r}", self._client.url)
        finally:
            # From here on the reader, which may still be at work, tells nothing.
            with self._telling:
                self._session = None
            if session is not None:
                session.watch.cancel()

    def _keep(self, session: _Session) -> SourceError:
        timeout = self._client.timeout
        if not self._wait(lambda: session.first is None or session.error is not None, timeout):
            return SourceError(f"not all pods within {timeout:g} s", self._client.url, "see the kubelet's log")
        listed = session.began
        while session.error is None and not self._stopped:
            self._health.good(listed, tuple(session.skipped))
            if not self._wait(lambda: session.error is not None, self._interval):
                listed = self._list(session)
        return session.error or SourceError("the client was closed", self._client.url)

    def _list(self, session: _Session) -> int:
        with self._telling:
            self._meanwhile = {}
        try:
            fetch = self._client.list_pods()
            with self._telling:
                pods = {pod.uid: pod for pod in fetch.pods.pods}
                for uid, pod in self._meanwhile.items():
                    if pod is None:
                        pods.pop(uid, None)
                    else:
                        pods[uid] = pod
                session.skipped = list(fetch.pods.skipped)
                self._tell(self._on_pods, PodFetch(PodList(tuple(pods.values()), fetch.pods.skipped), fetch.started))
        finally:
            with self._telling:
                self._meanwhile = None
        return fetch.started

    # ---- the watch ----

    def _read(self, session: _Session) -> None:
        error: SourceError | None = None
        try:
            for event in session.watch:
                with self._telling:
                    if self._session is not session:
                        break
                    error = self._take(session, event)
                if error is not None:
                    break
        except SourceError as failure:
            error = failure
        except Exception as bug:  # as above
            _log.exception("reading the watch failed in a way nobody thought of")
            error = SourceError(f"internal error: {bug!r}", self._client.url)
        with self._changed:
            session.error = error
            self._changed.notify_all()

    def _take(self, session: _Session, event: PodEvent) -> SourceError | None:
        if event.kind is PodEventKind.OTHER:
            return None
        if session.first is None:
            return self._take_change(session, event)
        if event.kind is PodEventKind.SYNCED:
            pods = PodList(tuple(session.first.values()), tuple(session.skipped))
            self._tell(self._on_pods, PodFetch(pods, session.began))
            with self._changed:
                session.first = None
                self._changed.notify_all()
            return None
        session.size += event.size + _EVENT
        if session.size > MAX_FIRST:
            return self._too_many()
        if event.pod is None:
            session.skipped.append(f"item {len(session.first)} is malformed: {event.broken}")
        elif event.kind is PodEventKind.DELETED:
            session.first.pop(event.pod.uid, None)
        elif event.pod.uid:
            session.first[event.pod.uid] = event.pod
            session.keep(event.pod.uid, event.size + _EVENT)
        return None

    def _too_many(self) -> SourceError:
        return SourceError(f"more than {MAX_FIRST} bytes of pods", self._client.url, "no node has that many pods")

    def _take_change(self, session: _Session, event: PodEvent) -> SourceError | None:
        pod = event.pod
        if event.kind is PodEventKind.SYNCED:
            return None
        if pod is None:
            # Which pod changed is not known; the next session's list will lack it, and say so.
            return SourceError(f"an event cannot be decoded: {event.broken}", self._client.url)
        if not pod.uid:
            return None
        deleted = event.kind is PodEventKind.DELETED
        if not session.keep(pod.uid, 0 if deleted else event.size + _EVENT):
            return self._too_many()
        if self._meanwhile is not None:
            self._meanwhile[pod.uid] = None if deleted else pod
        if deleted:
            self._tell(self._on_delete, pod.uid, event.at)
        else:
            self._tell(self._on_change, pod, event.at)
        return None

    def _wait(self, over: Callable[[], bool], seconds: float) -> bool:
        """Sleep until ``over``, for ``seconds`` at most, or until it is time to end; whether it is over or time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._stopped or over(), seconds)

    def _tell(self, listener: Callable[..., None], *args: object) -> None:
        with self._telling:
            if not self._stopped:
                tell(listener, *args)
