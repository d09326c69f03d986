/* The hooks: each fork, exec, exit and move is written to the process's slot first and told on a ring second.
 *
 * Knows nothing of pods. No kernel struct is read through a header: every offset is an O_… macro that the loader
 * takes from the running kernel's BTF, every size an S_… macro.
 *
 * Build flags
 *   TRACER_TABLE       the tagged table with a spill hash; needs xchg and cmpxchg (Linux 5.12). Without it a hash
 *                      serves alone.
 *   TRACER_PIDFS       a process is told from others of its PID by the inode of its pidfd (Linux 6.9), else by its
 *                      start time.
 *   TRACER_TEST_DELAY  turns of a delay between reading a task's cgroup and storing it, for the test of the
 *                      lost-update rule.
 */
#include <linux/types.h>
#include "tracer.h"

#define RB_NO_WAKEUP 1
#define RB_FORCE_WAKEUP 2
#define MMAPABLE 1024
#define V2 (~0U)
#define PF_EXITING 0x4
#define ATTEMPTS 4 /* a task that moves more often than this while its slot is written is left to repair */

#define READ(field) (*(volatile __typeof__(field) *)&(field))
#define WRITE(field, value) (*(volatile __typeof__(field) *)&(field) = (value))
#define LOAD(into, from) bpf_probe_read_kernel(&(into), sizeof(into), (void *)(from))

BPF_F_TABLE("array", u32, struct config, settings, 1, MMAPABLE);
BPF_F_TABLE("array", u32, u64, counters, COUNTER_COUNT, MMAPABLE);
#ifdef TRACER_TABLE
BPF_F_TABLE("array", u32, struct slot, table, SLOT_COUNT, MMAPABLE);
BPF_TABLE("hash", u32, struct slot, spill, SPILL_COUNT);
#else
BPF_TABLE("hash", u32, struct slot, spill, HASH_COUNT);
#endif
BPF_RINGBUF_OUTPUT(processes, PROCESS_RING_PAGES);
BPF_RINGBUF_OUTPUT(cgroups, CGROUP_RING_PAGES);

static __always_inline void count(u32 which)
{
	u64 *n = counters.lookup(&which);

	if (n)
		__sync_fetch_and_add(n, 1);
}

static __always_inline struct config *config(void)
{
	u32 zero = 0;

	return settings.lookup(&zero);
}

/* Stores one word of a slot, with a full barrier before anything is read again. Adding to turns is the barrier that
 * kernels without fetching atomics have too; adding 0 would not do: the compiler makes an "or" of it. */
#ifdef TRACER_TABLE
#define STORE(slot, field, value) __sync_lock_test_and_set(&(slot)->field, value)
#else
#define STORE(slot, field, value)                     \
	do {                                          \
		WRITE((slot)->field, value);          \
		__sync_fetch_and_add(&(slot)->turns, 1); \
	} while (0)
#endif

/* The tracked hierarchy and the controller that finds it, in one word, since they change together. */
#define HIERARCHY(tracked) ((u32)(tracked))
#define SUBSYS(tracked) ((u32)((tracked) >> 32))
#define TAG(tracked, pid) ((u64)HIERARCHY(tracked) << 32 | (pid))

/* ---- tasks and cgroups ---- */

static __always_inline u64 cgroup_id(void *cgroup)
{
	void *kn = 0;
	u64 id = 0;

	LOAD(kn, cgroup + O_CGROUP_KN);
	LOAD(id, kn + O_KERNFS_NODE_ID);
	return id;
}

static __always_inline u32 cgroup_hierarchy(void *cgroup)
{
	void *root = 0;
	u32 id = 0;

	LOAD(root, cgroup + O_CGROUP_ROOT);
	LOAD(id, root + O_CGROUP_ROOT_HIERARCHY_ID);
	return id;
}

static __always_inline void *set_cgroup(void *set, u32 subsys)
{
	void *state = 0, *cgroup = 0;

	if (subsys == V2) {
		LOAD(cgroup, set + O_CSS_SET_DFL_CGRP);
		return cgroup;
	}
	LOAD(state, set + O_CSS_SET_SUBSYS + 8 * (subsys & 63));
	if (!state)
		return 0;
	LOAD(cgroup, state + O_CSS_CGROUP);
	return cgroup;
}

static __always_inline u64 task_cgroup(void *task, u64 tracked)
{
	void *set = 0, *cgroup;

	LOAD(set, task + O_TASK_CGROUPS);
	cgroup = set_cgroup(set, SUBSYS(tracked));
	return cgroup ? cgroup_id(cgroup) : 0;
}

static __always_inline void *task_signal(void *task)
{
	void *signal = 0;

	LOAD(signal, task + O_TASK_SIGNAL);
	return signal;
}

/* The struct pid of the task's process, which stays when another thread takes the leader's place by exec. */
static __always_inline void *process_pid(void *signal)
{
	void *pid = 0;

	LOAD(pid, signal + O_SIGNAL_PIDS + 8 * PIDTYPE_TGID);
	return pid;
}

static __always_inline int live_threads(void *signal)
{
	int live = 0;

	LOAD(live, signal + O_SIGNAL_LIVE);
	return live;
}

/* The process's number in the tracer's PID namespace; 0 where it is not visible there. task->tgid is the initial
 * namespace's number. */
static __always_inline u32 number(void *task, void *pid, struct config *c)
{
	u32 level = READ(c->ns_level), own = 0, nr = 0, inum = 0;
	void *ns = 0, *upid;

	if (!level) {
		LOAD(nr, task + O_TASK_TGID);
		return nr;
	}
	LOAD(own, pid + O_PID_LEVEL);
	if (own < level)
		return 0;
	upid = pid + O_PID_NUMBERS + S_UPID * (level & 63);
	LOAD(ns, upid + O_UPID_NS);
	LOAD(inum, ns + O_PID_NAMESPACE_INUM);
	if (inum != READ(c->ns_inum))
		return 0;
	LOAD(nr, upid + O_UPID_NR);
	return nr;
}

static __always_inline u64 start_time(void *task)
{
	void *leader = 0;
	u64 start = 0;

	LOAD(leader, task + O_TASK_GROUP_LEADER);
	LOAD(start, leader + O_TASK_START_BOOTTIME);
	return start;
}

/* What tells this process from all others that had its PID. */
static __always_inline u64 inode(void *task, void *pid)
{
#ifdef TRACER_PIDFS
	u64 ino = 0;

	LOAD(ino, pid + O_PID_INO);
	return ino;
#else
	return start_time(task);
#endif
}

/* ---- slots ---- */

/* The process's slot, or 0. */
static __always_inline struct slot *find(u32 pid)
{
#ifdef TRACER_TABLE
	u32 index = pid & (SLOT_COUNT - 1);
	struct slot *s = table.lookup(&index);

	if (s && (u32)READ(s->tag) == pid)
		return s;
#endif
	return spill.lookup(&pid);
}

/* The process's slot, taken if it has none yet. */
static __always_inline struct slot *take(u32 pid, u64 tag)
{
	struct slot *s, fresh = {};
#ifdef TRACER_TABLE
	u32 index = pid & (SLOT_COUNT - 1);
	u64 seen;

	s = table.lookup(&index);
	if (!s)
		return 0;
	seen = READ(s->tag);
	if ((u32)seen == pid)
		return s;
	if (!seen && __sync_val_compare_and_swap(&s->tag, 0, tag) == 0)
		return s;
#endif
	s = spill.lookup(&pid);
	if (s)
		return s;
	fresh.tag = tag;
	spill.insert(&pid, &fresh);
#ifdef TRACER_TABLE
	count(SPILLED);
#endif
	return spill.lookup(&pid);
}

/* Writes where a living task's process is now, and answers the cgroup it wrote.
 *
 * A move may complete between reading the task's cgroup and storing it; its own store would then be overwritten
 * for good. So: store, full barrier, read again, store again if it changed. Nothing is written where the slot says
 * it already, since a slot that is being written looks empty to readers. */
static __always_inline u64 put(void *task, u32 pid, u64 ino, struct config *c)
{
	u64 tracked = READ(c->tracked), tag = TAG(tracked, pid), cgroup = task_cgroup(task, tracked), again;
	struct slot *s = take(pid, tag);
	int i;

	if (!s) {
		count(LOST_SLOT);
		return cgroup;
	}
#ifdef TRACER_TEST_DELAY
	for (i = 0; i < TRACER_TEST_DELAY; i++)
		bpf_ktime_get_ns();
#endif
#pragma unroll
	for (i = 0; i < ATTEMPTS; i++) {
		if (READ(s->ino) != ino || READ(s->tag) != tag) {
			STORE(s, ino, 0);
			WRITE(s->cgroup, cgroup);
			WRITE(s->tag, tag);
			STORE(s, ino, ino);
		} else if (READ(s->cgroup) != cgroup) {
			STORE(s, cgroup, cgroup);
		}
		tracked = READ(c->tracked);
		again = task_cgroup(task, tracked);
		if (again == cgroup && TAG(tracked, pid) == tag)
			return cgroup;
		cgroup = again;
		tag = TAG(tracked, pid);
	}
	STORE(s, ino, 0);
	count(UNSTABLE);
	return cgroup;
}

/* Empties the process's slot. Answers 1 to the one caller that freed it, and what it held in *was. Freed by its tag,
 * which is the process's until then, also where the slot was left empty for repair; a thread that comes late finds
 * it free, or another's. */
static __always_inline int drop(u32 pid, u64 ino, struct slot *was)
{
	struct slot *s;
	int mine = 0;
#ifdef TRACER_TABLE
	u32 index = pid & (SLOT_COUNT - 1);
	u64 tag;

	s = table.lookup(&index);
	if (s) {
		tag = READ(s->tag);
		if ((u32)tag == pid) {
			was->tag = tag;
			was->cgroup = READ(s->cgroup);
			was->ino = __sync_val_compare_and_swap(&s->ino, ino, 0);
			mine = __sync_val_compare_and_swap(&s->tag, tag, 0) == tag;
		}
	}
#endif
	s = spill.lookup(&pid);
	if (s) {
		if (!mine)
			*was = *s;
		if (spill.delete(&pid) == 0)
			mine = 1;
	}
	return mine;
}

/* ---- records ---- */

static __always_inline void fill(struct process_record *r, u32 kind, void *task, u32 pid, u64 ino, struct config *c)
{
	void *parent = 0;

	r->kind = kind;
	r->pid = pid;
	r->hierarchy = HIERARCHY(READ(c->tracked));
	r->time = bpf_ktime_get_boot_ns();
	r->start = start_time(task);
	r->ino = ino;
	LOAD(parent, task + O_TASK_REAL_PARENT);
	r->ppid = number(parent, READ(c->ns_level) ? process_pid(task_signal(parent)) : 0, c);
	LOAD(r->comm, task + O_TASK_COMM);
}

static __always_inline void tell(struct process_record *r)
{
	if (processes.ringbuf_output(r, sizeof(*r), RB_NO_WAKEUP))
		count(LOST_PROCESS);
}

/* fork and exec: a task that certainly lives. */
static __always_inline int born(void *task, u32 kind)
{
	struct process_record r = {};
	struct config *c = config();
	void *pid;
	u32 nr;
	u64 ino;

	if (!c)
		return 0;
	pid = process_pid(task_signal(task));
	nr = number(task, pid, c);
	if (!nr)
		return 0;
	ino = inode(task, pid);
	r.cgroup = put(task, nr, ino, c);
	fill(&r, kind, task, nr, ino, c);
	tell(&r);
	return 0;
}

/* (parent, child): before the child can run. CLONE_INTO_CGROUP has put it in its cgroup already, and fires no
 * attach event, so it is the child's cgroup that is read. */
int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
	void *task = (void *)ctx->args[1];
	u32 tid = 0, tgid = 0;

	LOAD(tid, task + O_TASK_PID);
	LOAD(tgid, task + O_TASK_TGID);
	return tid == tgid ? born(task, PROCESS_FORK) : 0;
}

/* (task, old_pid, bprm) */
int on_exec(struct bpf_raw_tracepoint_args *ctx)
{
	return born((void *)ctx->args[0], PROCESS_EXEC);
}

/* (task): once for each thread. The leader may be the first to go; the process ends with its last thread, which
 * several threads can see at once: the one that empties the slot speaks. */
int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
	void *task = (void *)ctx->args[0], *signal = task_signal(task), *pid, *leader = 0;
	struct process_record r = {};
	struct config *c = config();
	struct slot was = {};
	int status = 0;
	u32 nr;
	u64 ino;

	if (!c || live_threads(signal))
		return 0;
	pid = process_pid(signal);
	nr = number(task, pid, c);
	if (!nr)
		return 0;
	ino = inode(task, pid);
	if (drop(nr, ino, &was)) {
		r.cgroup = was.cgroup;
	} else {
		if (!READ(c->report_unseen))
			return 0;
		r.cgroup = task_cgroup(task, READ(c->tracked));
	}
	fill(&r, PROCESS_EXIT, task, nr, ino, c);
	if (was.tag)
		r.hierarchy = was.tag >> 32;
	LOAD(status, signal + O_SIGNAL_GROUP_EXIT_CODE);
	if (!status) {
		LOAD(leader, task + O_TASK_GROUP_LEADER);
		LOAD(status, leader + O_TASK_EXIT_CODE);
	}
	r.arg = status;
	tell(&r);
	return 0;
}

/* (cgroup, path, task, threadgroup): in the context of whoever writes cgroup.procs, once for each v1 hierarchy,
 * under cgroup_mutex. The tracepoint's own cgroup is stored: a leader that is exiting reads as the root. */
static __always_inline int moved(struct bpf_raw_tracepoint_args *ctx)
{
	void *cgroup = (void *)ctx->args[0], *task = (void *)ctx->args[2], *leader = 0, *pid;
	struct process_record r = {};
	struct config *c = config();
	u32 tid = 0, tgid = 0, flags = 0, nr, hierarchy;
	bool tracked;
	struct slot *s;
	u64 ino, id, seen;

	if (!c)
		return 0;
	hierarchy = cgroup_hierarchy(cgroup);
	tracked = hierarchy == HIERARCHY(READ(c->tracked));
	if (!tracked && !READ(c->all_moves))
		return 0;
	LOAD(tid, task + O_TASK_PID);
	LOAD(tgid, task + O_TASK_TGID);
	if (tid != tgid) {
		/* One thread alone moves no process, unless the leader is dead and the threads are all there is. */
		LOAD(leader, task + O_TASK_GROUP_LEADER);
		LOAD(flags, leader + O_TASK_FLAGS);
		if (!(flags & PF_EXITING))
			return 0;
	}
	pid = process_pid(task_signal(task));
	nr = number(task, pid, c);
	if (!nr)
		return 0;
	ino = inode(task, pid);
	id = cgroup_id(cgroup);
	s = tracked ? find(nr) : 0;
	if (s) {
		/* Empty: the fork that is writing it reads the cgroup again after its store, and finds ours. */
		if (READ(s->ino) != ino || READ(s->tag) != ((u64)hierarchy << 32 | nr))
			return 0;
		r.arg = READ(s->cgroup);
		if (r.arg == id)
			return 0;
		STORE(s, cgroup, id);
		/* An exiting process may have given its slot to another one meanwhile: an empty slot is
		 * repaired, a wrong one would stay. */
		seen = READ(s->ino);
		if (seen && seen != ino) {
			STORE(s, ino, 0);
			count(OVERTAKEN);
		}
	} else if (tracked && !READ(c->report_unseen)) {
		return 0;
	}
	r.cgroup = id;
	fill(&r, PROCESS_ATTACH, task, nr, ino, c);
	r.hierarchy = hierarchy;
	tell(&r);
	return 0;
}

int on_attach(struct bpf_raw_tracepoint_args *ctx)
{
	return moved(ctx);
}

/* v1 cpuset only: a cpuset that lost its last CPU hands its tasks to its parent. */
int on_transfer(struct bpf_raw_tracepoint_args *ctx)
{
	return moved(ctx);
}

static __always_inline int cgroup_news(struct bpf_raw_tracepoint_args *ctx, u32 kind)
{
	void *cgroup = (void *)ctx->args[0], *kn = 0, *parent = 0, *name = 0;
	struct config *c = config();
	struct cgroup_record *r;
	u32 hierarchy;
	int size, elsewhere;

	if (!c)
		return 0;
	hierarchy = cgroup_hierarchy(cgroup);
	elsewhere = hierarchy != HIERARCHY(READ(c->tracked));
	if (elsewhere && (kind != CGROUP_MKDIR || !READ(c->all_births)))
		return 0;
	r = cgroups.ringbuf_reserve(sizeof(struct cgroup_record));
	if (!r) {
		count(LOST_CGROUP);
		return 0;
	}
	r->kind = kind;
	r->hierarchy = hierarchy;
	r->time = bpf_ktime_get_boot_ns();
	LOAD(kn, cgroup + O_CGROUP_KN);
	r->id = 0;
	LOAD(r->id, kn + O_KERNFS_NODE_ID);
	LOAD(parent, kn + O_KERNFS_NODE_PARENT);
	r->parent = 0;
	LOAD(r->parent, parent + O_KERNFS_NODE_ID);
	r->level = 0;
	LOAD(r->level, cgroup + O_CGROUP_LEVEL);
	LOAD(name, kn + O_KERNFS_NODE_NAME);
	size = bpf_probe_read_kernel_str(r->name, sizeof(r->name), name);
	r->name_size = size > 0 ? size - 1 : 0;
	/* Each start of a service makes a cgroup in a dozen hierarchies: of others than ours only those tell anything that
	 * may have a container's ID in their name. */
	if (elsewhere && r->name_size < CONTAINER_ID_SIZE)
		cgroups.ringbuf_discard(r, 0);
	else
		cgroups.ringbuf_submit(r, RB_FORCE_WAKEUP);
	return 0;
}

/* (cgroup, path): the path lies in a buffer of 1,024 bytes that all CPUs share, so it is not read. */
int on_mkdir(struct bpf_raw_tracepoint_args *ctx)
{
	return cgroup_news(ctx, CGROUP_MKDIR);
}

int on_rmdir(struct bpf_raw_tracepoint_args *ctx)
{
	return cgroup_news(ctx, CGROUP_RMDIR);
}

int on_release(struct bpf_raw_tracepoint_args *ctx)
{
	return cgroup_news(ctx, CGROUP_RELEASE);
}

int on_rename(struct bpf_raw_tracepoint_args *ctx)
{
	return cgroup_news(ctx, CGROUP_RENAME);
}

/* ---- the iterator ---- */

struct seq_file;
struct bpf_iter_meta {
	struct seq_file *seq;
	u64 session_id;
	u64 seq_num;
};
struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	void *task;
};

/* Who reads, and the number and root of each hierarchy, as the task that reads sees them. */
static __always_inline void write_header(struct seq_file *seq)
{
	struct {
		struct scan_header header;
		struct hierarchy_record hierarchies[SUBSYS_COUNT + 1];
	} out = {};
	void *self = (void *)bpf_get_current_task(), *pid, *set = 0, *ns = 0, *root = 0, *cgroup;
	u32 subsys;
	int i;

	out.header.version = WIRE_VERSION;
	out.header.subsys_count = SUBSYS_COUNT + 1;
	pid = process_pid(task_signal(self));
	LOAD(out.header.ns_level, pid + O_PID_LEVEL);
	LOAD(ns, pid + O_PID_NUMBERS + S_UPID * (out.header.ns_level & 63) + O_UPID_NS);
	LOAD(out.header.ns_inum, ns + O_PID_NAMESPACE_INUM);
	LOAD(set, self + O_TASK_CGROUPS);
#pragma unroll
	for (i = 0; i <= SUBSYS_COUNT; i++) {
		subsys = i == SUBSYS_COUNT ? V2 : i;
		cgroup = set_cgroup(set, subsys);
		out.hierarchies[i].subsys = subsys;
		LOAD(root, cgroup + O_CGROUP_ROOT);
		LOAD(out.hierarchies[i].hierarchy, root + O_CGROUP_ROOT_HIERARCHY_ID);
		out.hierarchies[i].root = cgroup_id(root + O_CGROUP_ROOT_CGRP);
	}
	bpf_seq_write(seq, &out, sizeof(out));
}

/* Writes the slots of processes that were there before us; runs after the tracepoints are attached. */
BPF_ITER(task)
{
	struct seq_file *seq = ctx->meta->seq;
	void *task = ctx->task, *signal, *pid, *leader = 0;
	struct process_record r = {};
	struct config *c = config();
	struct slot was = {};
	u32 tid = 0, tgid = 0, flags = 0, nr;
	u64 ino;

	if (!task || !c)
		return 0;
	if (ctx->meta->seq_num == 0)
		write_header(seq);
	if (!READ(c->scan))
		return 0;
	LOAD(tid, task + O_TASK_PID);
	LOAD(tgid, task + O_TASK_TGID);
	LOAD(flags, task + O_TASK_FLAGS);
	if (flags & PF_EXITING)
		return 0;
	if (tid != tgid) {
		/* A dead leader keeps its old cgroup on v2 and reads as the root on v1: its threads tell. */
		LOAD(leader, task + O_TASK_GROUP_LEADER);
		LOAD(flags, leader + O_TASK_FLAGS);
		if (!(flags & PF_EXITING))
			return 0;
	}
	signal = task_signal(task);
	if (!live_threads(signal))
		return 0;
	pid = process_pid(signal);
	nr = number(task, pid, c);
	if (!nr)
		return 0;
	ino = inode(task, pid);
	r.cgroup = put(task, nr, ino, c);
	/* It may have ended before the slot was written, and its exit program found nothing to empty. */
	if (!live_threads(signal)) {
		drop(nr, ino, &was);
		return 0;
	}
	fill(&r, PROCESS_SCAN, task, nr, ino, c);
	bpf_seq_write(seq, &r, sizeof(r));
	return 0;
}
