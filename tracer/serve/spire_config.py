"""The plugin's configuration: SPIRE's keys of its ``k8s`` workload attestor, and ours on top.

What a key means and what stands in for it is SPIRE's (``pkg/agent/plugin/workloadattestor/k8s/k8s.go``), and so is how
a value is decoded: the rules are those of ``github.com/hashicorp/hcl`` version 1. A key that SPIRE knows and we do not
do is refused, never ignored: less would be attested than what was configured.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from tracer.errors import UsageError
from tracer.serve.hcl import Block, HclError, Item, Scalar, Value, parse

SECURE_PORT = 10250
CA_PATH = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 - a path
MAX_POLL_ATTEMPTS = 60
POLL_RETRY_INTERVAL = 0.5
RELOAD_INTERVAL = 60.0
POD_IMAGES_WAIT = 1.0

_LONGEST = 366 * 86400.0  # what timers of the system surely hold, in seconds
_HINT = "see podtracer spire-plugin --help"


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """One configuration, defaults filled in. Times are seconds.

    One of the two ports is ``None``. ``node_name`` is what name, variable and environment come to. ``socket_path`` is
    the daemon's, ``None`` where none was given; ``fallback`` is whether SPIRE's own way is gone while nobody answers
    there. ``pod_images_wait`` bounds the wait for images of containers that are not made yet, 0 for none.
    ``ephemeral_containers`` takes the daemon's word for those, which SPIRE does not attest; the daemon has its own.
    """

    kubelet_read_only_port: int | None = None
    kubelet_secure_port: int | None = SECURE_PORT
    kubelet_ca_path: str = CA_PATH
    skip_kubelet_verification: bool = False
    token_path: str = TOKEN_PATH
    certificate_path: str | None = None
    private_key_path: str | None = None
    use_anonymous_authentication: bool = False
    node_name: str | None = None
    max_poll_attempts: int = MAX_POLL_ATTEMPTS
    poll_retry_interval: float = POLL_RETRY_INTERVAL
    reload_interval: float = RELOAD_INTERVAL
    disable_container_selectors: bool = False
    enable_namespace_labels: bool = False
    disable_kubelet_client: bool = False
    socket_path: str | None = None
    fallback: bool = True
    mode: Literal["strict", "parity"] = "strict"
    pod_images_wait: float = POD_IMAGES_WAIT
    ephemeral_containers: bool = False

    @property
    def poll_budget(self) -> float:
        """How long a process may stay unknown before SPIRE gives up."""
        return self.max_poll_attempts * self.poll_retry_interval


# What each key is decoded as. Keys with dots are those of blocks.
_KUBELET: Mapping[str, type] = {
    "kubelet_read_only_port": int,
    "kubelet_secure_port": int,
    "kubelet_ca_path": str,
    "skip_kubelet_verification": bool,
    "token_path": str,
    "certificate_path": str,
    "private_key_path": str,
    "use_anonymous_authentication": bool,
    "node_name": str,
    "node_name_env": str,
    "max_poll_attempts": int,
    "poll_retry_interval": str,
    "reload_interval": str,
    "disable_container_selectors": bool,
}
KEYS: Mapping[str, type] = {
    **_KUBELET,
    "enable_namespace_labels": bool,
    "disable_kubelet_client": bool,
    "use_new_container_locator": bool,
    "verbose_container_locator_logs": bool,
    "experimental.api_server.cache.enabled": bool,
    "socket_path": str,
    "fallback": bool,
    "mode": str,
    "pod_images_wait": str,
    "ephemeral_containers": bool,
}
_BLOCKS = frozenset({"experimental", "experimental.api_server", "experimental.api_server.cache"})
_REFUSED = frozenset({"sigstore", "experimental.sigstore", "experimental.broker"})
_ELSEWHERE = "is not supported; use the built-in attestor"


def read(text: str, environ: Mapping[str, str] = os.environ) -> PluginConfig:
    """The configuration that the agent hands over. Raises UsageError, whose ``obj`` is the key."""
    try:
        tree = parse(text)
    except HclError as error:
        raise UsageError(f"the configuration is not HCL: {error}", None, _HINT) from None
    known, others = decode(tree)
    for key in others:
        raise _wrong(key, f"{key} {_ELSEWHERE if key in _REFUSED else 'is no key of this plugin'}")
    return _config(known, environ)


def decode(tree: Block) -> tuple[dict[str, Any], list[str]]:
    """The values of the keys that are known (of a key that comes again, the last), and the names of all others.

    Raises UsageError for a value that cannot be decoded as what its key is.
    """
    values: dict[str, Any] = {}
    others: list[str] = []
    for key, value in _flat("", tree.items):
        kind = KEYS.get(key)
        if kind is not None:
            values[key] = _decoded(key, value, kind)
        elif key not in _BLOCKS:
            others.append(key)
        elif not isinstance(value, Block):
            raise _wrong(key, "has to be a block: { … }")
        else:  # it comes again: what the block before it said counts no more
            for gone in [known for known in values if known.startswith(f"{key}.")]:
                del values[gone]
    return values, others


def _flat(above: str, items: tuple[Item, ...]) -> Iterator[tuple[str, Value]]:
    """The items of blocks that are known, by their whole key: case does not count, and labels are keys."""
    for item in items:
        name = item.keys[0].lower()
        key = f"{above}{name}" if f"{above}{name}" in (*KEYS, *_BLOCKS, *_REFUSED) else f"{above}{item.keys[0]}"
        inner = Block((Item(item.keys[1:], item.value),)) if len(item.keys) > 1 else item.value
        yield key, inner
        if key in _BLOCKS and isinstance(inner, Block):
            yield from _flat(f"{key}.", inner.items)


def _decoded(key: str, value: Value, kind: type) -> Any:
    if not isinstance(value, Scalar):
        raise _wrong(key, f"is no {_NAMES[kind]}")
    if kind is str and value.kind in ("string", "number"):
        return value.text
    if kind is bool and value.kind == "bool":
        return value.text == "true"
    if kind is int and value.kind in ("string", "number"):
        number = _go_int(value.text)
        if number is not None:
            return number
    shown = repr(value.text) if value.kind == "string" else value.text
    raise _wrong(key, f"{shown[:80]} is no {_NAMES[kind]}")


_NAMES: Mapping[type, str] = {int: "integer", str: "string", bool: "true or false (without quotes)"}
_INT = re.compile(r"([-+]?)(0[xX][0-9A-Fa-f]+|0[oO][0-7]+|0[bB][01]+|0[0-7]*|[1-9][0-9]*)", re.ASCII)


def _go_int(text: str) -> int | None:
    """An integer as Go's ``strconv.ParseInt(text, 0, 0)`` takes it: 010 is 8; ``None`` for what is none.

    A single ``_`` may part digits, and follow the prefix that names their base.
    """
    if "_" in text:
        based = bool(re.match(r"[-+]?0", text))
        if not re.fullmatch(r"[-+]?(?:0[xXoObB]_?)?[0-9A-Fa-f]+(?:_[0-9A-Fa-f]+)*", text) or "__" in text:
            return None
        if not based and not re.fullmatch(r"[-+]?[0-9]+(?:_[0-9]+)*", text):
            return None
        text = text.replace("_", "")
    found = _INT.fullmatch(text)
    if found is None or len(text) > 80:
        return None
    digits = found[2].lower()
    base = {"0x": 16, "0o": 8, "0b": 2}.get(digits[:2]) or (8 if digits[0] == "0" else 10)
    number = int(found[1] + digits, base)
    return number if -(1 << 63) <= number < 1 << 63 else None


_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION = re.compile(r"([-+]?)((?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+|0)", re.ASCII)
_PART = re.compile(r"([0-9.]+)(ns|us|µs|μs|ms|s|m|h)")


def seconds(key: str, text: str) -> float:
    """A duration as Go's ``time.ParseDuration`` takes it, in seconds. Raises UsageError for ``key``."""
    found = _DURATION.fullmatch(text) if len(text) <= 100 else None
    if found is None:
        raise _wrong(key, f"{text[:80]!r} is no duration: say 500ms, 2s or 1m")
    total = sum(Decimal(number) * _UNITS[unit] for number, unit in _PART.findall(found[2]))
    if total >= 1 << 63:
        raise _wrong(key, f"{text!r} is too long")
    return float(total) / 1e9 * (-1 if found[1] == "-" else 1)


def _config(values: dict[str, Any], environ: Mapping[str, str]) -> PluginConfig:
    get = values.get
    if get("use_new_container_locator") is False:
        raise _wrong("use_new_container_locator", f"use_new_container_locator = false {_ELSEWHERE}")
    if get("disable_kubelet_client"):
        for key in _KUBELET:
            if key != "disable_container_selectors" and get(key):
                raise _wrong(key, f"{key} cannot be used beside disable_kubelet_client")
    read_only, secure = _port(values, "kubelet_read_only_port"), _port(values, "kubelet_secure_port")
    if read_only is not None and secure is not None:
        both = "kubelet_read_only_port, kubelet_secure_port"
        raise _wrong(both, "cannot use both the read-only and secure port")
    certificate, key_path = get("certificate_path") or None, get("private_key_path") or None
    if read_only is None and not get("use_anonymous_authentication") and (certificate is None) != (key_path is None):
        if key_path is None:
            raise _wrong("private_key_path", "the private key path is required with the certificate path")
        raise _wrong("certificate_path", "the certificate path is required with the private key path")
    mode = get("mode", "strict")
    if mode not in ("strict", "parity"):
        raise _wrong("mode", f"{mode[:80]!r} is neither strict nor parity")
    attempts = get("max_poll_attempts", 0)
    return PluginConfig(
        kubelet_read_only_port=read_only,
        kubelet_secure_port=None if read_only is not None else secure or SECURE_PORT,
        kubelet_ca_path=get("kubelet_ca_path") or CA_PATH,
        skip_kubelet_verification=get("skip_kubelet_verification", False),
        token_path=get("token_path") or TOKEN_PATH,
        certificate_path=certificate,
        private_key_path=key_path,
        use_anonymous_authentication=get("use_anonymous_authentication", False),
        node_name=_node_name(values, environ),
        max_poll_attempts=attempts if attempts > 0 else MAX_POLL_ATTEMPTS,
        poll_retry_interval=_span(values, "poll_retry_interval", POLL_RETRY_INTERVAL),
        reload_interval=_span(values, "reload_interval", RELOAD_INTERVAL),
        disable_container_selectors=get("disable_container_selectors", False),
        enable_namespace_labels=get("enable_namespace_labels", False),
        disable_kubelet_client=get("disable_kubelet_client", False),
        socket_path=_socket_path(get("socket_path")),
        fallback=get("fallback", True),
        mode="parity" if mode == "parity" else "strict",
        pod_images_wait=_images_wait(get("pod_images_wait")),
        ephemeral_containers=get("ephemeral_containers", False),
    )


def _port(values: dict[str, Any], key: str) -> int | None:
    port: int = values.get(key, 0)
    if port > 65535:
        raise _wrong(key, f"{port} is no port")
    return port if port > 0 else None


def _span(values: dict[str, Any], key: str, default: float) -> float:
    text = values.get(key)
    span = seconds(key, text) if text else 0.0
    return min(span, _LONGEST) if span > 0 else default


def _images_wait(text: str | None) -> float:
    return POD_IMAGES_WAIT if not text else min(max(0.0, seconds("pod_images_wait", text)), _LONGEST)


def _node_name(values: dict[str, Any], environ: Mapping[str, str]) -> str | None:
    name: str = values.get("node_name") or ""
    if not name:
        name = environ.get(values.get("node_name_env") or "MY_NODE_NAME", "")
    return name or None


def _socket_path(path: str | None) -> str | None:
    if not path:
        return None
    path = path.removeprefix("unix://")
    if not path.startswith("/") or len(os.fsencode(path)) > 107:
        raise _wrong("socket_path", f"{path[:120]!r} is no path of a socket: it is absolute, and 107 bytes at most")
    return path


def _wrong(key: str, what: str) -> UsageError:
    return UsageError(what, key, _HINT)
