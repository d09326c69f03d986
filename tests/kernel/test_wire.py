"""One struct, two readers: ``bpf/tracer.h`` and the decoder."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tracer.kernel import wire
from tracer.kernel.loader import sources
from tracer.model import CgroupEventKind, ProcessEventKind

PROGRAM = """
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
typedef uint32_t u32; typedef uint64_t u64;
#define TRACER_TABLE
#include "tracer.h"
#define SIZE(s) printf("%s %zu\\n", #s, sizeof(struct s))
#define AT(s, f) printf("%s.%s %zu\\n", #s, #f, offsetof(struct s, f))
#define VALUE(v) printf("%s %d\\n", #v, (int)(v))
int main(void) {
    SIZE(slot); SIZE(process_record); SIZE(cgroup_record); SIZE(scan_header); SIZE(hierarchy_record); SIZE(config);
    AT(slot, tag); AT(slot, ino); AT(slot, cgroup);
    AT(process_record, kind); AT(process_record, pid); AT(process_record, ppid); AT(process_record, hierarchy);
    AT(process_record, time); AT(process_record, start); AT(process_record, ino); AT(process_record, cgroup);
    AT(process_record, arg); AT(process_record, comm);
    AT(cgroup_record, kind); AT(cgroup_record, hierarchy); AT(cgroup_record, time); AT(cgroup_record, id);
    AT(cgroup_record, parent); AT(cgroup_record, level); AT(cgroup_record, name_size); AT(cgroup_record, name);
    AT(config, tracked); AT(config, ns_level); AT(config, ns_inum); AT(config, all_births);
    AT(config, report_unseen); AT(config, scan); AT(config, version); AT(config, all_moves);
    AT(config, unused);
    VALUE(WIRE_VERSION); VALUE(SLOT_COUNT); VALUE(PROCESS_RING_PAGES); VALUE(CGROUP_RING_PAGES);
    VALUE(COUNTER_COUNT); VALUE(LOST_PROCESS); VALUE(LOST_CGROUP); VALUE(LOST_SLOT); VALUE(UNSTABLE);
    VALUE(OVERTAKEN); VALUE(SPILLED);
    VALUE(PROCESS_FORK); VALUE(PROCESS_EXEC); VALUE(PROCESS_EXIT); VALUE(PROCESS_ATTACH); VALUE(PROCESS_SCAN);
    VALUE(CGROUP_MKDIR); VALUE(CGROUP_RMDIR); VALUE(CGROUP_RELEASE); VALUE(CGROUP_RENAME);
    return 0;
}
"""


def _header(folder: Path) -> dict[str, int]:
    source, out = folder / "layout.c", folder / "layout"
    source.write_text(PROGRAM)
    subprocess.run(["gcc", "-Wall", "-Werror", f"-I{sources()}", "-o", out, source], check=True, timeout=60)
    lines = subprocess.run([out], check=True, capture_output=True, text=True, timeout=10).stdout.splitlines()
    return {name: int(value) for name, value in (line.split() for line in lines)}


def _offsets(layout: str) -> list[int]:
    """Offsets of the fields of a struct format without padding."""
    sizes = {"I": 4, "Q": 8}
    offsets, at = [], 0
    for number, code in re.findall(r"(\d*)([IQs])", layout):
        for _ in range(1 if code == "s" else int(number or 1)):
            offsets.append(at)
            at += int(number) if code == "s" else sizes[code]
    return offsets


def test_the_decoder_reads_the_structs_of_the_header(tmp_path: Path) -> None:
    """Every size and every offset that the decoder uses is the one that the header's compiler uses."""
    c = _header(tmp_path)
    fields = {
        "slot": (wire.SLOT, ["tag", "ino", "cgroup"]),
        "process_record": (
            wire.PROCESS,
            ["kind", "pid", "ppid", "hierarchy", "time", "start", "ino", "cgroup", "arg", "comm"],
        ),
        "cgroup_record": (
            wire.CGROUP,
            ["kind", "hierarchy", "time", "id", "parent", "level", "name_size", "name"],
        ),
        "config": (
            wire.CONFIG,
            ["tracked", "ns_level", "ns_inum", "all_births", "report_unseen", "scan", "version", "all_moves", "unused"],
        ),
    }
    for struct, (layout, names) in fields.items():
        assert layout.size == c[struct]
        assert _offsets(layout.format) == [c[f"{struct}.{name}"] for name in names]
    assert wire.HEADER.size == c["scan_header"]
    assert wire.HIERARCHY.size == c["hierarchy_record"]


def test_the_constants_of_both_sides_are_equal(tmp_path: Path) -> None:
    """Versions, sizes of maps, counters and kinds of records have the same numbers on both sides."""
    c = _header(tmp_path)
    for name in ("WIRE_VERSION", "SLOT_COUNT", "PROCESS_RING_PAGES", "CGROUP_RING_PAGES", "COUNTER_COUNT"):
        assert getattr(wire, name) == c[name]
    assert [c[name.upper()] for name in wire.COUNTERS] == list(range(len(wire.COUNTERS)))
    assert {kind.name: c[f"PROCESS_{kind.name}"] for kind in ProcessEventKind} == ProcessEventKind.__members__
    assert {kind.name: c[f"CGROUP_{kind.name}"] for kind in CgroupEventKind} == CgroupEventKind.__members__
