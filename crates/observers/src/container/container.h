/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The records of the container observer. How this file is read: abi.h in the crate ebpf. */
#ifndef VAHTI_CONTAINER_H
#define VAHTI_CONTAINER_H

#include "abi.h"

/* Record kinds. */
#define VAHTI_KIND_OOM_KILL 513
#define VAHTI_KIND_PROCESS_EXIT 514

/* A program's slot in `stats`. */
#define VAHTI_SLOT_OOM_KILL 0
#define VAHTI_SLOT_PROCESS_EXIT 1
#define VAHTI_SLOT_SIGNAL_SENT 2
#define VAHTI_SLOT_CGROUP_ATTACH 3
#define VAHTI_SLOT_PROCESS_EXEC 4

/* Whose memory had run out. */
#define VAHTI_OOM_SCOPE_SYSTEM 0
#define VAHTI_OOM_SCOPE_CGROUP 1

/* A process that the OOM killer killed. */
struct container_oom_kill {
	struct vahti_header header;
	struct vahti_owner victim;
	u64 usage_bytes; /* of the memory cgroup at its limit; system-wide: of the victim's */
	u64 limit_bytes; /* the same; all ones: no limit */
	u64 scope_cgroup_id;
	u64 total_vm_kib;
	u64 anon_rss_kib;
	u64 file_rss_kib;
	u64 shmem_rss_kib;
	u8 trigger_comm[16]; /* whose allocation it was that failed */
	u32 trigger_tgid;
	s16 oom_score_adj;
	u8 scope;
	u8 scope_levels; /* how far above the victim's cgroup the one at its limit is */
	u8 reserved[2];
	u16 path_len;
	u32 reserved2;
	/* path_len bytes of the victim's cgroup path follow */
};
VAHTI_SIZE(container_oom_kill, 168);
VAHTI_OFFSET(container_oom_kill, header, 0);
VAHTI_OFFSET(container_oom_kill, victim, 32);
VAHTI_OFFSET(container_oom_kill, usage_bytes, 80);
VAHTI_OFFSET(container_oom_kill, limit_bytes, 88);
VAHTI_OFFSET(container_oom_kill, scope_cgroup_id, 96);
VAHTI_OFFSET(container_oom_kill, total_vm_kib, 104);
VAHTI_OFFSET(container_oom_kill, anon_rss_kib, 112);
VAHTI_OFFSET(container_oom_kill, file_rss_kib, 120);
VAHTI_OFFSET(container_oom_kill, shmem_rss_kib, 128);
VAHTI_OFFSET(container_oom_kill, trigger_comm, 136);
VAHTI_OFFSET(container_oom_kill, trigger_tgid, 152);
VAHTI_OFFSET(container_oom_kill, oom_score_adj, 156);
VAHTI_OFFSET(container_oom_kill, scope, 158);
VAHTI_OFFSET(container_oom_kill, scope_levels, 159);
VAHTI_OFFSET(container_oom_kill, reserved, 160);
VAHTI_OFFSET(container_oom_kill, path_len, 162);
VAHTI_OFFSET(container_oom_kill, reserved2, 164);

/* A process whose end may be a failure: by a crash signal, of an OOM victim, or perhaps a container's first. */
struct container_exit {
	struct vahti_header header;
	struct vahti_owner process;
	u64 oom_boot_ns; /* when the OOM killer chose it; 0: it did not */
	u32 status;      /* as wait() reports it */
	u32 namespace_pid;
	u32 namespace_level; /* 0: the initial pid namespace */
	u32 first_tgid;      /* the first process of its cgroup; 0: unknown */
	u32 sender_tgid;     /* another process that sent the fatal signal; 0: none */
	u8 parent_elsewhere; /* 1: its parent is in another cgroup */
	u8 init_inside;      /* 1: pid 1 of its pid namespace is in the same cgroup */
	u16 path_len;
	u8 sender_comm[16];
	/* path_len bytes of cgroup path follow */
};
VAHTI_SIZE(container_exit, 128);
VAHTI_OFFSET(container_exit, header, 0);
VAHTI_OFFSET(container_exit, process, 32);
VAHTI_OFFSET(container_exit, oom_boot_ns, 80);
VAHTI_OFFSET(container_exit, status, 88);
VAHTI_OFFSET(container_exit, namespace_pid, 92);
VAHTI_OFFSET(container_exit, namespace_level, 96);
VAHTI_OFFSET(container_exit, first_tgid, 100);
VAHTI_OFFSET(container_exit, sender_tgid, 104);
VAHTI_OFFSET(container_exit, parent_elsewhere, 108);
VAHTI_OFFSET(container_exit, init_inside, 109);
VAHTI_OFFSET(container_exit, path_len, 110);
VAHTI_OFFSET(container_exit, sender_comm, 112);

#endif
