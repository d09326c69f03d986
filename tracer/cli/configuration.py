"""Where a value comes from: flag, environment, configuration file, default, in this order."""

from __future__ import annotations

import errno
import os
import select
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from tracer.cli.params import Duration, Names, OneOf, ParamType, SelectorSets, Text, Truth, Whole
from tracer.cli.quote import quote
from tracer.errors import UsageError
from tracer.protocol import DEFAULT_SOCKET
from tracer.settings import Settings

DEFAULT_FILE = "/etc/podtracer/config.yaml"
_MOST_BYTES = 1 << 20
_PIPE_WAIT = 5000  # milliseconds


@dataclass(frozen=True, slots=True)
class Option:
    """A value that can be configured.

    ``key`` names it everywhere: ``--key``, ``PODTRACER_KEY`` (upper case, underscores), ``key:`` in the file.
    ``field`` is its place in :class:`Settings`, ``None`` for what concerns the command line only.
    """

    key: str
    type: ParamType
    default: Any
    help: str
    section: str
    field: str | None = None
    metavar: str | None = None
    short: str | None = None
    fallbacks: tuple[str, ...] = ()  # environment variables of others, after our own and the file

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "PODTRACER_" + self.key.upper().replace("-", "_")


@dataclass(frozen=True, slots=True)
class Value:
    """A value and where it came from, in words."""

    value: Any
    origin: str


def _setting(key: str, type_: ParamType, help_: str, metavar: str | None = None, **more: Any) -> Option:
    field = key.replace("-", "_")
    default = Settings.__dataclass_fields__[field].default
    return Option(key, type_, default, help_, more.pop("section", "Pod data"), field, metavar, **more)


POD_DATA = (
    _setting("kubelet", OneOf("auto", "none"), "Ask the kubelet of this node for its pods."),
    _setting("kubelet-read-only-port", Whole(1, 65535), "The kubelet port that wants no credential.", "PORT"),
    _setting("kubelet-secure-port", Whole(1, 65535), "The kubelet port that wants one, usually 10250.", "PORT"),
    _setting("kubelet-ca-path", Text(), "Who may have signed the kubelet's certificate.", "F"),
    _setting("skip-kubelet-verification", Truth(), "Trust whatever certificate the kubelet has."),
    _setting("token-path", Text(), "Token for the secure port.", "F"),
    _setting("certificate-path", Text(), "Client certificate for the secure port, instead of a token.", "F"),
    _setting("private-key-path", Text(), "Its private key.", "F"),
    _setting("use-anonymous-authentication", Truth(), "Show the secure port neither."),
    _setting("cri", Text(), "Ask the container runtime: auto, none or unix:///PATH.", "SOCKET"),
    _setting("pods-api", Text(), "Ask the kubelet's Pods API: auto, none or unix:///PATH.", "SOCKET"),
    _setting(
        "node-name", Text(), "Name of this node, which the kubelet's certificate then has to bear.", "NAME",
        fallbacks=("MY_NODE_NAME", "NODE_NAME"),
    ),
    Option(
        "node-name-env", Text(), "MY_NODE_NAME", "Environment variable that holds the name of this node.",
        "Pod data", metavar="VAR",
    ),
    _setting("refresh-interval", Duration(), "Time between two requests for the pod list.", "D"),
    _setting("pods-max-stale", Duration(), "Age from which pod data is not trusted any more.", "D"),
    _setting("max-poll-attempts", Whole(1, 1_000_000), "Attempts to find a container in the pod list.", "N"),
    _setting("poll-retry-interval", Duration(), "Time between two such attempts.", "D"),
    _setting("reload-interval", Duration(), "Time after which token, certificate and CA are read anew.", "D"),
    _setting("cgroup-prefix", Text(), "Part of the cgroup tree in which pods are looked for.", "PATH"),
    _setting("mode", OneOf("strict", "parity"), "Rule by which a cgroup path is read."),
    _setting("disable-container-selectors", Truth(), "Give selectors of the pod, none of the container."),
    _setting("ephemeral-containers", Truth(), "Give ephemeral containers selectors, which SPIRE does not."),
    _setting("enable-namespace-labels", Truth(), "Give selectors of the namespace's labels, from the API server."),
    _setting("entries-file", Text(), "Registration entries of SPIRE's server, to show SPIFFE IDs by.", "F"),
    _setting("agent-id", Text(), "Only entries of the SPIRE agent with this SPIFFE ID.", "SPIFFE_ID"),
)  # fmt: skip
GLOBAL = (
    Option("color", OneOf("auto", "always", "never"), "auto", "When to write colour.", "Global"),
    _setting("procfs", Text(), "Where procfs is mounted.", "DIR", section="Global"),
    _setting("cgroupfs", Text(), "Where the cgroup file systems are mounted.", "DIR", section="Global"),
    Option("socket", Text(), DEFAULT_SOCKET, "Socket of the daemon to ask.", "Global", metavar="PATH"),
    Option("standalone", Truth(), False, "Ask no daemon.", "Global"),
)
DAEMON = (
    Option(
        "http-address", Text(), "127.0.0.1:9469", "Where health and metrics are served, or none.",
        "Daemon", metavar="HOST:PORT",
    ),
    Option("socket-group", Text(), "podtracer", "Group whose members may ask about others.", "Daemon", metavar="GROUP"),
    Option(
        "socket-allow", SelectorSets(), (), "Pods with all of these selectors may ask about others; may recur.",
        "Daemon", metavar="SELECTORS",
    ),
)  # fmt: skip
FILTER = (
    Option(
        "namespace", Names(), (), "Only these namespaces; repeat it, or part them by commas.",
        "Filters", metavar="NS", short="-n",
    ),
)  # fmt: skip
OPTIONS = {option.key: option for option in (*FILTER, *POD_DATA, *DAEMON, *GLOBAL)}


def read_file(path: str | None) -> tuple[str, dict[str, Any]]:
    """The configuration file's path and entries; only a file that was named must be there."""
    name = path or DEFAULT_FILE
    try:
        body = _read(name)
    except (FileNotFoundError, NotADirectoryError) as error:
        if path is None:
            return name, {}
        raise UsageError("no such configuration file", quote(name), "give the path of a YAML file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"the configuration cannot be read: {reason}", quote(name), "check its path and mode"
        ) from error
    if len(body) > _MOST_BYTES:
        raise UsageError("the configuration is larger than 1 MiB", quote(name), "give a file of keys and values")
    return name, _entries(name, body)


def _read(name: str) -> bytes:
    """At most a byte more than what is allowed. A pipe is read to its end, but nobody waits for one to come: opened in
    the usual way it would hang for ever."""
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb", buffering=0) as file:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return file.read(_MOST_BYTES + 1)
        body = bytearray()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while len(body) <= _MOST_BYTES:
            if not poll.poll(_PIPE_WAIT):
                raise OSError(errno.ETIMEDOUT, "nobody writes to it")
            more = file.read(_MOST_BYTES + 1 - len(body))
            if not more:
                break
            body += more
    if not body:
        raise OSError(errno.ENODATA, "nobody writes to it")
    return bytes(body)


def _entries(name: str, body: bytes) -> dict[str, Any]:
    import yaml  # only those who have a file pay for it

    hint = "write one 'key: value' a line, such as 'refresh-interval: 10s'"
    try:
        node = yaml.compose(body, Loader=yaml.SafeLoader)
        _check_keys(name, node, hint)
        entries = yaml.safe_load(body)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(f"the configuration is no YAML: {error.problem}{where}", quote(name), hint) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError("the configuration is no YAML", quote(name), hint) from error
    if entries is None:
        return {}
    if not isinstance(entries, dict):
        raise UsageError("the configuration is no mapping of keys to values", quote(name), hint)
    for key in entries:
        if key not in OPTIONS:
            import difflib  # for a wrong word alone

            close = difflib.get_close_matches(str(key).replace("_", "-"), OPTIONS, 1)
            hint = f"did you mean {close[0]}?" if close else "podtracer config shows all keys"
            raise UsageError(f"unknown key '{key}' in the configuration", quote(name), hint)
    return entries


def _check_keys(name: str, node: Any, hint: str) -> None:
    """YAML allows no key twice; its reader takes the last one, and says nothing."""
    seen = set()
    for key, _ in node.value if getattr(node, "id", None) == "mapping" else ():
        text = str(key.value)
        if text in seen:
            mark = key.start_mark
            where = f"at line {mark.line + 1}, column {mark.column + 1}"
            raise UsageError(f"the key {quote(text)} stands in the configuration twice, {where}", quote(name), hint)
        seen.add(text)


def resolve(flags: Mapping[str, Any], environ: Mapping[str, str], config: str | None) -> dict[str, Value]:
    """Each option's value and origin; ``flags`` holds what the command line said, already converted."""
    config = config or environ.get("PODTRACER_CONFIG") or None
    name, entries = read_file(config)
    values = {}
    for key, option in OPTIONS.items():
        if key in flags:
            values[key] = Value(flags[key], "flag")
        elif environ.get(option.variable):
            values[key] = _converted(
                option, environ[option.variable], option.variable, f"environment {option.variable}"
            )
        elif entries.get(key) is not None:
            values[key] = _converted(option, entries[key], f"{name}: {key}", f"file {name}")
        else:
            values[key] = Value(option.default, "default")
            for variable in option.fallbacks:
                if environ.get(variable):
                    values[key] = _converted(option, environ[variable], variable, f"environment {variable}")
                    break
    _name_node(values, environ)
    return values


def _name_node(values: dict[str, Value], environ: Mapping[str, str]) -> None:
    """The variable that node-name-env names, before the usual ones but after a name that was given."""
    name = values["node-name"]
    variable = values["node-name-env"].value
    usual = ("default", *(f"environment {fallback}" for fallback in OPTIONS["node-name"].fallbacks))
    if name.origin in usual and environ.get(variable):
        values["node-name"] = _converted(OPTIONS["node-name"], environ[variable], variable, f"environment {variable}")


def _converted(option: Option, raw: Any, obj: str, origin: str) -> Value:
    try:
        return Value(option.type.convert(raw, None, None), origin)
    except click.BadParameter as error:
        raise UsageError(error.message, quote(obj), f"it is what --{option.key} takes; see podtracer config") from None


def settings(values: Mapping[str, Value]) -> Settings:
    """The tracer's settings among ``values``."""
    return Settings(**{option.field: values[key].value for key, option in OPTIONS.items() if option.field})
