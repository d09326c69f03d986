"""The short-lived child that compiles and loads the programs, and hands their descriptors over.

LLVM leaves some 110 MB resident and BCC changes the working directory, so neither happens in the tracer's own
process: ``python -m tracer.kernel.compiler FD`` reads a request from the socket FD, answers it with SCM_RIGHTS, and is
gone. The maps and programs live on by their descriptors.
"""

from __future__ import annotations

# What is imported here counts while the compiler wants all there is: neither typing nor socket, which take 0.8 MB.
import _socket
import errno
import json
import os
import sys
from array import array

from tracer.errors import TracerError
from tracer.kernel import btf
from tracer.kernel.memory import give_back

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROGRAMS = ("fork", "exec", "exit", "attach", "transfer", "mkdir", "rmdir", "release", "rename")
MAPS = ("settings", "counters", "spill", "processes", "cgroups")
_RAW_TRACEPOINT, _TRACING = 17, 26


def _load(request: dict[str, Any], flags: list[str], *, table: bool) -> tuple[dict[str, int], str | None]:
    """(descriptors by name, why there is no iterator). Raises whatever BCC raises where the rest does not load."""
    from bcc import BPF

    sources = request["sources"]
    os.environ["BCC_KERNEL_SOURCE"] = sources
    give_back()
    cflags = [*flags, f"-I{sources}", *(["-DTRACER_TABLE"] if table else []), *request["flags"]]
    module = BPF(src_file=os.path.join(sources, "tracer.bpf.c").encode(), cflags=cflags)
    # The compiler is done; what it freed is 17 MB, and loading the iterator wants 12 of them for the kernel's BTF.
    give_back()
    fds = {f"map:{name}": module[name].map_fd for name in (*MAPS, *(("table",) if table else ()))}
    for name in PROGRAMS:
        fds[f"program:{name}"] = module.load_func(f"on_{name}", _RAW_TRACEPOINT).fd
    missing = "forced" if "procfs" in request["force"] else None
    if not missing:
        try:
            fds["program:iterator"] = module.load_func("bpf_iter__task", _TRACING).fd
        except Exception as error:
            missing = str(error).splitlines()[0]
    # Kept alive until the descriptors are sent: BCC closes them with its object.
    _load.module = module  # type: ignore[attr-defined]
    return fds, missing


def _layout(path: str) -> tuple[dict[str, int], dict[str, int]]:
    """(macros, controllers). The BTF itself, some 12 MB, is let go before the compiler wants its own 50."""
    kernel = btf.read(path)
    return btf.macros(kernel), btf.controllers(kernel)


def _serve(request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    values, controllers = _layout(request["btf"])
    try:
        import bcc  # noqa: F401
    except ImportError as error:
        return {"error": "bcc", "detail": str(error)}, []
    if "O_PID_INO" in values and "starttime" not in request["force"]:
        flags = [*btf.flags(values), "-DTRACER_PIDFS"]
    else:
        flags = btf.flags({name: value for name, value in values.items() if name != "O_PID_INO"})
    answer: dict[str, Any] = {
        "pidfs": "-DTRACER_PIDFS" in flags,
        "controllers": controllers,
        "no_table": request["no_table"],
    }
    if not answer["no_table"]:
        try:
            fds, answer["no_iterator"] = _load(request, flags, table=True)
        except Exception as error:
            # Whatever is wrong with more than the table is wrong with the hash too.
            answer["no_table"] = str(error).splitlines()[0]
    if answer["no_table"]:
        fds, answer["no_iterator"] = _load(request, flags, table=False)
    answer["names"] = list(fds)
    return answer, list(fds.values())


def _permission(error: Exception) -> bool:
    return (isinstance(error, OSError) and error.errno == errno.EPERM) or "Operation not permitted" in str(error)


def main() -> None:
    """Answers one request and ends without BCC's clean-up, which would only undo what was handed over."""
    channel = _socket.socket(fileno=int(sys.argv[1]))
    request = json.loads(channel.recv(1 << 16))
    fds: list[int] = []
    try:
        answer, fds = _serve(request)
    except TracerError as error:
        answer = {"error": "known", "what": error.what, "object": error.obj, "hint": error.hint}
    except Exception as error:
        kind = "permission" if _permission(error) else "load"
        answer = {"error": kind, "detail": f"{type(error).__name__}: {error}"}
    along = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array("i", fds))] if fds else []
    channel.sendmsg([json.dumps(answer).encode()], along)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
