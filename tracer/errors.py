"""Every error that podtracer raises on purpose.

    TracerError                     exit 70
    ├── UsageError                  exit 2   what the user typed or configured
    ├── InputError                  exit 2   a file or body that is not what it should be
    ├── MissingError                exit 69  something the machine lacks: BTF, bcc, a cgroup mount, a newer kernel
    │   └── DaemonUnreachable       exit 69  no daemon accepts at the socket, or the connection to it broke
    ├── PermissionMissing           exit 77  not root, or a capability short
    ├── BusyError                   exit 75  another daemon has the socket
    ├── DaemonError                 exit 70  the daemon answered with an error; 77 where it refused
    ├── SourceError                 exit 75  a kubelet or runtime that did not answer; what was known stays
    ├── ParityError                 exit 1   SPIRE's rules end in an error for this process
    └── AttestError                 exit 75  a process that cannot be attested, now or as configured

Each carries what went wrong, with which object, and what to do next; the command line prints them as one
``error:`` and one ``hint:`` line.
"""

from __future__ import annotations

TYPE_CHECKING = False  # not imported: the compiler's process has no room for typing
if TYPE_CHECKING:
    from typing import Any


class TracerError(Exception):
    """Base of all deliberate errors.

    ``what`` says what went wrong, ``obj`` names the thing it went wrong with (a path, a flag, a URL) and
    ``hint`` what to do about it. ``exit_code`` is what a command ends with.
    """

    exit_code = 70

    def __init__(self, what: str, obj: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, obj, hint)
        self.what = what
        self.obj = obj
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what} ({self.obj})" if self.obj else self.what


class UsageError(TracerError):
    """A flag, an argument or a configuration key that cannot be used as given."""

    exit_code = 2


class InputError(TracerError):
    """A file or a response body that cannot be read as what it should be."""

    exit_code = 2


class MissingError(TracerError):
    """Something that the machine does not have and that we cannot do without."""

    exit_code = 69


class DaemonUnreachable(MissingError):  # noqa: N818 - it reads as what it says
    """No daemon accepts at the socket, or the connection to it broke and could not be made again in time."""


class PermissionMissing(TracerError):  # noqa: N818 - it reads as what it says
    """Not root, or without a capability that is needed."""

    exit_code = 77


class BusyError(TracerError):
    """Something that only one may have is another's, who is named."""

    exit_code = 75


class DaemonError(TracerError):
    """The daemon answered with an error; ``code`` is its fixed word (``bad_request``, ``permission_denied`` …).
    ``wants_pidfd`` says that it wants a pidfd in place of a number, which is one of another PID namespace."""

    wants_pidfd = False

    def __init__(self, code: str, what: str, obj: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, obj, hint)
        self.code = code
        if code == "permission_denied":
            self.exit_code = PermissionMissing.exit_code
        elif code == "not_ready":
            self.exit_code = SourceError.exit_code


class SourceError(TracerError):
    """A source of pod data failed; ``status`` is the HTTP status where there was one."""

    exit_code = 75

    def __init__(
        self, what: str, obj: str | None = None, hint: str | None = None, *, status: int | None = None
    ) -> None:
        super().__init__(what, obj, hint)
        self.status = status


class ParityError(TracerError):
    """SPIRE's rules end in an error: ``what`` is SPIRE's own message, ``code`` the name of its gRPC status.

    ``file`` (``cgroup`` or ``mountinfo``) and ``line`` say where; ``taken`` has what the lines up to there gave, empty
    where the file could not be read as what it should be.
    """

    exit_code = 1

    def __init__(self, what: str, code: str, file: str, line: int, taken: tuple[Any, ...] = ()) -> None:
        super().__init__(what, f"{file}, line {line}")
        self.code = code
        self.file = file
        self.line = line
        self.taken = taken


class AttestError(TracerError):
    """A process that is not attested: ``what`` is what SPIRE's agent is told, ``code`` the name of its gRPC status, in
    Go's spelling (``DeadlineExceeded``)."""

    exit_code = 75

    def __init__(self, code: str, what: str) -> None:
        super().__init__(what)
        self.code = code
