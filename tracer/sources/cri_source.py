"""The threads that ask the container runtime about containers, at the birth of their cgroups.

One thread keeps the listing: at the start, at every refresh, and after a failure until there is an answer again.
What it names and nobody was told of yet is asked for with what is wanted. Four others ask for one container each,
when ``attempts`` says so, and one lists pods whose next container is about to be made, when ``followed`` says so. Both
do so only while the listing's last answer was good: a runtime that fails is asked for its listing alone, at growing
intervals, and what is wanted waits.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from tracer.clock import boottime
from tracer.errors import SourceError
from tracer.sources.attempts import Attempts, Want
from tracer.sources.cri import CriClient, CriContainer, CriState
from tracer.sources.followed import Followed
from tracer.sources.health import LAST_PAUSE, Health, back_off, tell
from tracer.sources.state import SourceState

if TYPE_CHECKING:
    from tracer.sources.cri_finding import FoundCri

_log = logging.getLogger("podtracer.cri")

WORKERS = 4
_STOP_WAIT = 1.0


class CriSource:
    """Asks for containers until they are known, and tells what the runtime runs already.

    ``on_container`` gets a container's ID with its status, once, or with ``None`` when the runtime does not have it;
    it is asked for again when it is wanted again. ``on_sandbox`` gets the ID of a container that is a pod's sandbox.
    ``on_state`` gets the state when it changes; it is good from when all was told that ran at the start. They are
    never called at the same time, and may call every method. What they raise is logged.
    """

    def __init__(
        self,
        client: CriClient | FoundCri,
        *,
        interval_s: float = 10.0,
        on_container: Callable[[str, CriContainer | None], None],
        on_sandbox: Callable[[str], None],
        on_state: Callable[[SourceState], None],
    ) -> None:
        self._client = client
        self._interval = interval_s
        self._on_container = on_container
        self._on_sandbox = on_sandbox
        self._telling = threading.RLock()
        self._health = Health(lambda state: self._tell(on_state, state))
        self._attempts = Attempts()
        self._followed = Followed()
        # IDs of containers and sandboxes that were told, or given up; forgotten when no listing has them.
        self._told: set[str] = set()
        lock = threading.Lock()
        self._work = threading.Condition(lock)
        self._control = threading.Condition(lock)
        self._follow = threading.Condition(lock)
        self._stopped = False
        # Counts good listings; a failure of a call that began before the last one is no news.
        self._generation = 0
        self._error: SourceError | None = None
        self._open = False
        # How many of a listing's containers have an answer that is being told.
        self._untold = 0
        self._threads = [threading.Thread(target=self._run, name="podtracer-cri", daemon=True)]
        self._threads.append(threading.Thread(target=self._follow_on, name="podtracer-cri-follow", daemon=True))
        for number in range(WORKERS):
            name = f"podtracer-cri-{number}"
            self._threads.append(threading.Thread(target=self._ask_on, name=name, daemon=True))

    @property
    def state(self) -> SourceState:
        """The state now."""
        return self._health.state

    def start(self) -> None:
        """Begin; the listing is asked for at once. Raises RuntimeError the second time."""
        for thread in self._threads:
            thread.start()

    def want(self, container_id: str) -> None:
        """Ask for a container or sandbox that nobody knows. Never blocks on the runtime."""
        with self._work:
            self._attempts.want(container_id, boottime())
            self._work.notify()

    def settle(self, container_id: str) -> None:
        """The container became known or is gone."""
        with self._work:
            self._attempts.settle(container_id)

    def follow(self, pod_uid: str) -> None:
        """A container of this pod is there, and others are about to be: they are looked for while they have no cgroup
        yet. Never blocks on the runtime."""
        with self._follow:
            self._followed.follow(pod_uid, boottime())
            self._follow.notify()

    def leave(self, pod_uid: str) -> None:
        """All containers of this pod are there, or it is gone."""
        with self._follow:
            self._followed.leave(pod_uid)

    def stop(self) -> None:
        """End the threads and close the client, also while calls hang; back within a second."""
        with self._work:
            self._stopped = True
            self._work.notify_all()
            self._control.notify_all()
            self._follow.notify_all()
        self._client.close()
        deadline = boottime() + round(_STOP_WAIT * 1e9)
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(max(0.0, (deadline - boottime()) / 1e9))

    # ---- the listing ----

    def _run(self) -> None:
        failures = 0
        while not self._stopped:
            at = boottime()
            error = self._list()
            if error is None:
                self._health.good(at)
                error = self._wait(self._interval)
                if error is None:
                    failures = 0
                    continue
            failures += 1
            with self._work:
                self._open = False
            if not self._stopped:
                self._health.bad(error)
                # Not the state but the time in which nothing failed shortens the pause again.
                self._wait(back_off(failures, min(self._interval, LAST_PAUSE)), only_stop=True)

    def _list(self) -> SourceError | None:
        """Ask for the listing and for what is new in it; back when all of that was told, or with what failed."""
        try:
            sandboxes = {each.sandbox_id for each in self._client.list_sandboxes()}
            containers = self._client.list_containers()
        except SourceError as error:
            return error
        except Exception as bug:  # this thread outlives what nobody thought of
            _log.exception("listing containers failed in a way nobody thought of")
            return SourceError(f"internal error: {bug!r}", self._client.url)
        with self._work:
            news = sandboxes - self._told
            self._told &= sandboxes | {each.container_id for each in containers}
            self._told |= sandboxes
            for sandbox_id in news:
                self._attempts.settle(sandbox_id)
            self._attempts.add(self._worth(containers))
            self._open = True
            self._error = None
            self._generation += 1
            self._work.notify_all()
        for sandbox_id in news:
            self._tell(self._on_sandbox, sandbox_id)
        with self._control:
            while (self._attempts.listed or self._untold) and self._error is None and not self._stopped:
                self._control.wait()
            return self._error

    def _worth(self, containers: Iterable[CriContainer]) -> list[str]:
        """Those not told yet that have not ended, or are the newest of their name in their pod."""
        newest: dict[tuple[str, str], CriContainer] = {}
        for each in containers:
            key = (each.pod_uid, each.name)
            if key not in newest or newest[key].created_at < each.created_at:
                newest[key] = each
        last = {each.container_id for each in newest.values()}
        return [
            each.container_id
            for each in containers
            if each.container_id not in self._told and (each.state is not CriState.EXITED or each.container_id in last)
        ]

    def _wait(self, seconds: float, *, only_stop: bool = False) -> SourceError | None:
        """Sleep, until a call failed (which is returned) or it is time to end."""
        deadline = boottime() + round(seconds * 1e9)
        with self._control:
            while not self._stopped and (only_stop or self._error is None):
                left = deadline - boottime()
                if left <= 0:
                    break
                self._control.wait(left / 1e9)
            return None if only_stop else self._error

    # ---- pods whose next container is about to be made ----

    def _follow_on(self) -> None:
        while (pods := self._take_followed()) is not None:
            containers: tuple[CriContainer, ...] = ()
            is_answered = False
            try:
                containers = self._client.list_containers(next(iter(pods)) if len(pods) == 1 else None)
                is_answered = True
            except SourceError:
                pass  # the listing will say so
            except Exception:  # as above
                _log.exception("following pods failed in a way nobody thought of")
            with self._work:
                now = boottime()
                for each in containers:
                    is_new = each.container_id not in self._told and each.state is not CriState.EXITED
                    if is_new and each.pod_uid in pods:
                        self._attempts.want(each.container_id, now)
                        self._work.notify()
                self._followed.listed(now)
                if not is_answered:
                    self._followed.clear()

    def _take_followed(self) -> frozenset[str] | None:
        with self._follow:
            while not self._stopped:
                due, now = self._followed.next_due(), boottime()
                if due is not None and not self._open:
                    self._followed.clear()
                elif due is not None and due <= now:
                    return self._followed.pods
                else:
                    self._follow.wait(None if due is None else (due - now) / 1e9)
            return None

    # ---- single containers ----

    def _ask_on(self) -> None:
        while (taken := self._take()) is not None:
            self._ask(*taken)

    def _take(self) -> tuple[Want, int] | None:
        with self._work:
            while not self._stopped:
                due = self._attempts.next_due() if self._open else None
                now = boottime()
                if due is not None and due <= now and (want := self._attempts.take(now)) is not None:
                    return want, self._generation
                self._work.wait(None if due is None else (due - now) / 1e9)
            return None

    def _ask(self, want: Want, generation: int) -> None:
        container: CriContainer | None = None
        sandbox = False
        error: SourceError | None = None
        try:
            container = self._client.container_status(want.container_id)
            if container is None:
                sandbox = bool(self._client.list_sandboxes(want.container_id))
        except SourceError as failure:
            error = failure
        except Exception as bug:  # as above
            _log.exception("asking for a container failed in a way nobody thought of")
            error = SourceError(f"internal error: {bug!r}", self._client.url)
        with self._work:
            if self._stopped:
                return
            if error is not None:
                news = self._attempts.failed(want, boottime())
            elif container is not None or sandbox:
                news = self._attempts.done(want)
            else:
                news = self._attempts.missed(want, boottime())
            # What is not there may be in a later listing; what failed for itself alone is not to fail again with each.
            if news and (container is not None or sandbox or error is not None):
                self._told.add(want.container_id)
            listed = news and want.background
            self._untold += listed
            if error is not None and generation == self._generation and self._error is None:
                self._error = error
                self._open = False
            else:
                self._work.notify()
        if news and sandbox:
            self._tell(self._on_sandbox, want.container_id)
        elif news:
            self._tell(self._on_container, want.container_id, container)
        with self._control:
            self._untold -= listed
            self._control.notify_all()

    def _tell(self, listener: Callable[..., None], *args: object) -> None:
        with self._telling:
            if not self._stopped:
                tell(listener, *args)
