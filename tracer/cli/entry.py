"""Where the command starts: before what takes time to import, so that Ctrl-C is quiet from the first moment."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command in ``sys.argv``; its exit code, 130 when it was interrupted before it began."""
    try:
        from tracer.cli.main import main as run
    except KeyboardInterrupt:
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
