"""Runs ``podtracer demo`` on a pseudo-terminal and draws what it printed as an SVG: ``picture.py OUT.svg``."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from html import escape
from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

COLUMNS, ROWS = 110, 34
COMMAND = "podtracer demo --no-snapshot"
SECONDS = 6
CHAR, LINE, EDGE, TOP = 8.43, 20, 18, 46  # pixels
INK, PAPER, FAINT = "#c9d1d9", "#11161f", "#6e7681"
THEME = TerminalTheme(
    (17, 22, 31),
    (201, 209, 217),
    [(72, 79, 88), (255, 123, 114), (86, 211, 100), (227, 179, 65), (88, 166, 255), (188, 140, 255), (57, 197, 207),
     (201, 209, 217)],
)  # fmt: skip
# No font from elsewhere: whoever shows the picture has one of these.
HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>{title}</title>
<style>text {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 14px; }}</style>
<rect width="{width}" height="{height}" rx="10" fill="{paper}"/>
<circle cx="22" cy="20" r="6" fill="#ff5f57"/><circle cx="42" cy="20" r="6" fill="#febc2e"/>
<circle cx="62" cy="20" r="6" fill="#28c840"/>
"""


def record(*command: str) -> str:
    """What the command prints on a terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environ = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen(command, stdout=slave, stderr=subprocess.DEVNULL, env=environ | {"TERM": "xterm"}) as child:
        os.close(slave)
        printed = b""
        with suppress(OSError):  # how a terminal says that its other end is closed
            while chunk := os.read(master, 65536):
                printed += chunk
        os.close(master)
    if child.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {child.returncode}")
    return printed.decode().replace("\r", "")


def draw(lines: list[str], title: str) -> str:
    """The lines as the screen of a terminal, in SVG; each word has its place, whatever font there is."""
    width, height = round(COLUMNS * CHAR) + 2 * EDGE, len(lines) * LINE + TOP + EDGE
    console = Console(width=COLUMNS, force_terminal=True)
    parts = [HEAD.format(width=width, height=height, title=escape(title), paper=PAPER)]
    for row, line in enumerate(lines):
        column = 0
        for text, style, _ in Text.from_ansi(line).render(console):
            for words in re.finditer(r"\S+(?: \S+)*", text):
                x, y = EDGE + (column + words.start()) * CHAR, TOP + row * LINE + 14
                parts.append(
                    f'<text x="{x:.1f}" y="{y}" textLength="{len(words[0]) * CHAR:.1f}"{look(style)}>'
                    f"{escape(words[0])}</text>\n"
                )
            column += len(text)
    return "".join(parts) + "</svg>\n"


def look(style: Style | None) -> str:
    """The attributes of a text."""
    bold = ' font-weight="bold"' if style and style.bold else ""
    if style and style.dim:
        return f'{bold} fill="{FAINT}"'
    color = style.color.get_truecolor(THEME).hex if style and style.color else INK
    return f'{bold} fill="{color}"'


if __name__ == "__main__":
    podtracer = Path(sys.executable).with_name("podtracer")
    printed = record(str(podtracer), *COMMAND.split()[1:], "--duration", f"{SECONDS}s").splitlines()
    screen = [f"\x1b[1;32m$\x1b[0m {COMMAND}", *printed][:ROWS]
    Path(sys.argv[1]).write_text(draw(screen, COMMAND))
    print(f"wrote {sys.argv[1]}")
