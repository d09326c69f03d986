"""What a running tracer tells of itself: the ways it took, its sources, and what it counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracer.feed import Feed
from tracer.histogram import Histogram
from tracer.identity.index import Index
from tracer.kernel.cgroupfs import Mount
from tracer.kernel.loader import Features, Programs, ScanHeader
from tracer.model import Clock
from tracer.podsources import PodSources

if TYPE_CHECKING:
    from tracer.sources.state import SourceState


class About:
    """The part of ``tracer.node.Tracer`` that only tells. Raises ``RuntimeError`` where the tracer does not run."""

    _index: Index
    _sources: PodSources

    @property
    def _live(self) -> Feed:
        raise NotImplementedError

    @property
    def programs(self) -> Programs:
        """The loaded programs, for whoever measures them."""
        return self._live.programs

    @property
    def features(self) -> Features:
        """Which ways were taken on this kernel."""
        return self._live.programs.features

    @property
    def pidfs(self) -> bool:
        """Whether the inode of a pidfd tells a process from all others here (Linux 6.9)."""
        return self._live.programs.features.pidfs

    @property
    def hierarchy(self) -> str:
        """Name of the cgroup hierarchy that is tracked: ``v2``, or the controllers of a v1 one."""
        return self._live.mount.name

    @property
    def mount(self) -> Mount:
        """Where the tracked hierarchy is mounted."""
        return self._live.mount

    @property
    def mounts(self) -> list[Mount]:
        """Every hierarchy that could be tracked."""
        return self._live.mounts

    @property
    def certainty(self) -> tuple[bool, bool]:
        """(whether it is certain that the tracked hierarchy holds the containers, whether one seems to be in another
        one)."""
        return self._live.certain, self._index.uncertain

    @property
    def header(self) -> ScanHeader:
        """The PID namespace of all PIDs, and the hierarchies as the kernel numbers them."""
        return self._live.header

    @property
    def sources(self) -> Mapping[str, SourceState]:
        """The state of each source of pod data that is in use, by its name."""
        return self._sources.states

    def pod_data(self, now: Clock) -> dict[str, Any]:
        """Which source tells the pods and since when, how each source fares and what failed last, and what is known:
        JSON for whoever asks how the tracer is. Every key is always there."""
        from tracer.sources.state import report

        index = self._index
        table, at = index.pod_table, index.pods_at
        return {
            **report(self._sources.states, now),
            "pods": None if table is None else len(table.pods),
            "pods_from": index.pods_from,
            "pods_age_ms": None if at is None else max(0.0, round((now.now - at) / 1e6, 1)),
            "other_tags": index.other_tags,
        }

    @property
    def kubelet_requests(self) -> dict[str, int]:
        """How often the kubelet answered with each HTTP status, or with none (``error``)."""
        return self._sources.kubelet_requests

    @property
    def has_pods(self) -> bool:
        """Whether a pod list has come."""
        return self._index.pods_at is not None

    @property
    def containers(self) -> int:
        """How many containers have a cgroup."""
        return sum(entry.live and entry.root is not None for entry in self._index.cgroups.containers())

    @property
    def ready_times(self) -> Histogram:
        """How long containers took from the birth of their cgroup to their identity."""
        return self._index.ready

    @property
    def lost(self) -> int:
        """How many records did not fit into a ring."""
        return self._live.lost

    def records(self) -> tuple[Sequence[int], int]:
        """(process records taken in, by kind; cgroup records taken in)."""
        return self._live.records, self._live.cgroup_records

    def counters(self) -> dict[str, int]:
        """Lost records and slots, runs the kernel left out, slots repaired: all of them 0 on a good day."""
        return {**self._live.programs.counters(), "repairs": self._live.repairs}

    @property
    def last_scan(self) -> tuple[int, int]:
        """When the last scan of all processes began, and when all that was lost before was repaired by it, in
        nanoseconds of boot time."""
        return self._live.last_scan
