"""Kubelet and runtime of the demo: PID 1 of a PID namespace, in which all of the demo's processes live.

The kernel ends every process of a PID namespace with its PID 1, and sends that SIGKILL when the program that forked it
dies (PR_SET_PDEATHSIG): whatever happens, no process outlives the demo. The programs have their names from symbolic
links in a tmpfs, mounted in a namespace of its own, that goes the same way.

All of this is one thread that sleeps until its next appointment or a child's end.
"""

from __future__ import annotations

import ctypes
import heapq
import itertools
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from tracer.demo.pods import Container, Pod, pod_list

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15

LAG = 0.7  # seconds by which a kubelet's statuses are behind its containers
_PROGRAMS = "/tmp"  # noqa: S108, hidden below a tmpfs of our own
_OBEY = 'while read -r order; do eval "$order"; done'

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: int | bytes | None) -> None:
    """Calls a function of the C library that says -1 for an error. Raises ``OSError``."""
    # In variables, since numbers given directly are passed as int, and prctl reads longs.
    given = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    if getattr(_libc, name)(*given) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


class Stage:
    """The node's containers. ``root`` is the folder of their cgroups, ``out`` a pipe that gets every new pod list as
    one line.

    Raises ``OSError`` where the namespaces cannot be made; ``BrokenPipeError`` when nobody reads the lists.
    """

    def __init__(self, root: str, out: int) -> None:
        self._root = root
        self._out = out
        self._pods: list[Pod] = []
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._main: dict[int, tuple[Pod, Container]] = {}
        self._at_end: dict[Container, Callable[[], None]] = {}
        call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
        call("prctl", _PR_SET_NAME, b"demo-runtime")
        self._shell, self._sleep = (os.path.realpath(shutil.which(name) or f"/bin/{name}") for name in ("sh", "sleep"))
        call("unshare", CLONE_NEWNS)
        call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        call("mount", b"tmpfs", os.fsencode(_PROGRAMS), b"tmpfs", 0, b"size=64k,mode=755")

    # ---- time ----

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Has ``action`` called then."""
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._order), action))

    def every(self, seconds: float, action: Callable[[], None], *, first: float) -> None:
        """Has ``action`` called again and again, first in ``first`` seconds."""

        def again() -> None:
            action()
            self.after(seconds, again)

        self.after(first, again)

    def run(self, begin: Callable[[], None]) -> None:
        """Plays on and on; ``begin`` is called when SIGUSR1 comes. Wants it and SIGCHLD blocked."""
        awaited = {signal.SIGCHLD, signal.SIGUSR1}
        while True:
            wait = max(0.0, self._due[0][0] - time.monotonic()) if self._due else 60.0
            came = signal.sigtimedwait(awaited, wait)
            if came is not None and came.si_signo == signal.SIGUSR1:
                awaited = {signal.SIGCHLD}
                begin()
            self._reap()
            while self._due and self._due[0][0] <= time.monotonic():
                heapq.heappop(self._due)[2]()

    # ---- pods ----

    def add(self, pod: Pod) -> None:
        """A pod is on the list, and its sandbox runs; none of its containers does."""
        self._pods.append(pod)
        self.publish()
        pod.sandbox.id = secrets.token_hex(32)
        os.makedirs(self._folder(pod, pod.sandbox))
        pod.sandbox.pid = self._spawn(self._folder(pod, pod.sandbox), "pause", self._sleep, "infinity")

    def remove(self, pod: Pod) -> None:
        """All of a pod ends, and it leaves the list."""
        for container in (*pod.containers, pod.sandbox):
            self._at_end.pop(container, None)
            if container.id:
                self._kill(self._folder(pod, container))
        self._pods.remove(pod)
        self.after(LAG, self.publish)
        self._clear(os.path.dirname(self._folder(pod, pod.sandbox)))

    def publish(self) -> None:
        """The list as it is goes out."""
        data = memoryview(pod_list(self._pods) + b"\n")
        while data:
            data = data[os.write(self._out, data) :]

    # ---- containers ----

    def start(
        self,
        pod: Pod,
        container: Container,
        program: str,
        *,
        script: str = _OBEY,
        at_end: Callable[[], None] | None = None,
        at_once: bool = False,
    ) -> None:
        """A new run of a container: a shell called ``program``. ``at_once`` has the list know of it without lag."""
        container.id = secrets.token_hex(32)
        container.restarts += 1
        os.makedirs(self._folder(pod, container))
        read, container.stdin = os.pipe()
        container.pid = self._spawn(
            self._folder(pod, container), program, self._shell, "-c", script, program, stdin=read
        )
        os.close(read)
        self._main[container.pid] = pod, container
        if at_end is not None:
            self._at_end[container] = at_end
        self._tell(container, "running", at_once=at_once)

    def order(self, container: Container, line: str) -> None:
        """Has the container's shell run a line, as a child or by itself. Nothing happens when it does not run."""
        if container.stdin >= 0:
            with suppress(BrokenPipeError):
                os.write(container.stdin, line.encode() + b"\n")

    def enter(self, pod: Pod, container: Container, program: str, seconds: float) -> None:
        """A process enters the container from outside, as an exec probe does, and ends by itself."""
        if container.stdin >= 0:
            self._spawn(self._folder(pod, container), program, self._sleep, str(seconds))

    def program(self, name: str) -> str:
        """A word for orders: a program of this name, which takes a time in seconds to end after."""
        return self._link(name, self._sleep)

    def _link(self, name: str, target: str) -> str:
        path = f"{_PROGRAMS}/{name}"
        with suppress(FileExistsError):
            os.symlink(target, path)
        return path

    def _folder(self, pod: Pod, container: Container) -> str:
        return f"{self._root}/burstable/pod{pod.uid}/{container.id}"

    def _tell(self, container: Container, state: str, *, at_once: bool = False, **more: object) -> None:
        status = container.status(state, **more)

        def tell() -> None:
            container.listed = status
            self.publish()

        if at_once:
            container.listed = status
        else:
            self.after(LAG, tell)

    def _spawn(self, folder: str, name: str, target: str, *arguments: str, stdin: int | None = None) -> int:
        """A child that joins a cgroup and then becomes a program, the way a runtime does it. This process has one
        thread, so that a fork is safe."""
        path = self._link(name, target)
        pid = os.fork()
        if pid:
            return pid
        try:
            with open(f"{folder}/cgroup.procs", "wb", buffering=0) as procs:
                procs.write(b"0")
            if stdin is not None:
                os.dup2(stdin, 0)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execv(path, [name, *arguments])  # noqa: S606, a shell is what is wanted
        finally:
            os._exit(127)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] in self._main:
                    self._ended(*self._main.pop(ended[0]), os.waitstatus_to_exitcode(ended[1]))

    def _ended(self, pod: Pod, container: Container, code: int) -> None:
        os.close(container.stdin)
        container.stdin = -1
        folder = self._folder(pod, container)
        self._kill(folder)
        self._clear(folder)
        self._tell(container, "terminated", exitCode=code if code >= 0 else 128 - code)
        if at_end := self._at_end.pop(container, None):
            at_end()

    def _kill(self, folder: str) -> None:
        # Numbers of our PID namespace, in which nobody lives but the demo.
        with suppress(FileNotFoundError), open(f"{folder}/cgroup.procs", encoding="ascii") as procs:
            for pid in map(int, procs.read().split()):
                with suppress(ProcessLookupError):
                    if pid > 0:  # 0 is somebody else, from outside the namespace
                        os.kill(pid, signal.SIGKILL)

    def _clear(self, folder: str) -> None:
        if not remove_tree(folder):
            self.after(0.02, lambda: self._clear(folder))


def remove_tree(folder: str) -> bool:
    """Removes a cgroup and all below it; whether it is gone. A process in it, or one that is just ending, keeps it."""
    for inside, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(inside)
    return not os.path.exists(folder)
