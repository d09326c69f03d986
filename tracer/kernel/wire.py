"""The layouts of ``bpf/tracer.h``, for reading. A test compares them with the header, size by size."""

from __future__ import annotations

import struct

WIRE_VERSION = 1
SLOT_COUNT = 1 << 17
PROCESS_RING_PAGES = 256
CGROUP_RING_PAGES = 64

V2 = 0xFFFFFFFF  # in place of a controller's number: the v2 hierarchy

SLOT = struct.Struct("<3Q")  # tag, ino, cgroup
HASH_SLOT = struct.Struct("<4Q")  # and turns
PROCESS = struct.Struct("<4I5Q16s")  # kind, pid, ppid, hierarchy, time, start, ino, cgroup, arg, comm
CGROUP = struct.Struct("<2I3Q2I256s")  # kind, hierarchy, time, id, parent, level, name_size, name
HEADER = struct.Struct("<4I")  # version, subsys_count, ns_level, ns_inum
HIERARCHY = struct.Struct("<2IQ")  # subsys, hierarchy, root
CONFIG = struct.Struct("<Q8I")  # tracked, ns_level, ns_inum, all_births, report_unseen, scan, version, all_moves

# enum counter
COUNTERS = ("lost_process", "lost_cgroup", "lost_slot", "unstable", "overtaken", "spilled")
COUNTER_COUNT = 8
