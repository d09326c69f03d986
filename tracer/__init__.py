"""podtracer: which Kubernetes workload is this process?

``from tracer import Tracer`` gives the whole tracer to a program; the import is lazy, so that parts which need
little load little.
"""

from __future__ import annotations

from tracer.version import __version__

TYPE_CHECKING = False  # not imported: the compiler's process has no room for typing
if TYPE_CHECKING:
    from tracer.node import Tracer

__all__ = ["Tracer", "__version__"]


def __getattr__(name: str) -> object:
    if name == "Tracer":
        from tracer.node import Tracer

        return Tracer
    raise AttributeError(f"module 'tracer' has no attribute {name!r}")
