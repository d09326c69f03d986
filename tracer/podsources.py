"""The sources of pod data, started, joined with the index, and stood in for by one another.

The Pods API is the first choice where its socket is there, since it pushes; while it fails the kubelet is asked over
HTTP. The container runtime, where one is found, is asked beside either: it knows a container before its first process
runs, and the lists know the pod.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from tracer.clock import boottime
from tracer.identity.index import Index
from tracer.model import Event, RuntimeContainer
from tracer.settings import Settings

if TYPE_CHECKING:
    from tracer.errors import SourceError
    from tracer.model import Pod
    from tracer.sources.cri import CriClient, CriContainer
    from tracer.sources.cri_finding import FoundCri
    from tracer.sources.cri_source import CriSource
    from tracer.sources.kubelet import KubeletSource, PodFetch
    from tracer.sources.namespaces import Labels, NamespaceSource
    from tracer.sources.pods_source import PodsApiSource
    from tracer.sources.state import SourceState

Name = Literal["pods-api", "kubelet", "cri", "namespaces"]
# A kubelet that starts again lists no pods, or static ones only, until it has heard from the API server. For this long
# after a failure its list takes no pod away; after a new connection without a failure, none of which a container still
# has a cgroup.
_STARTING = 30_000_000_000
_log = logging.getLogger("podtracer")


class PodSources:
    """Every source of pod data that the settings ask for.

    ``lock`` guards the index; ``drain`` takes the kernel's news in before pod data is, so that births come first;
    ``publish`` gets the events that come of it, and ``on_change`` is called with the lock held after each. ``on_first``
    is called once, when each source has answered or failed for the first time. ``warn`` and ``note`` get sentences for
    people.
    """

    def __init__(
        self,
        settings: Settings,
        index: Index,
        *,
        lock: threading.RLock,
        drain: Callable[[], None],
        publish: Callable[[list[Event]], None],
        on_change: Callable[[], None],
        on_first: Callable[[], None],
        warn: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._index = index
        self._lock = lock
        self._drain = drain
        self._publish = publish
        self._after_change = on_change
        self._on_first = on_first
        self._warn = warn
        self._note = note
        self._changing = threading.Lock()
        self._stopped = False
        self._ending = threading.Event()
        self._kubelet: KubeletSource | None = None
        self._pods_api: PodsApiSource | None = None
        self._cri: CriSource | None = None
        self._namespaces: NamespaceSource | None = None
        self._silent: set[Name] = set()
        self._wanted: Counter[str] = Counter()
        self._codes: Counter[str] = Counter()  # of kubelets that are no longer asked
        # The kubelet's connection of the last list that was believed, and since when those of a newer one are not.
        self._connected: int | None = None
        self._doubted: int | None = None

    def start(self) -> None:
        """Starts what there is. Raises ``UsageError`` for an endpoint that is none, also one that only stands in."""
        cri, pods_api = self._cri_client(), self._find_pods_api()
        kubelet = self._settings.kubelet != "none"
        waited: dict[Name, bool] = {"cri": cri is not None, "pods-api": pods_api is not None}
        waited["kubelet"] = kubelet and pods_api is None
        waited["namespaces"] = kubelet and self._settings.enable_namespace_labels
        self._silent = {name for name, is_asked in waited.items() if is_asked}
        if not self._silent:
            self._on_first()
        if waited["namespaces"]:
            self._start_namespaces()
        if pods_api is not None:
            self._check_kubelet()
            self._start_pods_api(pods_api)
        elif kubelet:
            self._start_kubelet()
        if cri is not None:
            self._start_cri(cri)
        elif self._settings.cri == "auto":
            threading.Thread(target=self._await_cri, name="podtracer-cri-find", daemon=True).start()

    def stop(self) -> None:
        """Ends all of them, within about a second."""
        self._ending.set()
        with self._changing:
            self._stopped = True
            sources = (self._kubelet, self._pods_api, self._cri, self._namespaces)
            self._kubelet = self._pods_api = self._cri = self._namespaces = None
        threads = [threading.Thread(target=source.stop, daemon=True) for source in sources if source is not None]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @property
    def states(self) -> dict[str, SourceState]:
        """The state of each source that is asked."""
        named: tuple[tuple[Name, KubeletSource | PodsApiSource | CriSource | NamespaceSource | None], ...] = (
            ("pods-api", self._pods_api),
            ("kubelet", self._kubelet),
            ("cri", self._cri),
            ("namespaces", self._namespaces),
        )
        return {name: source.state for name, source in named if source is not None}

    @property
    def kubelet_requests(self) -> dict[str, int]:
        """How often the kubelet answered with each HTTP status, or with none (``error``)."""
        kubelet = self._kubelet
        return dict(self._codes + (Counter() if kubelet is None else kubelet.codes))

    def pass_wants(self) -> None:
        """Tells the sources which containers nobody knows, and which are no longer wanted. Without the lock held."""
        with self._lock:
            is_changed = self._index.cgroups.changed
            wanted, settled = self._index.take_wants()
            coming, whole = self._index.take_unsettled() if is_changed else ((), ())
            is_stirred = self._index.take_stir()
        if self._cri is not None:
            for pod_uid in coming:
                self._cri.follow(pod_uid)
            for pod_uid in whole:
                self._cri.leave(pod_uid)
        if is_stirred and self._kubelet is not None:
            self._kubelet.stir()
        for source in (self._cri, self._kubelet):
            if source is not None:
                for container_id in wanted:
                    source.want(container_id)
                for container_id in settled:
                    source.settle(container_id)

    def take_wants_of(self, before: PodSources) -> None:
        """Goes on to look for what was looked for before; to be called before these are started."""
        self._wanted = before._wanted

    def want(self, container_id: str) -> None:
        """Has this container looked for; to be taken back as often by :meth:`unwant`."""
        with self._changing:
            self._wanted[container_id] += 1
            is_first = self._wanted[container_id] == 1
        if is_first and self._kubelet is not None:
            self._kubelet.want(container_id)

    def unwant(self, container_id: str) -> None:
        """Nobody who called :meth:`want` waits for it any more."""
        with self._changing:
            self._wanted[container_id] -= 1
            is_last = self._wanted[container_id] <= 0
            if is_last:
                del self._wanted[container_id]
        if is_last and self._kubelet is not None:
            self._kubelet.settle(container_id)

    # ---- starting each ----

    def _start_kubelet(self) -> None:
        from tracer.sources.finding import choose
        from tracer.sources.kubelet import KubeletClient, KubeletSource

        if self._kubelet is not None:
            return
        choice = choose(self._settings)
        if choice.note is not None:
            self._note(choice.note)
        source = KubeletSource(
            KubeletClient(choice.endpoint, reload_interval=self._settings.reload_interval),
            interval_s=self._settings.refresh_interval,
            on_pods=partial(self._on_pods, "kubelet"),
            on_state=partial(self._on_state, "kubelet"),
        )
        with self._changing:
            if self._stopped or self._kubelet is not None:
                return
            self._kubelet = source
            self._connected = self._doubted = None
        source.start()
        with self._changing:
            wanted = tuple(self._wanted)
        for container_id in wanted:
            source.want(container_id)
        with self._lock:
            self._index.want_again()

    def _check_kubelet(self) -> None:
        from tracer.sources.finding import choose

        choose(self._settings, answers=lambda _port: False)

    def _end_kubelet(self) -> None:
        with self._changing:
            source, self._kubelet = self._kubelet, None
            if source is not None:
                self._codes += source.codes
        if source is not None:
            source.stop()

    def _find_pods_api(self) -> str | None:
        from tracer.sources.cri import find_endpoint
        from tracer.sources.known_sockets import not_roots
        from tracer.sources.pods_api import SOCKET

        asked = self._settings.pods_api
        if asked == "none" or self._settings.kubelet == "none":
            return None
        if asked != "auto":
            return asked
        endpoint = find_endpoint((SOCKET,))
        why = None if endpoint is None else not_roots(endpoint)
        if why is None:
            return endpoint
        self._note(f"not asking the Pods API at {endpoint}: {why}; if it is the kubelet's, name it with --pods-api")
        return None

    def _start_pods_api(self, endpoint: str) -> None:
        from tracer.sources.pods_api import PodsApiClient
        from tracer.sources.pods_source import PodsApiSource

        self._pods_api = PodsApiSource(
            PodsApiClient(endpoint),
            interval_s=self._settings.refresh_interval,
            on_pods=partial(self._on_pods, "pods-api"),
            on_change=self._on_change,
            on_delete=self._on_delete,
            on_state=partial(self._on_state, "pods-api"),
        )
        self._pods_api.start()

    def _cri_client(self) -> CriClient | FoundCri | None:
        """The runtime's client; ``None`` if the settings want none, or no socket exists yet."""
        from tracer.sources.cri import ENDPOINTS, CriClient, find_endpoint
        from tracer.sources.cri_finding import FoundCri

        asked = self._settings.cri
        if asked == "none":
            return None
        if asked != "auto":
            return CriClient(asked)
        return FoundCri(ENDPOINTS, note=self._note) if find_endpoint(ENDPOINTS) is not None else None

    def _await_cri(self) -> None:
        """Waits for a runtime that is installed or started after us."""
        client: CriClient | FoundCri | None = None
        while client is None:
            if self._ending.wait(self._settings.refresh_interval):
                return
            client = self._cri_client()
        with self._changing:
            if self._stopped:
                return
            self._start_cri(client)
        with self._lock:
            self._index.want_again()
        self.pass_wants()

    def _start_cri(self, client: CriClient | FoundCri) -> None:
        from tracer.sources.cri_source import CriSource

        self._cri = CriSource(
            client,
            interval_s=self._settings.refresh_interval,
            on_container=self._on_container,
            on_sandbox=self._on_sandbox,
            on_state=partial(self._on_state, "cri"),
        )
        self._cri.start()

    def _start_namespaces(self) -> None:
        from tracer.sources.namespaces import NamespaceClient, NamespaceSource

        self._namespaces = NamespaceSource(
            NamespaceClient(reload_interval=self._settings.reload_interval),
            interval_s=self._settings.refresh_interval,
            max_stale_s=self._settings.pods_max_stale,
            on_labels=self._on_namespaces,
            on_failure=self._on_namespaces_state,
        )
        self._namespaces.start()

    # ---- what they tell ----

    def _apply(self, change: Callable[[int], list[Event]]) -> None:
        with self._lock:
            self._drain()
            self._publish(change(boottime()))
            self._after_change()
            namespaces = self._index.pod_namespaces
            disputes = self._index.take_disputes()
        for text in disputes:
            _log.error("%s", text)
        self.pass_wants()
        if self._namespaces is not None:
            self._namespaces.want(namespaces)
            if not namespaces:
                self._heard("namespaces")  # there is nothing to wait for

    def _on_pods(self, name: Name, fetch: PodFetch) -> None:
        pods, complete = fetch.pods.pods, not fetch.pods.skipped
        if name == "kubelet" and (self._may_be_starting() or self._may_have_started_again(fetch)):
            complete = False
        self._apply(lambda now: self._index.pods(pods, fetch.started, complete=complete, source=name, now=now))
        self._heard(name)

    def _may_be_starting(self) -> bool:
        states = [source.state for source in (self._kubelet, self._pods_api) if source is not None]
        return any(state.failures and boottime() - state.since < _STARTING for state in states)

    def _may_have_started_again(self, fetch: PodFetch) -> bool:
        """Whether a list may be that of a kubelet that ended and began again between two requests, which nobody saw
        fail: it came on another connection than the last one, and lacks pods of which a container has a cgroup."""
        if fetch.connected == self._connected or self._connected is None or not self._lacks_live(fetch):
            self._connected, self._doubted = fetch.connected, None
            return False
        now = boottime()
        if self._doubted is None:
            self._doubted = now
        if now - self._doubted < _STARTING:
            return True
        self._connected, self._doubted = fetch.connected, None
        return False

    def _lacks_live(self, fetch: PodFetch) -> bool:
        with self._lock:
            self._drain()
            return self._index.lacks_live({pod.uid for pod in fetch.pods.pods})

    def _on_change(self, pod: Pod, at: int) -> None:
        self._apply(lambda now: self._index.pod_changed(pod, at, now))

    def _on_delete(self, pod_uid: str, at: int) -> None:
        self._apply(lambda now: self._index.pod_deleted(pod_uid, at, now))

    def _on_container(self, container_id: str, found: CriContainer | None) -> None:
        if found is None or found.image is None:
            return  # asked for again while it is wanted
        record = RuntimeContainer(
            container_id,
            found.name,
            found.pod_namespace,
            found.pod_name,
            found.pod_uid,
            found.image,
            found.image_id,
            found.created_at,
            found.at,
            found.cgroups_path,
        )
        self._apply(lambda now: self._index.container(record, now))

    def _on_sandbox(self, container_id: str) -> None:
        self._apply(lambda now: self._index.sandbox(container_id, now))

    def _on_namespaces(self, labels: Labels) -> None:
        self._apply(lambda now: self._index.namespaces(labels, now))
        self._heard("namespaces")

    def _on_namespaces_state(self, error: SourceError | None) -> None:
        if error is None:
            self._warn("the API server tells the labels of all namespaces again")
            return
        hint = f" (hint: {error.hint})" if error.hint else ""
        self._warn(f"{error}; identities without the labels of their namespace stay pending{hint}")
        self._heard("namespaces")

    def _on_state(self, name: Name, state: SourceState) -> None:
        if state.error is not None:
            kept = "what was known stays" if state.last_success else "identities stay pending"
            self._warn(f"{state.error}; {kept}" + (f" (hint: {state.error.hint})" if state.error.hint else ""))
        elif state.failures:
            self._warn(f"{name} answers again ({state.fetches} requests, {state.failures} failed)")
        if name == "pods-api":
            if state.error is None:
                self._end_kubelet()
            else:
                self._await_kubelet()
                self._start_kubelet()
        self._heard(name)

    def _await_kubelet(self) -> None:
        """Where the Pods API fails at first, it is the kubelet's answer that all wait for."""
        with self._changing:
            if "pods-api" in self._silent:
                self._silent.add("kubelet")

    def _heard(self, name: Name) -> None:
        with self._changing:
            if name not in self._silent:
                return
            self._silent.discard(name)
            is_first = not self._silent
        if is_first:
            self._on_first()
