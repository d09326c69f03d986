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
HEAD = (
    "| Linux | cgroups | user space | bcc | Python | slots | a process is told by | what ran before | peers by |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
)


def row(case: Case, found: Mapping[str, Any]) -> str:
    """A line of the table. No patch levels: they change every week, and nothing with them."""
    series = ".".join(found["release"].split(".")[:2])
    cells = [
        f"{series} (sid)" if case.series == "newest" else series,
        case.layout,
        SPACES[case.space],
        ".".join(found["bcc"].split(".")[:2]),
        ".".join(found["python"].split(".")[:2]),
        "hash" if found["no_table"] else "mapped table",
        "pidfd inode" if found["pidfs"] else "start time",
        "`/proc`" if found["no_iterator"] else "task iterator",
        "`SO_PEERPIDFD`" if found["peer_pidfd"] else "`SO_PEERCRED`",
    ]
    return f"| {' | '.join(cells)} |\n"


def table(found: Mapping[Case, Mapping[str, Any]]) -> str:
    """The whole table."""

    def age(case: Case) -> tuple[list[int], str, str]:
        return [int(part) for part in found[case]["release"].split(".")[:2]], case.space, case.layout

    return HEAD + "".join(row(case, found[case]) for case in sorted(found, key=age))


def comparable(text: str) -> str:
    """Without the number of the newest kernel, which another day has its own of."""
    return re.sub(r"\S+ \(sid\)", "(sid)", text)


def update(found: Mapping[Case, Mapping[str, Any]], *, only_check: bool) -> bool:
    """Puts the table into the document where it says something else; answers whether it was current, or is now."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    new = f"{before}{BEGIN}\n{table(found)}{END}{rest.partition(END)[2]}"
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
