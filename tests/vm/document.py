"""``docs/kernels.md``: which ways the tracer takes on which kernels, as the test run found them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from tests.vm.plan import PROJECT, Case

DOCUMENT = PROJECT / "docs/kernels.md"
BEGIN, END = "<!-- written by scripts/test --kernels -->", "<!-- until here -->"
SPACES = {"bookworm": "Debian 12", "trixie": "Debian 13", "sid": "Debian sid"}
TITLES = (
    *("Linux", "cgroups", "CPUs", "pid_max", "user space", "bcc", "Python"),
    *("slots", "a process is told by", "what ran before", "peers by", "doctor warns of"),
)
HEAD = f"| {' | '.join(TITLES)} |\n{'| --- ' * len(TITLES)}|\n"


def known(case: Case) -> tuple[str, ...]:
    """The cells that tell a machine from the others, but for the first: how new its kernel is may change."""
    return case.layout, str(case.cpus), f"{case.pid_max:,}", SPACES[case.space]


def row(case: Case, found: Mapping[str, Any]) -> str:
    """A line of the table. No patch levels: they change every week, and nothing with them."""
    series = ".".join(found["release"].split(".")[:2])
    cells = [
        f"{series} (sid)" if case.series == "newest" else series,
        *known(case),
        ".".join(found["bcc"].split(".")[:2]),
        ".".join(found["python"].split(".")[:2]),
        "hash" if found["no_table"] else "mapped table",
        "pidfd inode" if found["pidfs"] else "start time",
        "`/proc`" if found["no_iterator"] else "task iterator",
        "`SO_PEERPIDFD`" if found["peer_pidfd"] else "`SO_PEERCRED`",
        ", ".join(found["doctor"]) or "nothing",
    ]
    return f"| {' | '.join(cells)} |\n"


def cells(line: str) -> list[str]:
    """The cells of a line."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table(found: Mapping[Case, Mapping[str, Any] | None], before: str = "") -> str:
    """The whole table; a machine of which nothing was found, being optional, has the line that it had ``before``."""
    lines = []
    for case, ways in found.items():
        if ways is not None:
            lines.append(row(case, ways))
        else:
            lines += [line + "\n" for line in before.splitlines() if tuple(cells(line)[1:5]) == known(case)]

    def age(line: str) -> tuple[list[int], list[str]]:
        first, *rest = cells(line)
        return [int(part) for part in first.partition(" ")[0].split(".")], [rest[3], rest[0], rest[2]]

    return HEAD + "".join(sorted(lines, key=age))


def comparable(text: str) -> str:
    """Without the versions of what Debian has newest, which another day has its own of."""
    lines = text.splitlines()
    return "\n".join(re.sub(r"\b\d+\.\d+\b", "", line) if "sid" in line else line for line in lines)


def update(found: Mapping[Case, Mapping[str, Any] | None], *, only_check: bool) -> bool:
    """Puts the table into the document where it says something else; answers whether it was current, or is now."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    new = f"{before}{BEGIN}\n{table(found, text)}{END}{rest.partition(END)[2]}"
    if comparable(new) == comparable(text):
        return True
    if only_check:
        was, now = text.splitlines(), new.splitlines()
        told = difflib.unified_diff(was, now, "committed", "found", n=0, lineterm="")
        print("docs/kernels.md is not what was found: run scripts/test --kernels and commit it", *told, sep="\n")
        return False
    DOCUMENT.write_text(new, encoding="utf-8")
    print("docs/kernels.md was written anew")
    return True
