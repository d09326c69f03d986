"""The daemon's metrics for Prometheus: read from plain counters when they are asked for, never a PID or a pod in a
label."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from tracer.histogram import Histogram
from tracer.version import __version__


@dataclass(frozen=True, slots=True)
class Figures:
    """What there is to tell at one moment. ``lookups`` are answers of the socket by state; ``sources`` whether each
    source of pod data answers."""

    events: Mapping[str, int]
    lost: int
    repairs: int
    lookups: Mapping[str, int]
    refused: int
    took: Histogram
    ready: Histogram
    processes: int
    containers: int
    connections: int
    kubelet_requests: Mapping[str, int]
    sources: Mapping[str, bool]
    pods: int | None
    pods_age: float | None


class _Collector:
    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        f = self._figures()
        yield _counter("podtracer_events", "Kernel records taken in.", "type", f.events)
        yield CounterMetricFamily("podtracer_events_lost", "Kernel records that did not fit.", value=f.lost)
        yield CounterMetricFamily("podtracer_repairs", "Empty slots of living processes, filled.", value=f.repairs)
        yield _counter("podtracer_lookups", "Look-ups answered by the socket.", "result", f.lookups)
        yield CounterMetricFamily("podtracer_lookups_refused", "Requests of who may not ask.", value=f.refused)
        yield _histogram("podtracer_lookup_duration_seconds", "Time to answer a look-up that need not wait.", f.took)
        yield _histogram("podtracer_identity_ready_seconds", "From a container's birth to its identity.", f.ready)
        yield GaugeMetricFamily("podtracer_processes", "Processes that are known.", value=f.processes)
        yield GaugeMetricFamily("podtracer_containers", "Containers that have a cgroup.", value=f.containers)
        yield GaugeMetricFamily("podtracer_connections", "Connections of the socket.", value=f.connections)
        yield _counter("podtracer_kubelet_requests", "Requests to the kubelet.", "code", f.kubelet_requests)
        up = GaugeMetricFamily("podtracer_source_up", "Whether a source of pod data answers.", labels=["source"])
        for name, is_up in f.sources.items():
            up.add_metric([name], float(is_up))
        yield up
        if f.pods is not None:
            yield GaugeMetricFamily("podtracer_pods", "Pods of the newest list.", value=f.pods)
        if f.pods_age is not None:
            yield GaugeMetricFamily("podtracer_pods_age_seconds", "Age of the newest pod list.", value=f.pods_age)
        info = GaugeMetricFamily("podtracer_build_info", "The version that runs.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info


def _counter(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in sorted(values.items()):
        family.add_metric([value], count)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(name, text, buckets=histogram.cumulative(), sum_value=histogram.total)


class Exposition:
    """``figures`` gives what there is to tell; :meth:`text` writes it as the reader wants it."""

    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(figures))

    def text(self, accept: str) -> tuple[bytes, str]:
        """(body, content type) for a reader that sends this ``Accept``."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
