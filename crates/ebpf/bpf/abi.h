/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What every record has in common, between the kernel side and the processors.
 *
 * This file and those of the observers are read twice: by clang, which checks each line
 * below a struct against its own layout, and by rustc, which takes the same lines for the layout
 * that the structs in abi.rs must have. Neither side compiles if a line is wrong. Hence one
 * VAHTI_SIZE a struct, one VAHTI_OFFSET a field, plain decimal numbers.
 */
#ifndef VAHTI_ABI_H
#define VAHTI_ABI_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef short s16;
typedef int s32;
typedef long long s64;

#define VAHTI_SIZE(type, size) _Static_assert(sizeof(struct type) == size, #type ": size")
#define VAHTI_OFFSET(type, field, offset) \
	_Static_assert(__builtin_offsetof(struct type, field) == offset, #type "." #field ": offset")

#define VAHTI_ABI_VERSION 1

/* Record kinds are an observer's own, from 256 up; this one is everybody's. */
#define VAHTI_KIND_PROOF 1

/* Header flags. */
#define VAHTI_FLAG_PROOF 1          /* a fact of our own making: proves a probe, is no failure */
#define VAHTI_FLAG_ERROR_TAKEN 4    /* the error was gone before it was read: `err` is inferred */
#define VAHTI_FLAG_TOLD_LATE 8      /* it happened some time before `boot_ns`, unseen */
#define VAHTI_FLAG_PATH_TRUNCATED 2 /* the root end of the cgroup path is missing */

/* Owner flags. */
#define VAHTI_OWNER_KERNEL_THREAD 1

/* Every argument of a test run: no tracepoint passes it for a pointer, as it is no kernel address. */
#define VAHTI_TEST_RUN_MAGIC 19750821

/* Processes that make proofs at the same time, at most. */
#define VAHTI_MAKERS 16
/* A tick of /proc (USER_HZ, 100 on every architecture that we are built for). */
#define VAHTI_TICK_NS 10000000

/* A cgroup path: names from the leaf to the root, each followed by a NUL, the root left out. */
#define VAHTI_PATH_SIZE 768

struct vahti_header {
	u16 abi_version;
	u16 kind;
	u32 len;     /* of the whole record, path included */
	u32 cpu;
	u32 flags;
	u64 boot_ns; /* CLOCK_BOOTTIME at the moment of the fact */
	u64 seq;     /* attempts of this program on this CPU, this one included: a gap is a loss */
};
VAHTI_SIZE(vahti_header, 32);
VAHTI_OFFSET(vahti_header, abi_version, 0);
VAHTI_OFFSET(vahti_header, kind, 2);
VAHTI_OFFSET(vahti_header, len, 4);
VAHTI_OFFSET(vahti_header, cpu, 8);
VAHTI_OFFSET(vahti_header, flags, 12);
VAHTI_OFFSET(vahti_header, boot_ns, 16);
VAHTI_OFFSET(vahti_header, seq, 24);

/* A process, as the kernel knew it at the moment of the fact. tgid 0: unknown. */
struct vahti_owner {
	u32 tgid;
	u32 uid;
	u32 parent_tgid;
	u32 flags;
	u64 start_boot_ns; /* of the group leader; with the tgid it names one incarnation */
	u64 cgroup_id;     /* in the hierarchy that userland chose: v2, or v1 memory */
	u8 comm[16];       /* of the group leader */
};
VAHTI_SIZE(vahti_owner, 48);
VAHTI_OFFSET(vahti_owner, tgid, 0);
VAHTI_OFFSET(vahti_owner, uid, 4);
VAHTI_OFFSET(vahti_owner, parent_tgid, 8);
VAHTI_OFFSET(vahti_owner, flags, 12);
VAHTI_OFFSET(vahti_owner, start_boot_ns, 16);
VAHTI_OFFSET(vahti_owner, cgroup_id, 24);
VAHTI_OFFSET(vahti_owner, comm, 32);

/* Of a probe that was run by BPF_PROG_TEST_RUN: it is loaded, and its ring is read. */
struct vahti_proof {
	struct vahti_header header;
	u32 probe; /* the program's slot in `stats` */
	u32 tgid;  /* of whoever asked for it, in the initial pid namespace */
};
VAHTI_SIZE(vahti_proof, 40);
VAHTI_OFFSET(vahti_proof, header, 0);
VAHTI_OFFSET(vahti_proof, probe, 32);
VAHTI_OFFSET(vahti_proof, tgid, 36);

/* One a program and CPU. attempted = submitted + lost, by whoever tried to reserve. */
struct vahti_stats {
	u64 attempted;
	u64 submitted;
	u64 lost;
};
VAHTI_SIZE(vahti_stats, 24);
VAHTI_OFFSET(vahti_stats, attempted, 0);
VAHTI_OFFSET(vahti_stats, submitted, 8);
VAHTI_OFFSET(vahti_stats, lost, 16);

/* What makes a fact one of our own making; written by userland while it proves. */
struct vahti_self {
	u32 tgid;  /* set by the first test run: in a pid namespace getpid() would not tell */
	u32 proof; /* 0: none under way; else what it is told by, such as a TCP port of ours */
};
VAHTI_SIZE(vahti_self, 8);
VAHTI_OFFSET(vahti_self, tgid, 0);
VAHTI_OFFSET(vahti_self, proof, 4);

#endif
