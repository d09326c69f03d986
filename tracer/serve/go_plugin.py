"""The plugin's side of hashicorp/go-plugin: what a host expects of every plugin, whatever it is for.

The host starts the plugin with a cookie in its environment, reads ``1|1|unix|PATH|grpc`` from its stdout, and connects
there. Then it opens two streams, of the broker and of what the plugin prints, which stay open and empty; at the end it
says Shutdown, and kills what is there two seconds later. The plugin ignores SIGINT, which a terminal sends to all of a
group, and ends when the host does.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracer.errors import MissingError, UsageError

if TYPE_CHECKING:
    import grpc

COOKIE = "WorkloadAttestor"
"""The name and the value of the variable by which a host says that it is one."""

_HANDSHAKE = "1|1|unix|{}|grpc\n"  # protocol of go-plugin, of the plugin, network, address, and what is spoken there
_LONGEST_PATH = 107
_GRACE = 0.25  # seconds for what is being answered, after Shutdown
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", 10_000),  # for who connects and says nothing
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.optimization_target", "latency"),
)


def check_host(environ: Mapping[str, str] = os.environ) -> None:
    """Raises UsageError where no host that we can serve has started us."""
    if environ.get(COOKIE) != COOKIE:
        hint = "name it as plugin_cmd in the agent's configuration; podtracer spire-plugin --help has an example"
        raise UsageError("this is a plugin: SPIRE's agent starts it", "podtracer spire-plugin", hint)
    if environ.get("PLUGIN_CLIENT_CERT"):
        raise UsageError("the host wants TLS, which SPIRE's agent does not", "PLUGIN_CLIENT_CERT", None)


async def serve(
    handlers: Sequence[grpc.GenericRpcHandler],
    *,
    parent: int,
    say: Callable[[str], None] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Serve until the host says Shutdown, the process ``parent`` has ended, or SIGTERM comes.

    ``say`` gets the handshake line, else stdout. Raises MissingError where no socket can be made, OSError when the host
    does not take the line.
    """
    from grpc import aio

    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    watch = _watch_parent(parent, ended)
    folder = _private_folder(environ)
    server = aio.server(options=_OPTIONS)
    try:
        server.add_generic_rpc_handlers((*handlers, *_own_handlers(ended)))
        path = f"{folder}/plugin"
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        (say or _say)(_HANDSHAKE.format(path))
        await ended.wait()
    finally:
        await server.stop(_GRACE)
        shutil.rmtree(folder, ignore_errors=True)
        if watch is not None:
            asyncio.get_running_loop().remove_reader(watch)
            os.close(watch)


def _say(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


def _watch_parent(parent: int, ended: asyncio.Event) -> int | None:
    """A pidfd of the parent, which sets ``ended`` when it has ended; set now if it has already."""
    try:
        fd = os.pidfd_open(parent)
    except ProcessLookupError:
        ended.set()
        return None
    except OSError:  # of another PID namespace (0): whoever it is, it is not gone
        return None
    asyncio.get_running_loop().add_reader(fd, ended.set)
    if os.getppid() != parent:
        ended.set()
    return fd


def _private_folder(environ: Mapping[str, str]) -> str:
    """A new folder that nobody else can look into; where the host names a place for it, there."""
    try:
        folder = tempfile.mkdtemp(prefix="podtracer-", dir=environ.get("PLUGIN_UNIX_SOCKET_DIR") or None)
    except OSError as error:
        hint = "make room, or set TMPDIR to a folder that can be written"
        raise MissingError(f"no folder for the socket: {error.strerror}", error.filename, hint) from error
    if len(os.fsencode(folder)) + len("/plugin") > _LONGEST_PATH:
        os.rmdir(folder)
        raise MissingError("the path is too long for a socket", folder, "set TMPDIR to a folder with a shorter path")
    return folder


def _own_handlers(ended: asyncio.Event) -> list[grpc.GenericRpcHandler]:
    import grpc

    from tracer.serve import spire_messages as messages

    serving = messages.health.HealthCheckResponse(status=1)

    async def broker(requests: Any, _context: Any) -> None:
        async for _ in requests:
            pass  # services of the host's that nobody here asks for
        await ended.wait()

    async def stdio(_request: Any, _context: Any) -> None:
        await ended.wait()

    async def shutdown(_request: Any, _context: Any) -> Any:
        ended.set()
        return messages.plugin.Empty()

    async def check(request: Any, context: Any) -> Any:
        if request.service not in ("", "plugin"):
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return serving

    return [
        grpc.method_handlers_generic_handler(service, {name: handler})
        for service, name, handler in (
            (
                messages.BROKER,
                "StartStream",
                grpc.stream_stream_rpc_method_handler(
                    broker,
                    request_deserializer=messages.plugin.ConnInfo.FromString,
                    response_serializer=messages.plugin.ConnInfo.SerializeToString,
                ),
            ),
            (
                messages.STDIO,
                "StreamStdio",
                grpc.unary_stream_rpc_method_handler(
                    stdio, response_serializer=messages.plugin.StdioData.SerializeToString
                ),
            ),
            (
                messages.CONTROLLER,
                "Shutdown",
                grpc.unary_unary_rpc_method_handler(
                    shutdown, response_serializer=messages.plugin.Empty.SerializeToString
                ),
            ),
            (
                messages.HEALTH,
                "Check",
                grpc.unary_unary_rpc_method_handler(
                    check,
                    request_deserializer=messages.health.HealthCheckRequest.FromString,
                    response_serializer=messages.health.HealthCheckResponse.SerializeToString,
                ),
            ),
        )
    ]
