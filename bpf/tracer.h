/* The wire contract between the programs and their reader: slots, records and settings.
 *
 * One struct, two readers: tracer/kernel/wire.py decodes the same layouts, and a test compares them size by size.
 * Change WIRE_VERSION whenever a layout or a meaning changes.
 */
#ifndef TRACER_H
#define TRACER_H

#define WIRE_VERSION 1

#define SLOT_COUNT (1 << 17)   /* slots of the tagged table, a power of two */
#define SPILL_COUNT 8192       /* live processes whose PID collides with another's in the table */
#define HASH_COUNT 65536       /* processes, where the table cannot be had and a hash serves alone */
#ifndef PROCESS_RING_PAGES
#define PROCESS_RING_PAGES 256 /* 1 MiB: some 13,000 records */
#endif
#define CGROUP_RING_PAGES 64   /* 256 KiB: some 860 births */
#define NAME_SIZE 256          /* a cgroup's own name, at most 255 bytes and a NUL */
#define COMM_SIZE 16

/* Where a process is: the truth. Valid while ino is not 0; the reader reads ino, the rest, and ino again.
 * tag is pid | hierarchy << 32, so that a cgroup id can never be taken for one of another hierarchy. */
struct slot {
	u64 tag;
	u64 ino;
	u64 cgroup;
#ifndef TRACER_TABLE
	u64 turns; /* of writing; a barrier for kernels without fetching atomics */
#endif
};

enum process_kind { PROCESS_FORK = 1, PROCESS_EXEC, PROCESS_EXIT, PROCESS_ATTACH, PROCESS_SCAN };

/* News of a process. arg: the wait status for EXIT, the id of the cgroup left behind for ATTACH. */
struct process_record {
	u32 kind;
	u32 pid;
	u32 ppid;
	u32 hierarchy;
	u64 time;
	u64 start;
	u64 ino;
	u64 cgroup;
	u64 arg;
	char comm[COMM_SIZE];
};

enum cgroup_kind { CGROUP_MKDIR = 1, CGROUP_RMDIR, CGROUP_RELEASE, CGROUP_RENAME };

/* News of a cgroup: its own name and its parent's id, never a path, so that nothing is ever cut. */
struct cgroup_record {
	u32 kind;
	u32 hierarchy;
	u64 time;
	u64 id;
	u64 parent;
	u32 level;
	u32 name_size;
	char name[NAME_SIZE];
};

/* What the iterator writes before its first task: who reads, and each hierarchy's number and root. */
struct scan_header {
	u32 version;
	u32 subsys_count; /* hierarchy_record's that follow, the last of them v2's */
	u32 ns_level;     /* of the reader's PID namespace */
	u32 ns_inum;
};

struct hierarchy_record {
	u32 subsys; /* number in enum cgroup_subsys_id; ~0 for v2 */
	u32 hierarchy;
	u64 root; /* kernfs id of the root cgroup */
};

/* Hexadecimal digits of a container's ID. */
#define CONTAINER_ID_SIZE 64

/* Settings that the programs read at each event. */
struct config {
	u64 tracked;       /* id of the tracked hierarchy (0: v2) | subsys that finds it (~0: v2) << 32 */
	u32 ns_level;      /* PID namespace whose numbers are used; 0: the initial one */
	u32 ns_inum;
	u32 all_births;    /* also report births on other hierarchies, of names that have room for a container's ID */
	u32 report_unseen; /* also report exits and moves of processes without a slot (no iterator) */
	u32 scan;          /* the iterator: 0 writes the header only, 1 the slots and a record for each process */
	u32 version;
	u32 all_moves;     /* report moves on every hierarchy: SPIRE's rules read them all */
	u32 unused;
};

/* Counters, one u64 each. */
enum counter {
	LOST_PROCESS = 0, /* process records that found no room in the ring */
	LOST_CGROUP,      /* cgroup records likewise */
	LOST_SLOT,        /* processes for which neither table nor spill had room */
	UNSTABLE,         /* slots left empty since the process kept moving while they were written */
	OVERTAKEN,        /* slots emptied since they changed hands while a move was stored */
	SPILLED,          /* processes that went to the spill hash */
	COUNTER_COUNT = 8,
};

#endif
