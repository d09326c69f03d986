"""A tracer of records made by hand, for what the command line does with them; also a program of its own.

As a program it is podtracer with that tracer: ``cli_fakes.py SCRIPT podtracer-arguments…``, SCRIPT being one of
``EVENTS``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tracer import clock
from tracer.cli.app import App
from tracer.cli.main import main
from tracer.model import GONE, Cgroup, Event, Identity, Process, ProcessKey, Source, State, Workload
from tracer.settings import Settings

CONTAINER_ID = "0123456789abcdef" * 4
CART = Workload(
    State.RESOLVED,
    settled=True,
    pods_from="kubelet",
    namespace="shop",
    service_account="cart",
    pod="cart-7d9f",
    pod_uid="6f2a",
    container="app",
    container_id=CONTAINER_ID,
    image="cart:1",
    node="node-1",
    selectors=("k8s:ns:shop", "k8s:sa:cart"),
    labels={"app": "cart", "tier": "web"},
)
WAITING = Workload(State.PENDING, "not_listed", "no pod lists this container yet", container_id=CONTAINER_ID)
HOST = Workload(State.HOST, "no_container", "the cgroup is no container's")


def identity(pid: int, workload: Workload = CART, comm: str = "cart") -> Identity:
    """A process with this PID and workload, 5 s old."""
    now = clock.boottime()
    process = Process(ppid=4300, comm=comm, start=now - 6_000_000_000, source=Source.EXEC, since=now - 5_000_000_000)
    return Identity(ProcessKey(pid, pid + 1000), pid, workload, Cgroup(4711, "/kubepods/x"), process)


def event(kind: str, pid: int = 0, workload: Workload = CART, comm: str = "cart", **extra: object) -> Event:
    """An event that happened now; ``synced`` and ``lost`` are about no process."""
    about = None if kind in ("synced", "lost") else identity(pid, workload, comm)
    return Event(kind, clock.boottime(), about, extra)  # type: ignore[arg-type]


@dataclass
class FakeWatch:
    """Gives its events, then nothing."""

    events: Iterator[Event]
    is_closed: bool = False

    def __enter__(self) -> FakeWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_closed = True

    def next(self, timeout: float | None) -> Event | None:
        found = next(self.events, None)
        if found is None and timeout:
            time.sleep(min(timeout, 0.05))
        return found


@dataclass
class FakeTracer:
    """Knows some processes and tells some events; ``calls`` is what was asked of it, in order."""

    known: dict[int, Identity] = field(default_factory=dict)
    events: Iterable[Event] = ()
    later: dict[int, Identity] = field(default_factory=dict)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    settings: Settings | None = None
    warning: str | None = None
    is_open: bool = False

    def factory(self, settings: Settings, *, warn: Callable[[str], None]) -> FakeTracer:
        self.settings = settings
        if self.warning:
            warn(self.warning)
        return self

    def __enter__(self) -> FakeTracer:
        self.is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.is_open = False

    def wait_synced(self, timeout: float) -> bool:
        assert timeout > 0
        self.calls.append(("wait_synced",))
        return True

    def wait_known(self, pids: Iterable[int], timeout: float | None) -> None:
        self.calls.append(("wait_known", tuple(pids), timeout))
        self.known |= self.later

    def lookup(self, pid: int, *, verify: bool = False, parity: bool = False) -> Identity:  # noqa: ARG002
        self.calls.append(("lookup", pid, verify))
        return self.known.get(pid) or identity(pid, GONE)._replace(process=None, cgroup=None)

    def watch(self, *, snapshot: bool = True, parity: bool = False) -> FakeWatch:  # noqa: ARG002
        self.calls.append(("watch", snapshot))
        return FakeWatch(iter(self.events))


def _endless() -> Iterator[Event]:
    while True:
        yield event("exec", 7)


def _one() -> Iterator[Event]:
    yield event("exec", 7)


def _failing() -> Iterator[Event]:
    raise ZeroDivisionError("a bug")
    yield


EVENTS = {"endless": _endless, "one": _one, "none": lambda: iter(()), "failing": _failing}

if __name__ == "__main__":
    tracer = FakeTracer(known={7: identity(7)}, events=EVENTS[sys.argv.pop(1)]())
    code = main(App(tracer=tracer.factory))
    if tracer.is_open:
        sys.stderr.write("the tracer was left open\n")
    sys.exit(code)
