"""What podtracer needs of this machine and what it found there, one check after the other.

A check never raises: what goes wrong is what it says, and the next one runs all the same. What takes a running tracer
comes last. The sources of pod data are asked here directly, so that each of them is told of, also one that the tracer
has no use for while another answers.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracer import pidfd, standing
from tracer.clock import boottime
from tracer.errors import SourceError
from tracer.kernel import btf, cgroupfs, loader, machine
from tracer.kernel.cgroupfs import Mount
from tracer.kernel.loader import Features
from tracer.model import Identity, State
from tracer.node import Tracer
from tracer.settings import Settings
from tracer.standing import Check, Outcome, failed, guarded, hierarchies, is_ok, pid_namespace

if TYPE_CHECKING:
    from tracer.sources.kubelet import PodFetch
    from tracer.sources.state import SourceState

_SYNC_TIMEOUT = 10.0
_PROGRAM = "import sys; sys.stdout.write('.'); sys.stdout.flush(); sys.stdin.read()"
_LOST = ("lost_process", "lost_cgroup", "lost_slot", "missed", "repairs")


# ---- the machine, without a tracer ----


def kernel(release: str) -> Check:
    """The kernel's release against the least version."""
    least = ".".join(map(str, machine.LEAST_KERNEL))
    machine.check_kernel(release)
    return Check("kernel", "ok", f"Linux {release}; {least} or newer is needed")


def type_information(path: str = btf.VMLINUX) -> Check:
    """Whether the kernel tells its types, with all that the programs need of them."""
    count = len(btf.macros(btf.read(path)))
    return Check("btf", "ok", f"{path} has the {count} offsets and numbers that the programs need")


def capabilities(status: str) -> Check:
    """The capabilities in the text of ``/proc/self/status``."""
    machine.check_capabilities(status)
    return Check("capabilities", "ok", "all that loading the programs and opening cgroups by their ID takes")


def _find_bcc() -> importlib.machinery.ModuleSpec | None:
    return importlib.util.find_spec("bcc")


def bcc(find: Callable[[], importlib.machinery.ModuleSpec | None] = _find_bcc) -> Check:
    """The BPF compiler collection and its version. It is looked for, not imported: that would cost 100 MB."""
    hint = "install the distribution's package python3-bpfcc; in a virtual environment use --system-site-packages"
    spec = find()
    if spec is None or spec.origin is None:
        return Check("bcc", "fail", "there is no python module bcc", hint)
    folder = Path(spec.origin).parent
    if not (folder / "libbcc.py").exists():
        return Check("bcc", "fail", f"{folder} is another package of the same name", hint)
    try:
        version = re.search(r"__version__ = '([^']*)'", (folder / "version.py").read_text())
    except OSError:
        version = None
    return Check("bcc", "ok", f"{version[1] if version else 'of unknown version'}, in {folder}")


def _mounts_without_programs(settings: Settings) -> list[Mount]:
    return cgroupfs.find_mounts(settings.cgroupfs, settings.procfs, btf.controllers(btf.read()), None)


# ---- what only a running tracer knows ----


def ways(features: Features, forced: Sequence[str] = ()) -> Iterator[Check]:
    """Which way was taken where there are several, ``forced`` by PODTRACER_FORCE or not. The second best ones give
    the same answers."""
    yield _way(
        "table",
        features.no_table,
        "slots are read from a mapped table, without a system call",
        "slots are in a hash, read by a system call for each look-up",
        "answers are the same; the table needs Linux 5.12",
    )
    yield _way(
        "iterator",
        features.no_iterator,
        "processes that ran before are found by the task iterator",
        "processes that ran before are found in /proc",
        "answers are the same; starting takes longer",
    )
    if features.pidfs:
        yield Check("pidfs", "ok", "processes are told apart by the inodes of their pidfds")
    else:
        found = "processes are told apart by their start times, with a pidfd held meanwhile"
        why = "forced" if "starttime" in forced else "this kernel has no pidfs"
        hint = "answers are the same; pidfs needs Linux 6.9"
        yield Check("pidfs", "warn", f"{found}: {why}", hint)
    if features.missing_tracepoints:
        names = ", ".join(features.missing_tracepoints)
        yield Check("tracepoints", "ok", f"all are attached but {names}, for which a kernel without v1 has no use")
    else:
        yield Check("tracepoints", "ok", "all are attached")


def _way(name: str, reason: str | None, first: str, second: str, hint: str) -> Check:
    if reason is None:
        return Check(name, "ok", first)
    return Check(name, "warn", f"{second}: {reason}", hint)


def tracked(mount: Mount, *, certain: bool, elsewhere: bool) -> Check:
    """The hierarchy in which containers are looked for; ``elsewhere`` while one seems to be in another one."""
    where = f"{mount.name}, at {mount.path}"
    if certain:
        return Check("hierarchy", "ok", f"{where}: certain")
    if elsewhere:
        return Check(
            "hierarchy", "warn", f"{where}, while a container was made in another one", "ask again in a moment"
        )
    return Check("hierarchy", "ok", f"{where}, until a pod's first container shows which one it is")


def losses(counters: Mapping[str, int]) -> Check:
    """What the kernel could not tell us, all of which is repaired by scans."""
    text = ", ".join(f"{name} {counters.get(name, 0)}" for name in _LOST)
    if any(counters.get(name, 0) for name in _LOST):
        return Check("losses", "warn", text, "events may be missing; answers are repaired by a scan")
    return Check("losses", "ok", text)


def in_use(states: Mapping[str, SourceState], now: int) -> Check:
    """Which source tells the pods, and since when."""
    from tracer.sources.state import in_use as name_in_use

    name = name_in_use(states)
    if name is not None:
        return Check("source", "ok", f"pods come from {name}, since {_seconds(now - states[name].since)} ago")
    runtime = states.get("cri")
    known = " beyond what the runtime knows" if runtime is not None and runtime.ok else ""
    found = f"nobody tells the pods: processes of pods stay pending{known}"
    failing = next((state.error for state in states.values() if state.error is not None), None)
    return Check("source", "warn", f"{found}: {failing}" if failing else found, "see kubelet and pods-api above")


def self_test(tracer: Tracer) -> Check:
    """A child is started, looked up by its pidfd and its PID, and looked up again after its end."""
    name = "self-test"
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    fd = -1
    try:
        fd = os.pidfd_open(child.pid)
        assert child.stdout is not None
        child.stdout.read(1)  # it runs its program: fork and exec are over
        by_pidfd = tracer.lookup_pidfd(fd)
        began = time.perf_counter_ns()
        by_pid = tracer.lookup(child.pid)
        took = time.perf_counter_ns() - began
        inode = pidfd.inode(fd) if tracer.features.pidfs else None
        wrong = _misjudged(by_pidfd, by_pid, child.pid, inode)
    finally:
        child.kill()
        child.communicate()
        if fd >= 0:
            os.close(fd)
    after = tracer.lookup(child.pid)
    if wrong is None and after.state is not State.GONE and after.key == by_pid.key:
        wrong = f"a child that has ended is {after.state}, not gone"
    if wrong is not None:
        return Check(name, "fail", wrong, "this is a bug; please report it, with all that doctor says")
    how = "by the inode of its pidfd" if inode is not None else "by its start time"
    source = by_pid.process.source if by_pid.process else "slot"
    found = f"a child was known by its {source}, told from others {how}, and gone after its end"
    return Check(name, "ok", f"{found}; its look-up took {took / 1000:.0f} µs")


def _misjudged(by_pidfd: Identity, by_pid: Identity, pid: int, inode: int | None) -> str | None:
    """What is wrong with the answers about a child that lives."""
    for how, identity in (("pidfd", by_pidfd), ("PID", by_pid)):
        if identity.state is State.GONE:
            return f"a living child is gone when it is looked up by its {how}"
        if identity.key.pid != pid:
            return f"a look-up by {how} of child {pid} answers for {identity.key.pid}"
        if inode is not None and identity.key.ino != inode:
            return f"a child's inode is {inode} by its pidfd, and {identity.key.ino} by its {how}'s look-up"
        if identity.process is not None and identity.process.ppid != os.getpid():
            return f"a child's parent is {identity.process.ppid}, not {os.getpid()}"
    if by_pidfd.key != by_pid.key:
        return "look-ups by pidfd and by PID answer for two processes"
    return None


# ---- pod data ----


@dataclass(slots=True)
class _Found:
    """What the sources told: ``fetch`` is a list of pods, from whichever had one."""

    fetch: PodFetch | None = None
    has_pods_api: bool = False


def _listed(fetch: PodFetch) -> str:
    count = len(fetch.pods.pods)
    return f"{count} pod{'' if count == 1 else 's'}, {_seconds(boottime() - fetch.started)} old"


def _list_check(name: str, where: str, fetch: PodFetch) -> Check:
    if fetch.pods.skipped:
        first = f"{len(fetch.pods.skipped)} pods cannot be used, such as: {fetch.pods.skipped[0]}"
        hint = "identities of those stay pending; is this kubelet of a supported version?"
        return Check(name, "warn", f"{where}: {_listed(fetch)}; {first}", hint)
    return Check(name, "ok", f"{where}: {_listed(fetch)}")


def pods_api(settings: Settings, found: _Found) -> Check:
    """The kubelet's Pods API: its socket, and whether it lists the pods."""
    from tracer.sources.cri import find_endpoint
    from tracer.sources.known_sockets import not_roots
    from tracer.sources.pods_api import SOCKET, PodsApiClient

    name = "pods-api"
    if settings.pods_api == "none" or settings.kubelet == "none":
        return Check(name, "ok", "not asked, as configured")
    endpoint = find_endpoint((SOCKET,)) if settings.pods_api == "auto" else settings.pods_api
    if endpoint is None:
        return Check(name, "ok", f"no socket at {SOCKET}: the kubelet is asked over HTTP")
    why = not_roots(endpoint) if settings.pods_api == "auto" else None
    if why is not None:
        found_text = f"not asking the Pods API at {endpoint}: {why}"
        hint = "let root alone write the folders above it, or name it with --pods-api"
        return Check(name, "warn", found_text, hint)
    try:
        with PodsApiClient(endpoint) as client:
            fetch = client.list_pods()
            where = client.url
    except SourceError as error:
        # While it fails the kubelet is asked over HTTP.
        return failed(name, error, "warn" if _is_absent(endpoint) or settings.pods_api == "auto" else "fail")
    found.fetch, found.has_pods_api = fetch, True
    return _list_check(name, where, fetch)


def kubelet(settings: Settings, found: _Found) -> Check:
    """The kubelet over HTTP: which port and why, and whether it lists the pods. An absent kubelet is a warning, and so
    is another process on its port. A kubelet that does not serve us fails, unless the Pods API does instead."""
    from tracer.sources.finding import choose
    from tracer.sources.kubelet import KubeletClient
    from tracer.sources.ownership import NotRoots

    name = "kubelet"
    if settings.kubelet == "none":
        return Check(name, "ok", "not asked, as configured")
    choice = choose(settings)
    url = choice.endpoint.url
    try:
        with KubeletClient(choice.endpoint, reload_interval=settings.reload_interval) as client:
            fetch = client.fetch()
    except SourceError as error:
        absent = error.what == "connection refused" or isinstance(error, NotRoots)
        return failed(name, error, "warn" if absent or found.has_pods_api else "fail")
    found.fetch = found.fetch or fetch
    return _list_check(name, choice.note or f"{url}, as configured", fetch)


def runtime(settings: Settings) -> Check:
    """The container runtime: its socket, and what it says it is."""
    from tracer.sources.cri import ENDPOINTS, CriClient
    from tracer.sources.cri_finding import passed_over, search

    name = "cri"
    later = "a container is known only once the kubelet lists it"
    if settings.cri == "none":
        return Check(name, "ok", f"not asked, as configured: {later}")
    found = search(ENDPOINTS) if settings.cri == "auto" else None
    endpoint = settings.cri if found is None else found.path
    others = f"; {passed_over(found)}" if found is not None and found.passed else ""
    if endpoint is None:
        hint = f"name its socket with --cri, or say --cri none; looked for {', '.join(ENDPOINTS)}"
        return Check(name, "warn", f"no container runtime was found: {later}{others}", hint)
    try:
        with CriClient(endpoint) as client:
            version, url = client.version(), client.url
            containers = len(client.list_containers())
    except SourceError as error:
        return failed(name, error, "warn" if _is_absent(endpoint) or settings.cri == "auto" else "fail")
    said = f"{version.name} {version.version}, CRI {version.api_version}"
    return Check(name, "ok", f"{url}: {said}, {containers} container{'' if containers == 1 else 's'}{others}")


def namespace_labels(settings: Settings, found: _Found) -> Check:
    """The labels of namespaces, from the API server, where they are asked for."""
    name = "namespace-labels"
    if not settings.enable_namespace_labels:
        return Check(name, "ok", "not asked for")
    from tracer.sources.namespaces import NamespaceClient

    pods = found.fetch.pods.pods if found.fetch else ()
    names = sorted({pod.namespace for pod in pods if pod.namespace}) or ["default"]
    client = NamespaceClient(reload_interval=settings.reload_interval)
    try:
        for namespace in names:
            try:
                client.labels(namespace)
            except SourceError as error:
                if error.status != 404:
                    return failed(name, error)
    finally:
        client.close()
    return Check(name, "ok", f"the API server tells those of {len(names)} namespace{'' if len(names) == 1 else 's'}")


def _is_absent(endpoint: str) -> bool:
    try:
        return not stat.S_ISSOCK(os.stat(endpoint.removeprefix("unix://")).st_mode)
    except OSError:
        return True


def _seconds(nanoseconds: int) -> str:
    return f"{max(0, nanoseconds) / 1e9:.1f} s"


def daemon(path: str) -> Check:
    """Whether a daemon accepts at a socket that was asked for by name."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(1.0)
            sock.connect(path)
    except OSError as error:
        found = f"no daemon listens at {path}: {error.strerror or error}"
        return Check("daemon", "fail", found, "start the daemon there, or add --standalone to do without one")
    return Check("daemon", "ok", f"somebody listens at {path}")


# ---- all of them ----


def examine(settings: Settings, *, daemon_socket: str | None = None) -> Iterator[Check]:
    """Every check, as it is made. ``daemon_socket`` is the one that was asked for by name."""
    yield from guarded("kernel", lambda: kernel(os.uname().release))
    yield from guarded("btf", type_information)
    yield from guarded(
        "capabilities",
        lambda: capabilities(Path("/proc/self/status").read_text(encoding="ascii", errors="replace")),
    )
    yield from standing.first(settings)
    yield from guarded("bcc", bcc)
    if daemon_socket is not None:
        yield from guarded("daemon", lambda: daemon(daemon_socket))
    found = _Found()
    yield from guarded("pods-api", lambda: pods_api(settings, found))
    yield from guarded("kubelet", lambda: kubelet(settings, found))
    yield from guarded("cri", lambda: runtime(settings))
    yield from guarded("namespace-labels", lambda: namespace_labels(settings, found))
    yield from _live(settings)


def _live(settings: Settings) -> Iterator[Check]:
    tracer = Tracer(settings, warn=_unheard, note=_unheard, anywhere=True)
    try:
        tracer.start()
    except Exception as error:
        yield failed("programs", error)
        yield from guarded("pid-namespace", lambda: _own_pid_namespace(settings))
        yield from guarded("cgroups", lambda: hierarchies(_mounts_without_programs(settings)))
        return
    with closing(tracer):
        yield Check("programs", "ok", "compiled, loaded and attached")
        yield from guarded("tracepoints", lambda: ways(tracer.features, loader.forced()))
        yield from guarded("pid-namespace", tracer.standing.seeing)
        yield from guarded("cgroups", tracer.standing.naming)
        yield from guarded("hierarchy", lambda: _tracked(tracer))
        yield from guarded("source", lambda: _in_use(tracer))
        yield from guarded("self-test", lambda: self_test(tracer))
        yield from guarded("losses", lambda: losses(tracer.counters()))


def _unheard(_text: str) -> None:
    """What the tracer warns of, the checks tell."""


def _own_pid_namespace(settings: Settings) -> Check:
    return pid_namespace(os.stat(os.path.join(settings.procfs, "self/ns/pid")).st_ino)


def _tracked(tracer: Tracer) -> Check:
    certain, elsewhere = tracer.certainty
    return tracked(tracer.mount, certain=certain, elsewhere=elsewhere)


def _in_use(tracer: Tracer) -> Check:
    tracer.wait_synced(_SYNC_TIMEOUT)
    return in_use(tracer.sources, boottime())


# With the checks that the daemon makes too, so that callers find all of them here.
__all__ = [
    "Check", "Outcome", "bcc", "capabilities", "daemon", "examine", "failed", "guarded", "hierarchies", "in_use",
    "is_ok", "kernel", "kubelet", "losses", "namespace_labels", "pid_namespace", "pods_api", "runtime", "self_test",
    "tracked", "type_information", "ways",
]  # fmt: skip
