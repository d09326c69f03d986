"""SPIRE's own way to the selectors of a process, for a plugin whose daemon cannot be reached.

Both files of the process, then the kubelet's list, again and again until it has the container: what SPIRE's ``k8s``
workload attestor does (``pkg/agent/plugin/workloadattestor/k8s/k8s.go``), with its attempts, its codes and its words.
All who wait share one GET; GETs start half a second apart at least, and a list serves for ``poll_retry_interval`` from
then on. Failures are not kept.

What may hang happens in threads: files of ``/proc`` and requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from tracer.errors import AttestError, ParityError, SourceError, UsageError
from tracer.identity import parity
from tracer.identity.parity import Located
from tracer.identity.pods import PodTable
from tracer.serve.spire_config import PluginConfig
from tracer.sources.credentials import Credentials
from tracer.sources.kubelet import SECURE_PORT, KubeletClient, KubeletEndpoint
from tracer.sources.namespaces import NamespaceClient

SPACING = 0.5
"""Seconds between the starts of two GETs, at least."""

_READERS = 4  # threads that read files: a file of /proc can hang while its process is being torn down
_NOT_LISTED = AttestError(parity.TIMEOUT, parity.NOT_FOUND)


class PodLists:
    """The kubelet's list for all who wait for one: of one GET, ``keep`` seconds old at most.

    ``fetch`` gets a list, in a thread of its own; it raises SourceError.
    """

    def __init__(self, fetch: Callable[[], PodTable], keep: float) -> None:
        self._fetch = fetch
        self._keep = keep
        self._pool = ThreadPoolExecutor(1, "podtracer-pods")
        self.started = float("-inf")  # when the last GET began, of the monotonic clock
        self._table: PodTable | None = None
        self._flight: asyncio.Task[PodTable] | None = None
        self.fetches = 0

    async def get(self) -> PodTable:
        """A list that is new enough. Raises SourceError."""
        if self._table is not None and time.monotonic() < self.started + self._keep:
            return self._table
        if self._flight is None:
            self._table = None
            self._flight = asyncio.create_task(self._get())
            self._flight.add_done_callback(self._landed)
        # Whoever goes away leaves the GET to the others.
        return await asyncio.shield(self._flight)

    async def _get(self) -> PodTable:
        await asyncio.sleep(self.started + SPACING - time.monotonic())
        self.started = time.monotonic()
        self.fetches += 1
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._fetch)

    def _landed(self, flight: asyncio.Task[PodTable]) -> None:
        self._flight = None
        if not flight.cancelled() and flight.exception() is None:
            self._table = flight.result()

    def close(self) -> None:
        """No more GETs; what waits for one is cancelled."""
        if self._flight is not None:
            self._flight.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)


class Fallback:
    """One configuration's way to the kubelet. Nothing is opened before it is needed."""

    def __init__(self, config: PluginConfig, *, procfs: str = "/proc") -> None:
        self._config = config
        self._procfs = procfs
        self._client = KubeletClient(endpoint(config), reload_interval=config.reload_interval)
        self._lists = PodLists(lambda: PodTable.build(self._client.fetch().pods.pods), config.poll_retry_interval)
        self._readers = ThreadPoolExecutor(_READERS, "podtracer-procfs")
        self._namespaces = NamespaceClient(reload_interval=config.reload_interval)
        self._labels = ThreadPoolExecutor(1, "podtracer-namespaces")

    @property
    def fetches(self) -> int:
        """How many times the kubelet was asked for its list."""
        return self._lists.fetches

    async def locate(self, pid: int) -> Located:
        """The container of a process by SPIRE's rules; that of a process that is gone is none.

        Raises AttestError: FailedPrecondition for names that contradict each other, else Internal.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, locate, self._procfs, pid)
        except ParityError as error:
            raise AttestError(error.code, error.what) from error

    async def attest(
        self, located: Located, attempts: int | None = None, resume: Callable[[], bool] = lambda: False
    ) -> tuple[str, ...] | None:
        """The selectors of this container, with their type; none for no container. ``attempts`` is how often the list
        is looked at, as configured without.

        Between two attempts ``resume`` may say that somebody else is to be asked again: then ``None``. Raises
        AttestError: DeadlineExceeded when the list has not had the container after all attempts, Unavailable when the
        last of them failed, Internal where two pods claim it.
        """
        if located.container_id is None:
            return ()
        failure = _NOT_LISTED
        for attempt in range(attempts or self._config.max_poll_attempts):
            if attempt:
                await asyncio.sleep(self._config.poll_retry_interval)
                if resume():
                    return None
            try:
                return await self._attempt(located)
            except SourceError as error:
                failure = AttestError("Unavailable", str(error))
            except AttestError as error:
                if error.code != parity.TIMEOUT:
                    raise
                failure = error
        raise failure

    async def _attempt(self, located: Located) -> tuple[str, ...]:
        table, alone = await self._lists.get(), self._config.disable_container_selectors
        outcome = parity.attest(located, table, disable_container_selectors=alone)
        if outcome.error is not None:
            raise AttestError(outcome.code, outcome.error)
        if self._config.enable_namespace_labels and outcome.pod is not None:
            labels = {outcome.pod.namespace: await self._labels_of(outcome.pod.namespace)}
            outcome = parity.attest(located, table, disable_container_selectors=alone, namespace_labels=labels)
        return outcome.selectors

    async def _labels_of(self, namespace: str) -> Mapping[str, str]:
        try:
            labels = self._namespaces.labels
            return await asyncio.get_running_loop().run_in_executor(self._labels, labels, namespace)
        except SourceError as error:
            raise AttestError("Unavailable", f"unable to get the labels of namespace {namespace!r}: {error}") from error

    def close(self) -> None:
        """Ends every request; whoever still waits gets an error."""
        self._client.close()
        self._namespaces.close()
        self._lists.close()
        for pool in (self._readers, self._labels):
            pool.shutdown(wait=False, cancel_futures=True)


def endpoint(config: PluginConfig) -> KubeletEndpoint:
    """Where the kubelet is asked, and with which keys. Raises UsageError, whose ``obj`` is the key."""
    if config.kubelet_read_only_port is not None:
        return KubeletEndpoint.read_only(config.kubelet_read_only_port)
    anonymous, certificate = config.use_anonymous_authentication, config.certificate_path
    try:
        return KubeletEndpoint.secure(
            config.kubelet_secure_port or SECURE_PORT,
            credentials=Credentials(
                ca_path=None if config.skip_kubelet_verification else config.kubelet_ca_path,
                token_path=None if anonymous or certificate else config.token_path,
                certificate_path=None if anonymous else certificate,
                private_key_path=None if anonymous else config.private_key_path,
            ),
            node_name=config.node_name,
        )
    except UsageError as error:
        raise UsageError(f"{error.obj} is {error.what}", "node_name", error.hint) from error


def locate(procfs: str, pid: int) -> Located:
    """The container of a process by both of its files. Raises ParityError, Internal for a file that is there and cannot
    be read."""
    found = parity.locate(_read(procfs, pid, "cgroup"), None)
    if found.container_id is None:  # only then: a mountinfo may be long
        found = parity.locate(None, _read(procfs, pid, "mountinfo"))
    return found


def _read(procfs: str, pid: int, name: Literal["cgroup", "mountinfo"]) -> bytes | None:
    path = f"{procfs}/{pid}/{name}"
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):  # before it was opened, or since
        return None
    except OSError as error:
        raise ParityError(f"unable to read {path}: {error.strerror}", parity.INTERNAL, name, 0) from error
