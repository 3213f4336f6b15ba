/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What every observer's programs share: accounting, who a process is, where its cgroup is.
 * Everything here needs Linux 5.8 (ring buffer, bpf_ktime_get_boot_ns, alu32 bounds).
 */
#ifndef VAHTI_BPF_H
#define VAHTI_BPF_H

#include "kernel.h"

/* Set by userland before the load, constant from then on: the verifier drops the branch not taken. */
const volatile u32 cgroup_v1 = 0;    /* 1: cgroups are those of the v1 memory hierarchy */
const volatile u32 hierarchy_id = 0; /* number of the chosen hierarchy; v2 is 0 */

/* Longest name taken, deepest path taken. A name is written only while it fits as a whole. */
#define NAME_SIZE 256
#define PATH_DEPTH 12

struct path {
	u32 len;
	u32 flags;
	u8 bytes[VAHTI_PATH_SIZE];
};

#define SLOTS 8

/*
 * A slot belongs to one program. A softirq may run a program that it has just interrupted: only since 6.1
 * does the kernel skip that run of a raw tracepoint's program, and count it (recursion_misses). So
 * additions are atomic, and whoever finds its slot's scratch memory in use leaves it alone.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, u32);
	__type(value, struct vahti_stats);
} stats SEC(".maps");

/* What of a slot's scratch memory on a CPU is in use. Interrupts nest, so plain stores are enough. */
struct busy {
	u32 record;
	u32 path;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, u32);
	__type(value, struct busy);
} busy SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, u32);
	__type(value, struct path);
} path_scratch SEC(".maps");

/* Paths by cgroup id, filled at first sight, so that a storm walks no tree. A renamed cgroup keeps its old name. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, struct path);
} paths SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct vahti_self);
} self SEC(".maps");

static __always_inline struct vahti_self *self_facts(void)
{
	u32 zero = 0;
	return bpf_map_lookup_elem(&self, &zero);
}

/*
 * Other processes that make proofs at this moment, an agent or a doctor beside us: by tgid, when each began,
 * in whole ticks, as /proc tells it. Userland writes it, as it knows who may announce itself. A process that
 * has the tgid later began at another tick: ids do not come around within one.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, VAHTI_MAKERS);
	__type(key, u32);
	__type(value, u64);
} makers SEC(".maps");

static __always_inline int is_maker(u32 tgid, u64 start_boot_ns)
{
	u64 *began = bpf_map_lookup_elem(&makers, &tgid);

	return began && start_boot_ns - *began < VAHTI_TICK_NS;
}

/* --- records ----------------------------------------------------------------------------------- */

/* Adds without a result: fetching one would need 5.12. */
#define add_one(counter) ((void)__sync_fetch_and_add(&(counter), 1))
/* Keeps the compiler from moving accesses to scratch memory out of the time when it is taken. */
#define barrier() asm volatile("" ::: "memory")

/* What can't be told: attempted and lost. */
static __always_inline void count_lost(u32 slot)
{
	struct vahti_stats *count = bpf_map_lookup_elem(&stats, &slot);

	if (!count)
		return;
	add_one(count->attempted);
	add_one(count->lost);
}

static __always_inline int take(u32 *in_use)
{
	if (*(volatile u32 *)in_use)
		return 0;
	*(volatile u32 *)in_use = 1;
	barrier();
	return 1;
}

static __always_inline void give_back(u32 *in_use)
{
	barrier();
	*(volatile u32 *)in_use = 0;
}

/*
 * Takes the slot's memory for a record; whoever got it must submit(). Who interrupts a record of its own
 * slot does not get it: its record is attempted and lost.
 */
static __always_inline int begin_record(u32 slot)
{
	struct vahti_stats *count = bpf_map_lookup_elem(&stats, &slot);
	struct busy *in_use = bpf_map_lookup_elem(&busy, &slot);

	if (!count || !in_use)
		return 0;
	if (take(&in_use->record))
		return 1;
	count_lost(slot);
	return 0;
}

static __always_inline void submit(void *ring, u32 slot, struct vahti_header *record, u32 kind, u32 len)
{
	struct vahti_stats *count = bpf_map_lookup_elem(&stats, &slot);
	struct busy *in_use = bpf_map_lookup_elem(&busy, &slot);

	if (!count || !in_use)
		return;
	add_one(count->attempted);
	record->abi_version = VAHTI_ABI_VERSION;
	record->kind = kind;
	record->len = len;
	record->cpu = bpf_get_smp_processor_id();
	/* Nobody else writes a record now. Who was turned away in between counts as a gap before this one. */
	record->seq = *(volatile u64 *)&count->attempted;
	if (bpf_ringbuf_output(ring, record, len, 0))
		add_one(count->lost);
	else
		add_one(count->submitted);
	give_back(&in_use->record);
}

/* Answers a test run: the program is loaded and its ring is read. Tells userland's tgid on the way. */
static __always_inline int prove(void *ring, u32 slot)
{
	struct vahti_self *facts = self_facts();
	struct vahti_proof proof = {};

	if (!facts || !begin_record(slot))
		return 0;
	facts->tgid = bpf_get_current_pid_tgid() >> 32;
	proof.header.flags = VAHTI_FLAG_PROOF;
	proof.header.boot_ns = bpf_ktime_get_boot_ns();
	proof.probe = slot;
	proof.tgid = facts->tgid;
	submit(ring, slot, &proof.header, VAHTI_KIND_PROOF, sizeof(proof));
	return 0;
}

/* --- cgroups ----------------------------------------------------------------------------------- */

static __always_inline struct cgroup_subsys_state *memory_css(struct task_struct *task)
{
	struct css_set *set = read(task->cgroups);
	struct cgroup_subsys_state *css = 0;
	u64 index = enum_value(cgroup_subsys_id, memory_cgrp_id);

	bpf_probe_read_kernel(&css, sizeof(css), (void *)&set->subsys[0] + index * sizeof(css));
	return css;
}

static __always_inline struct cgroup *cgroup_of(struct task_struct *task)
{
	if (cgroup_v1) {
		struct cgroup_subsys_state *css = memory_css(task);
		return read(css->cgroup);
	}
	struct css_set *set = read(task->cgroups);
	return read(set->dfl_cgrp);
}

static __always_inline u64 cgroup_id(struct cgroup *cgroup)
{
	struct kernfs_node *node = read(cgroup->kn);
	return read(node->id);
}

static __always_inline struct kernfs_node *parent_of(struct kernfs_node *node)
{
	struct kernfs_node___before_6_15 *old = (void *)node;

	if (field_exists(node->__parent))
		return read(node->__parent);
	return read(old->parent);
}

static __always_inline void walk_path(struct path *path, struct kernfs_node *node)
{
	u32 len = 0;

	path->flags = VAHTI_FLAG_PATH_TRUNCATED;
	for (int i = 0; i < PATH_DEPTH; i++) {
		struct kernfs_node *parent = parent_of(node);

		if (!parent) {
			path->flags = 0;
			break;
		}
		if (len > VAHTI_PATH_SIZE - NAME_SIZE)
			break;
		long n = bpf_probe_read_kernel_str(path->bytes + len, NAME_SIZE, read(node->name));
		if (n <= 0 || n > NAME_SIZE)
			break;
		len += n;
		node = parent;
	}
	path->len = len;
}

/* Makes sure that the path of a cgroup is known. To be called where the cgroup still lives. */
static __always_inline void remember_path(struct cgroup *cgroup, u64 id, u32 slot)
{
	struct path *path;
	struct busy *in_use;

	if (bpf_map_lookup_elem(&paths, &id))
		return;
	path = bpf_map_lookup_elem(&path_scratch, &slot);
	in_use = bpf_map_lookup_elem(&busy, &slot);
	if (!path || !in_use || !take(&in_use->path))
		return;
	walk_path(path, read(cgroup->kn));
	bpf_map_update_elem(&paths, &id, path, BPF_ANY);
	give_back(&in_use->path);
}

/* Appends the path of a cgroup behind a record's fixed part; returns its length. */
static __always_inline u32 append_path(struct vahti_header *record, u8 *tail, u64 id)
{
	struct path *path = bpf_map_lookup_elem(&paths, &id);

	if (!path)
		return 0;
	u32 len = path->len;
	if (len > VAHTI_PATH_SIZE)
		return 0;
	if (bpf_probe_read_kernel(tail, len, path->bytes))
		return 0;
	record->flags |= path->flags;
	return len;
}

/* --- processes --------------------------------------------------------------------------------- */

static __always_inline void describe(struct vahti_owner *owner, struct task_struct *task, u64 cgroup)
{
	struct task_struct *leader = read(task->group_leader);
	struct task_struct *parent = read(leader->real_parent);
	struct cred *cred = read(leader->real_cred);

	owner->tgid = read(leader->tgid);
	owner->uid = read(cred->uid.val);
	owner->parent_tgid = read(parent->tgid);
	owner->flags = read(leader->flags) & PF_KTHREAD ? VAHTI_OWNER_KERNEL_THREAD : 0;
	owner->start_boot_ns = read(leader->start_boottime);
	owner->cgroup_id = cgroup;
	bpf_probe_read_kernel(owner->comm, sizeof(owner->comm), &leader->comm);
}

#endif
