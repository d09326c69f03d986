"""Where the command starts."""

from __future__ import annotations

import subprocess
import sys


def test_an_interrupt_while_it_is_still_importing_is_quiet() -> None:
    """Ctrl-C before the command line is there ends with 130 and no traceback."""
    script = (
        "import sys, builtins, runpy\n"
        "real = builtins.__import__\n"
        "def interrupted(name, *rest):\n"
        "    if name == 'click': raise KeyboardInterrupt\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = interrupted\n"
        "from tracer.cli.entry import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "")
