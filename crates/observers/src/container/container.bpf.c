/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Which processes the OOM killer killed, and which ended in a way that may be a failure: by a crash
 * signal, as an OOM victim, or as what may be a container's first process. The last is decided in
 * userland, from facts that only the kernel has at that moment.
 *
 * Every program runs in process context; the signals of softirqs are told apart by their si_code.
 * Minimum kernel of every program: 5.8 with BTF.
 */
#include "vahti.bpf.h"
#include "container.h"

char LICENSE[] SEC("license") = "GPL";

const volatile u32 page_size = 4096;

/* Critical facts only, so a ring of their own. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 << 10);
} ring SEC(".maps");

/* The SIGKILL that the OOM killer sends just before it marks its victim, by the victim's thread id. */
struct oom_signal {
	u64 killer; /* pid_tgid of the context that sent it */
	u64 victim; /* address of its task_struct, which that context holds */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u32);
	__type(value, struct oom_signal);
} oom_signals SEC(".maps");

/* When a process was chosen by the OOM killer, by tgid. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u32);
	__type(value, u64);
} oom_victims SEC(".maps");

/*
 * Who sent a process its last signal of a number. The target is an incarnation: what was sent to one
 * that had the same id before is nobody's.
 */
struct sent_to {
	u64 start_boot_ns;
	u32 tgid;
	u32 signal;
};
struct sender {
	u32 tgid;
	u32 reserved;
	u8 comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct sent_to);
	__type(value, struct sender);
} senders SEC(".maps");

/*
 * The first process of each cgroup, by cgroup id; userland seeds it with what ran before. 0: the first has
 * ended, and the next that comes in takes its place: runc moves a helper in, which forks the container's
 * own process and goes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, u32);
} firsts SEC(".maps");

/* Two last threads that end at the same time both see a dead group: only one may tell. */
struct incarnation {
	u64 start_boot_ns;
	u64 tgid;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct incarnation);
	__type(value, u32);
} told SEC(".maps");

struct oom_record {
	struct container_oom_kill fixed;
	u8 path[VAHTI_PATH_SIZE];
};
struct exit_record {
	struct container_exit fixed;
	u8 path[VAHTI_PATH_SIZE];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct oom_record);
} oom_scratch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct exit_record);
} exit_scratch SEC(".maps");

enum {
	SIGHUP = 1, SIGINT = 2, SIGQUIT = 3, SIGILL = 4, SIGTRAP = 5, SIGABRT = 6, SIGBUS = 7, SIGFPE = 8,
	SIGKILL = 9, SIGSEGV = 11, SIGTERM = 15, SIGSYS = 31,
};
#define BIT(n) (1u << (n))
#define CRASH_SIGNALS (BIT(SIGILL) | BIT(SIGABRT) | BIT(SIGBUS) | BIT(SIGFPE) | BIT(SIGSEGV) | BIT(SIGSYS))
#define SENT_SIGNALS \
	(CRASH_SIGNALS | BIT(SIGHUP) | BIT(SIGINT) | BIT(SIGQUIT) | BIT(SIGTRAP) | BIT(SIGKILL) | BIT(SIGTERM))

/* --- signals ----------------------------------------------------------------------------------- */

/* Not addresses but marks, where a struct kernel_siginfo is expected (include/linux/sched/signal.h). */
enum { SEND_SIG_NOINFO = 0, SEND_SIG_PRIV = 1 };
enum { SI_USER = 0, SI_QUEUE = -1, SI_TKILL = -6 };

/* Only what a process sends on purpose: timers and asynchronous I/O have negative codes too. */
static __always_inline int sent_by_process(u64 info)
{
	struct kernel_siginfo *siginfo = (void *)info;
	int code;

	if (info == SEND_SIG_NOINFO)
		return 1;
	if (info == SEND_SIG_PRIV)
		return 0;
	code = read(siginfo->si_code);
	return code == SI_USER || code == SI_QUEUE || code == SI_TKILL;
}

/* What became of a signal (include/trace/events/signal.h); the others never reach their process. */
enum { TRACE_SIGNAL_DELIVERED = 0, TRACE_SIGNAL_LOSE_INFO = 4 };

static __always_inline int was_delivered(u64 result)
{
	return (u32)result == TRACE_SIGNAL_DELIVERED || (u32)result == TRACE_SIGNAL_LOSE_INFO;
}

/* A process may have lived through the last one, so whoever sends the next takes that one's place. */
static __always_inline void remember_sender(struct task_struct *target, u32 signal, u64 info)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct *target_leader = read(target->group_leader);
	struct sent_to key = {.start_boot_ns = read(target_leader->start_boottime),
			      .tgid = read(target->tgid),
			      .signal = signal};
	struct sender sender = {.tgid = bpf_get_current_pid_tgid() >> 32};
	struct task_struct *leader = read(task->group_leader);

	/* A kernel thread is a terminal's driver or the like; to oneself is no news. */
	if (!sent_by_process(info) || sender.tgid == key.tgid || read(task->flags) & PF_KTHREAD) {
		bpf_map_delete_elem(&senders, &key);
		return;
	}
	bpf_probe_read_kernel(sender.comm, sizeof(sender.comm), &leader->comm);
	bpf_map_update_elem(&senders, &key, &sender, BPF_ANY);
}

/* int sig, struct kernel_siginfo *info, struct task_struct *task, int group, int result */
SEC("raw_tp/signal_generate")
int signal_sent(u64 *ctx)
{
	u32 signal = ctx[0];
	struct task_struct *target = (void *)ctx[2];

	if (ctx[0] == VAHTI_TEST_RUN_MAGIC)
		return prove(&ring, VAHTI_SLOT_SIGNAL_SENT);
	if (signal > 31 || !(BIT(signal) & SENT_SIGNALS))
		return 0;
	/* Whatever its result: a victim that was about to die is one all the same. */
	if (signal == SIGKILL && ctx[1] == SEND_SIG_PRIV) {
		struct oom_signal oom = {.killer = bpf_get_current_pid_tgid(), .victim = ctx[2]};
		u32 thread = read(target->pid);

		bpf_map_update_elem(&oom_signals, &thread, &oom, BPF_ANY);
	}
	if (was_delivered(ctx[4]))
		remember_sender(target, signal, ctx[1]);
	return 0;
}

/* --- OOM --------------------------------------------------------------------------------------- */

/*
 * mark_victim also fires for tasks that were dying anyway, and once a thread. A kill is a mark that
 * follows the OOM killer's own SIGKILL, to the same thread and from the same context
 * (__oom_kill_process in mm/oom_kill.c).
 */
static __always_inline struct task_struct *take_killed(u32 thread)
{
	struct oom_signal *oom = bpf_map_lookup_elem(&oom_signals, &thread);
	struct task_struct *victim;

	if (!oom || oom->killer != bpf_get_current_pid_tgid())
		return 0;
	victim = (void *)oom->victim;
	bpf_map_delete_elem(&oom_signals, &thread);
	return victim;
}

static __always_inline u64 in_kib(s64 pages)
{
	return pages > 0 ? pages * (page_size / 1024) : 0;
}

/* A macro, as CO-RE finds an element's offset only where the index is a constant of the source. */
#define resident_kib(mm, kind)                                                         \
	({                                                                             \
		struct mm_struct___before_6_2 *old_ = (void *)(mm);                    \
		in_kib(field_exists(old_->rss_stat.count)                              \
			       ? read(old_->rss_stat.count[kind].counter)              \
			       : read((mm)->rss_stat[kind].count));                    \
	})

/* A charge that fails leaves its counter below the limit by less than it asked for: a batch of 64 pages. */
#define NEARLY 64
#define ANCESTORS 16

#define offset_in_memcg(field) __builtin_preserve_field_info(((struct mem_cgroup *)0)->field, 0)

static __always_inline u64 in_bytes(u64 pages)
{
	/* PAGE_COUNTER_MAX, which means no limit, is LONG_MAX / PAGE_SIZE. */
	return pages >= ~0ull / 2 / page_size ? ~0ull : pages * page_size;
}

static __always_inline void fill_counter(struct container_oom_kill *kill, struct page_counter *counter)
{
	kill->usage_bytes = in_bytes(read(counter->usage.counter));
	kill->limit_bytes = in_bytes(read(counter->max));
}

static __always_inline int at_limit(struct page_counter *counter)
{
	return (u64)read(counter->usage.counter) + NEARLY >= read(counter->max);
}

/* v1 can also limit memory and swap together; where that is what ran out, memory alone is not at its limit. */
static __always_inline int fill_if_at_limit(struct container_oom_kill *kill, struct mem_cgroup *memcg)
{
	if (at_limit(&memcg->memory))
		fill_counter(kill, &memcg->memory);
	else if (cgroup_v1 && at_limit(&memcg->memsw))
		fill_counter(kill, &memcg->memsw);
	else
		return 0;
	return 1;
}

static __always_inline struct mem_cgroup *memcg_above(struct mem_cgroup *memcg)
{
	struct page_counter *parent = read(memcg->memory.parent);

	return parent ? (void *)parent - offset_in_memcg(memory) : 0;
}

static __always_inline void fill_scope(struct container_oom_kill *kill, struct mem_cgroup *memcg, int levels)
{
	kill->scope = VAHTI_OOM_SCOPE_CGROUP;
	kill->scope_cgroup_id = cgroup_id(read(memcg->css.cgroup));
	kill->scope_levels = levels;
}

/*
 * The kernel holds oom_lock of the cgroup whose memory ran out, and of all below it, while it kills in
 * there: the topmost of them, from the victim's upwards, is the one. What is in use may be far below the
 * limit by then: others that were killed just before have given memory back. Needs oom_lock.
 */
static __always_inline int fill_locked(struct container_oom_kill *kill, struct mem_cgroup *memcg)
{
	struct mem_cgroup *locked = 0;
	int levels = 0;

	if (!field_exists(memcg->oom_lock))
		return 0;
	for (int i = 0; i < ANCESTORS; i++) {
		if (!memcg || !read(memcg->oom_lock))
			break;
		locked = memcg;
		levels = i;
		memcg = memcg_above(memcg);
	}
	if (!locked)
		return 0;
	if (!fill_if_at_limit(kill, locked))
		fill_counter(kill, &locked->memory);
	fill_scope(kill, locked, levels);
	return 1;
}

/* Finds whose memory had run out; without oom_lock, the nearest from the victim's upwards that is at its limit. */
static __always_inline void fill_memory(struct container_oom_kill *kill, struct task_struct *victim)
{
	struct mem_cgroup *memcg = (void *)memory_css(victim) - offset_in_memcg(css);

	fill_counter(kill, &memcg->memory);
	kill->scope = VAHTI_OOM_SCOPE_SYSTEM;
	kill->scope_cgroup_id = 0;
	kill->scope_levels = 0;
	if (fill_locked(kill, memcg))
		return;
	for (int i = 0; i < ANCESTORS; i++) {
		if (!memcg)
			return;
		if (fill_if_at_limit(kill, memcg)) {
			fill_scope(kill, memcg, i);
			return;
		}
		memcg = memcg_above(memcg);
	}
}

static __always_inline void fill_sizes(struct container_oom_kill *kill, struct task_struct *victim)
{
	struct mm_struct *mm = read(victim->mm);
	struct signal_struct *signal = read(victim->signal);

	kill->total_vm_kib = (u64)read(mm->total_vm) * (page_size / 1024);
	kill->anon_rss_kib = resident_kib(mm, MM_ANONPAGES);
	kill->file_rss_kib = resident_kib(mm, MM_FILEPAGES);
	kill->shmem_rss_kib = resident_kib(mm, MM_SHMEMPAGES);
	kill->oom_score_adj = read(signal->oom_score_adj);
}

static __always_inline void tell_kill(struct task_struct *victim)
{
	struct task_struct *trigger = (void *)bpf_get_current_task();
	struct task_struct *leader = read(trigger->group_leader);
	struct cgroup *cgroup = cgroup_of(victim);
	u64 id = cgroup_id(cgroup);
	u32 zero = 0;
	struct oom_record *record = bpf_map_lookup_elem(&oom_scratch, &zero);

	if (!record || !begin_record(VAHTI_SLOT_OOM_KILL))
		return;
	struct container_oom_kill *kill = &record->fixed;
	kill->header.boot_ns = bpf_ktime_get_boot_ns();
	kill->header.flags = 0;
	describe(&kill->victim, victim, id);
	fill_memory(kill, victim);
	fill_sizes(kill, victim);
	kill->trigger_tgid = bpf_get_current_pid_tgid() >> 32;
	bpf_probe_read_kernel(kill->trigger_comm, sizeof(kill->trigger_comm), &leader->comm);
	bpf_map_update_elem(&oom_victims, &kill->victim.tgid, &kill->header.boot_ns, BPF_ANY);
	remember_path(cgroup, id, VAHTI_SLOT_OOM_KILL);
	u32 len = append_path(&kill->header, record->path, id);
	kill->path_len = len;
	submit(&ring, VAHTI_SLOT_OOM_KILL, &kill->header, VAHTI_KIND_OOM_KILL, sizeof(*kill) + len);
}

/* struct task_struct *task, uid_t uid; before 6.8: int pid, of the thread */
SEC("raw_tp/mark_victim")
int oom_kill(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0], *victim;

	if (ctx[0] == VAHTI_TEST_RUN_MAGIC)
		return prove(&ring, VAHTI_SLOT_OOM_KILL);
	/* Kernel addresses are negative, thread ids are not. */
	victim = take_killed((s64)ctx[0] < 0 ? (u32)read(task->pid) : (u32)ctx[0]);
	if (victim)
		tell_kill(victim);
	return 0;
}

/* --- first processes --------------------------------------------------------------------------- */

static __always_inline int parent_is_elsewhere(struct task_struct *leader, struct cgroup *cgroup)
{
	return cgroup_of(read(leader->real_parent)) != cgroup;
}

/*
 * Is a process the only one of its cgroup? Where a first was forgotten (evicted, or from before us), whoever
 * comes in beside others (docker exec, a health check) is none. The tracepoint fires after the move.
 */
static __always_inline int is_alone(struct task_struct *task, struct cgroup *cgroup)
{
	struct css_set *set = read(task->cgroups);
	struct signal_struct *signal = read(task->signal);

	return read(cgroup->nr_populated_csets) <= 1 && read(set->nr_tasks) <= read(signal->nr_threads);
}

/* struct cgroup *dst_cgrp, const char *path, struct task_struct *task, bool threadgroup */
SEC("raw_tp/cgroup_attach_task")
int cgroup_attach(u64 *ctx)
{
	struct cgroup *cgroup = (void *)ctx[0];
	struct task_struct *task = (void *)ctx[2];
	u64 id;
	u32 tgid, *first;

	if (ctx[0] == VAHTI_TEST_RUN_MAGIC)
		return prove(&ring, VAHTI_SLOT_CGROUP_ATTACH);
	if ((u32)read(read(cgroup->root)->hierarchy_id) != hierarchy_id)
		return 0;
	id = cgroup_id(cgroup);
	first = bpf_map_lookup_elem(&firsts, &id);
	if (first ? *first : !is_alone(task, cgroup))
		return 0;
	tgid = read(task->tgid);
	bpf_map_update_elem(&firsts, &id, &tgid, BPF_ANY);
	return 0;
}

/*
 * struct task_struct *task, pid_t old_pid, struct linux_binprm *bprm
 *
 * Whoever executes in a cgroup that has no first process, and comes from outside, is it: the container's
 * own program after the helper that was moved in has gone, or one that was forked right into the cgroup.
 */
SEC("raw_tp/sched_process_exec")
int process_exec(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0], *leader;
	struct cgroup *cgroup;
	u64 id;
	u32 tgid, *first;

	if (ctx[0] == VAHTI_TEST_RUN_MAGIC)
		return prove(&ring, VAHTI_SLOT_PROCESS_EXEC);
	cgroup = cgroup_of(task);
	id = cgroup_id(cgroup);
	first = bpf_map_lookup_elem(&firsts, &id);
	leader = read(task->group_leader);
	if ((first ? *first : !is_alone(task, cgroup)) || !parent_is_elsewhere(leader, cgroup))
		return 0;
	tgid = read(leader->tgid);
	bpf_map_update_elem(&firsts, &id, &tgid, BPF_ANY);
	return 0;
}

/* --- exits ------------------------------------------------------------------------------------- */

struct ending {
	struct task_struct *leader;
	struct cgroup *cgroup;
	u64 cgroup_id;
	u64 oom_boot_ns;
	u32 tgid;
	u32 status;
	u32 first_tgid;
	u32 namespace_level;
	u32 namespace_pid;
	u32 parent_elsewhere;
	u32 init_inside;
};

/* What wait() will report (wait_task_zombie in kernel/exit.c). */
static __always_inline u32 wait_status(struct task_struct *leader, struct signal_struct *signal)
{
	if (read(signal->flags) & SIGNAL_GROUP_EXIT)
		return read(signal->group_exit_code);
	return read(leader->exit_code);
}

/* A superset of what userland takes for one. */
static __always_inline int is_first(struct ending *e)
{
	return (e->namespace_level && e->namespace_pid == 1) || e->first_tgid == e->tgid ||
	       (!e->first_tgid && e->parent_elsewhere);
}

static __always_inline void look_at(struct ending *e, struct signal_struct *signal)
{
	struct pid *pid = read(e->leader->thread_pid);
	u64 *oom;
	u32 *first;

	e->status = wait_status(e->leader, signal);
	e->cgroup = cgroup_of(e->leader);
	e->cgroup_id = cgroup_id(e->cgroup);
	e->parent_elsewhere = parent_is_elsewhere(e->leader, e->cgroup);
	e->namespace_level = read(pid->level);
	struct upid *numbers = (void *)&pid->numbers[0];
	struct upid *own = (void *)numbers + (u64)e->namespace_level *
						     __builtin_preserve_type_info(*(struct upid *)0, 1);
	struct pid_namespace *namespace = read(own->ns);

	e->namespace_pid = read(own->nr);
	/* A namespace outlives none of its processes, nor does its pid 1 go before them. */
	e->init_inside = cgroup_of(read(namespace->child_reaper)) == e->cgroup;
	first = bpf_map_lookup_elem(&firsts, &e->cgroup_id);
	if (first)
		e->first_tgid = *first;
	oom = bpf_map_lookup_elem(&oom_victims, &e->tgid);
	if (oom)
		e->oom_boot_ns = *oom;
}

static __always_inline int may_be_failure(struct ending *e)
{
	u32 signal = e->status & 0x7f;

	return (signal < 32 && BIT(signal) & CRASH_SIGNALS) || e->oom_boot_ns || is_first(e);
}

static __always_inline int was_told(struct task_struct *leader, u32 tgid)
{
	struct incarnation key = {.start_boot_ns = read(leader->start_boottime), .tgid = tgid};
	u32 one = 1;

	return bpf_map_update_elem(&told, &key, &one, BPF_NOEXIST) != 0;
}

static __always_inline void fill_sender(struct container_exit *exit, struct ending *e)
{
	struct sent_to key = {.start_boot_ns = exit->process.start_boot_ns,
			      .tgid = e->tgid,
			      .signal = e->status & 0x7f};
	struct sender *sender = bpf_map_lookup_elem(&senders, &key);

	exit->sender_tgid = 0;
	__builtin_memset(exit->sender_comm, 0, sizeof(exit->sender_comm));
	/* The OOM killer's signal came first, even if somebody sent another to the dying. */
	if (!sender || (e->oom_boot_ns && key.signal == SIGKILL))
		return;
	exit->sender_tgid = sender->tgid;
	__builtin_memcpy(exit->sender_comm, sender->comm, sizeof(exit->sender_comm));
	bpf_map_delete_elem(&senders, &key);
}

/* A child of the agent, or of another maker of proofs, that ends while its parent proves this probe. */
static __always_inline u32 proof_flag(struct container_exit *exit, struct task_struct *leader)
{
	struct vahti_self *facts = self_facts();
	/* Any thread may have forked it; a process began with its leader. */
	struct task_struct *parent = read(read(leader->real_parent)->group_leader);
	int is_ours = facts && facts->proof && exit->process.parent_tgid == facts->tgid;

	if (!is_ours)
		is_ours = is_maker(exit->process.parent_tgid, read(parent->start_boottime));
	return is_ours ? VAHTI_FLAG_PROOF : 0;
}

static __always_inline void tell_exit(struct ending *e)
{
	u32 zero = 0;
	struct exit_record *record = bpf_map_lookup_elem(&exit_scratch, &zero);

	if (!record || !begin_record(VAHTI_SLOT_PROCESS_EXIT))
		return;
	struct container_exit *exit = &record->fixed;
	exit->header.boot_ns = bpf_ktime_get_boot_ns();
	describe(&exit->process, e->leader, e->cgroup_id);
	exit->oom_boot_ns = e->oom_boot_ns;
	exit->status = e->status;
	exit->namespace_pid = e->namespace_pid;
	exit->namespace_level = e->namespace_level;
	exit->first_tgid = e->first_tgid;
	exit->parent_elsewhere = e->parent_elsewhere;
	exit->init_inside = e->init_inside;
	fill_sender(exit, e);
	exit->header.flags = proof_flag(exit, e->leader);
	remember_path(e->cgroup, e->cgroup_id, VAHTI_SLOT_PROCESS_EXIT);
	u32 len = append_path(&exit->header, record->path, e->cgroup_id);
	exit->path_len = len;
	submit(&ring, VAHTI_SLOT_PROCESS_EXIT, &exit->header, VAHTI_KIND_PROCESS_EXIT, sizeof(*exit) + len);
}

/* struct task_struct *task (and, since 6.16, bool group_dead); once a thread, after signal->live went down */
SEC("raw_tp/sched_process_exit")
int process_exit(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct signal_struct *signal;
	struct ending e = {};

	if (ctx[0] == VAHTI_TEST_RUN_MAGIC)
		return prove(&ring, VAHTI_SLOT_PROCESS_EXIT);
	signal = read(task->signal);
	if (read(signal->live.counter))
		return 0;
	e.leader = read(task->group_leader);
	e.tgid = read(task->tgid);
	look_at(&e, signal);
	if (!may_be_failure(&e) || was_told(e.leader, e.tgid))
		return 0;
	tell_exit(&e);
	if (e.first_tgid == e.tgid) {
		u32 ended = 0;
		bpf_map_update_elem(&firsts, &e.cgroup_id, &ended, BPF_ANY);
	}
	if (e.oom_boot_ns)
		bpf_map_delete_elem(&oom_victims, &e.tgid);
	return 0;
}
