"""The kubelet's Pods API (KEP-4188) on a UNIX socket: pods as they are now, and every change of their status.

It says nothing when labels, annotations or owners are edited, and a stream cannot be resumed. So whoever watches
also lists from time to time, and lists anew after a drop: ``pods_source`` does both.

Importing this module imports neither grpc nor protobuf; the first call does.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from tracer.clock import boottime
from tracer.errors import InputError
from tracer.identity.pods import PodList
from tracer.model import Pod
from tracer.protobuf import Field, declare
from tracer.sources.kubelet import PodFetch
from tracer.sources.pod_bytes import decode_pod
from tracer.sources.rpc import CallError, Channel, Service, Stream, socket_path

SOCKET: Final = "/var/lib/kubelet/pods-api/pods-api.sock"
"""Where a kubelet has it, unless its root directory is another."""

TIMEOUT: Final = 10.0

_SERVICE: Final = Service(
    "v1alpha1.Pods",
    "is this really the socket of the kubelet's Pods API?",
    {
        "UNAVAILABLE": "is the kubelet running, with the feature gate PodsAPI? it may be starting or ending",
        "DEADLINE_EXCEEDED": "the kubelet is overloaded or hangs; see its log",
        "FAILED_PRECONDITION": "the kubelet is starting; try again",
        "RESOURCE_EXHAUSTED": "events were not taken in as fast as they came, or a list is too long",
        "UNIMPLEMENTED": "the kubelet has another version of the Pods API; it is v1alpha1 that is needed",
    },
    max_message=64 << 20,
)

_TABLE: Final = {
    "Empty": {},
    "ListPodsResponse": {"pods": Field(1, "bytes", repeated=True)},
    "GetPodRequest": {"podUID": Field(1)},
    "GetPodResponse": {"pod": Field(1, "bytes")},
    "WatchPodsEvent": {"type": Field(1, "int32"), "pod": Field(2, "bytes")},
}


class PodEventKind(IntEnum):
    """What happened; the numbers are the API's. ``SYNCED`` is INITIAL_SYNC_COMPLETE, about no pod."""

    OTHER = 0
    ADDED = 1
    MODIFIED = 2
    DELETED = 3
    SYNCED = 4

    @classmethod
    def _missing_(cls, value: object) -> PodEventKind:  # noqa: ARG003
        return cls.OTHER


@dataclass(frozen=True, slots=True)
class PodEvent:
    """One event of a watch: it came at ``at`` (boot time nanoseconds) and was ``size`` bytes long.

    ``pod`` of DELETED has name, namespace and UID only. It is ``None`` for SYNCED, and where it could not be read,
    which ``broken`` then says.
    """

    kind: PodEventKind
    pod: Pod | None
    at: int
    size: int
    broken: str | None = None


class PodsApiClient:
    """Calls to one kubelet, from any thread.

    ``endpoint`` is ``unix:///path`` or a path: else UsageError. All calls raise ``CallError``, a SourceError with a
    gRPC status. ``timeout`` (seconds) bounds every call but a watch, which goes on as long as both ends like.
    """

    def __init__(self, endpoint: str = SOCKET, *, timeout: float = TIMEOUT) -> None:
        self._channel = Channel(socket_path(endpoint, "pods-api"), _SERVICE)
        self.timeout = timeout
        self.url = self._channel.url

    def __enter__(self) -> PodsApiClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the calls in flight, with an error in the threads that wait for them; later ones fail too."""
        self._channel.close()

    def list_pods(self) -> PodFetch:
        """All pods of the node. Pods without a UID are left out; one that cannot be read is named in ``skipped``."""
        m = _messages()
        started = boottime()
        answer = self._channel.call("ListPods", m.Empty(), m.ListPodsResponse, self.timeout)
        return PodFetch(_pod_list(answer.pods), started)

    def get_pod(self, uid: str) -> Pod | None:
        """The pod with this UID, if there is one."""
        m = _messages()
        try:
            answer = self._channel.call("GetPod", m.GetPodRequest(podUID=uid), m.GetPodResponse, self.timeout)
        except CallError as error:
            if error.code == "NOT_FOUND":
                return None
            raise
        try:
            pod = decode_pod(answer.pod)
        except InputError as error:
            raise self._channel.garbage(error.what) from error
        return pod if pod.uid == uid else None

    def watch(self) -> PodWatch:
        """A stream of events: ADDED for each pod there is, SYNCED, then every change of a status."""
        m = _messages()
        return PodWatch(self._channel.stream("WatchPods", m.Empty(), m.WatchPodsEvent), self.url)


class PodWatch:
    """Events, as they come. Iterating ends with ``CallError``, whoever ended the stream."""

    def __init__(self, stream: Stream, url: str) -> None:
        self._stream = stream
        self.url = url

    def __iter__(self) -> Iterator[PodEvent]:
        for event in self._stream:
            at = boottime()
            kind, size = PodEventKind(event.type), len(event.pod)
            if kind in (PodEventKind.SYNCED, PodEventKind.OTHER):
                yield PodEvent(kind, None, at, size)
                continue
            try:
                yield PodEvent(kind, decode_pod(event.pod), at, size)
            except InputError as error:
                yield PodEvent(kind, None, at, size, error.what)

    def cancel(self) -> None:
        """End it, whichever thread reads it."""
        self._stream.cancel()


def _pod_list(bodies: Iterable[bytes]) -> PodList:
    pods: list[Pod] = []
    skipped: list[str] = []
    for index, body in enumerate(bodies):
        try:
            pod = decode_pod(body)
        except InputError as error:
            skipped.append(f"item {index} is malformed: {error.what}")
        else:
            if pod.uid:
                pods.append(pod)
    return PodList(tuple(pods), tuple(skipped))


@functools.cache
def _messages() -> Any:
    return declare("podtracer.pods.v1alpha1", _TABLE)
