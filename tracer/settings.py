"""What a tracer can be told, checked once, the same for the command line and for programs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tracer.errors import UsageError

MAX_SECONDS = 10 * 365 * 86400.0
"""The longest time that may be asked for: ten years, which every timer of the system can hold."""

# A trust domain, and a path of segments that are not dots alone; by the SPIFFE-ID standard.
_SPIFFE_ID = re.compile(r"spiffe://[a-z0-9._-]{1,255}(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one tracer; times are seconds.

    ``kubelet`` is ``auto`` or ``none``; ``kubelet_read_only_port`` is ``None`` where none was given. ``mode``
    is ``strict``. ``ephemeral_containers`` grants ephemeral containers selectors, which SPIRE does not.
    ``entries_file`` holds registration entries, ``agent_id`` the SPIFFE ID of the agent whose entries
    count, ``None`` for any. Raises :class:`UsageError`, which names the setting, for a value that cannot be used.
    """

    kubelet: str = "auto"
    kubelet_read_only_port: int | None = None
    kubelet_secure_port: int | None = None
    kubelet_ca_path: str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
    skip_kubelet_verification: bool = False
    token_path: str = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 - a path
    certificate_path: str | None = None
    private_key_path: str | None = None
    use_anonymous_authentication: bool = False
    cri: str = "auto"
    pods_api: str = "auto"
    refresh_interval: float = 10.0
    pods_max_stale: float = 600.0
    max_poll_attempts: int = 60
    poll_retry_interval: float = 0.5
    reload_interval: float = 60.0
    node_name: str | None = None
    cgroup_prefix: str | None = None
    procfs: str = "/proc"
    cgroupfs: str = "/sys/fs/cgroup"
    mode: str = "strict"
    disable_container_selectors: bool = False
    enable_namespace_labels: bool = False
    ephemeral_containers: bool = False
    entries_file: str | None = None
    agent_id: str | None = None

    def __post_init__(self) -> None:
        if self.kubelet not in ("auto", "none"):
            raise UsageError(f"{self.kubelet!r} is neither auto nor none", "kubelet", "say auto or none")
        if self.mode not in ("strict", "parity"):
            raise UsageError(f"{self.mode!r} is no mode", "mode", "say strict or parity")
        for key, endpoint in (("cri", self.cri), ("pods-api", self.pods_api)):
            if endpoint not in ("auto", "none") and not endpoint.startswith("unix:///"):
                raise UsageError(f"{endpoint!r} is no socket", key, "say auto, none or unix:///PATH")
        self._check_kubelet()
        if self.max_poll_attempts < 1:
            raise UsageError("less than one attempt", "max-poll-attempts", "say 1 or more")
        if self.agent_id is not None and not _SPIFFE_ID.fullmatch(self.agent_id):
            hint = "say spiffe://, a trust domain in lower case, and the agent's path"
            raise UsageError(f"{self.agent_id!r} is no SPIFFE ID", "agent-id", hint)
        for name, least in (
            ("refresh_interval", 0.1),
            ("pods_max_stale", 0.0),
            ("poll_retry_interval", 0.01),
            ("reload_interval", 0.1),
        ):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and least <= seconds <= MAX_SECONDS):
                key = name.replace("_", "-")
                raise UsageError(f"{seconds:g}s is out of range", key, f"say {least:g}s or more, ten years at most")

    def _check_kubelet(self) -> None:
        for port, key in (
            (self.kubelet_read_only_port, "kubelet-read-only-port"),
            (self.kubelet_secure_port, "kubelet-secure-port"),
        ):
            if port is not None and not 1 <= port <= 65535:
                raise UsageError(f"{port} is no port", key, "say a number from 1 to 65535")
        if self.kubelet_read_only_port is not None:
            if self.kubelet_secure_port is not None:
                both = "kubelet-read-only-port, kubelet-secure-port"
                raise UsageError("two ports of the kubelet were given", both, "give one of them")
        elif not self.use_anonymous_authentication:
            if self.certificate_path is not None and self.private_key_path is None:
                raise UsageError("a client certificate without its key", "certificate-path", "add --private-key-path")
            if self.private_key_path is not None and self.certificate_path is None:
                raise UsageError("a key without its client certificate", "private-key-path", "add --certificate-path")

    @property
    def poll_budget(self) -> float:
        """How long a container may stay unlisted before its processes are ``unknown``, in seconds."""
        return self.max_poll_attempts * self.poll_retry_interval
