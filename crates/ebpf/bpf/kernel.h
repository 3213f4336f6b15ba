/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The little of the kernel that the programs look at. Only names and types count here: the loader
 * takes every offset from the BTF of the kernel that runs (CO-RE). A `___` suffix names another
 * kernel's shape of the same type.
 */
#ifndef VAHTI_KERNEL_H
#define VAHTI_KERNEL_H

#include "abi.h"

#define SEC(name) __attribute__((section(name), used))
#define __always_inline inline __attribute__((always_inline))

/* --- maps ------------------------------------------------------------------------------------ */

#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

enum { BPF_ANY = 0, BPF_NOEXIST = 1 };
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
};

/* --- helpers (numbers are the kernel's ABI, include/uapi/linux/bpf.h) -------------------------- */

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static u32 (*bpf_get_smp_processor_id)(void) = (void *)8;
static u64 (*bpf_get_current_pid_tgid)(void) = (void *)14;
static u64 (*bpf_get_current_task)(void) = (void *)35;
static long (*bpf_probe_read_kernel)(void *dst, u32 size, const void *from) = (void *)113;
static long (*bpf_probe_read_kernel_str)(void *dst, u32 size, const void *from) = (void *)115;
static u64 (*bpf_ktime_get_boot_ns)(void) = (void *)125;
static long (*bpf_ringbuf_output)(void *ring, void *data, u64 size, u64 flags) = (void *)130;

/* --- CO-RE ------------------------------------------------------------------------------------- */

/* Reads a kernel lvalue; a fault reads as zero. */
#define read(lvalue)                                                      \
	({                                                                \
		typeof(lvalue) value_;                                    \
		bpf_probe_read_kernel(&value_, sizeof(value_), &(lvalue)); \
		value_;                                                   \
	})
#define field_exists(field) __builtin_preserve_field_info(field, 2)
#define enum_value(type, value) __builtin_preserve_enum_value(*(typeof(enum type) *)value, 1)

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* --- cgroups ----------------------------------------------------------------------------------- */

enum cgroup_subsys_id { memory_cgrp_id = 4 };

struct kernfs_node {
	struct kernfs_node *__parent; /* since 6.15 */
	const char *name;
	u64 id;
};
struct kernfs_node___before_6_15 {
	struct kernfs_node *parent;
};
struct cgroup_root {
	int hierarchy_id;
};
struct cgroup {
	struct kernfs_node *kn;
	struct cgroup_root *root;
	int nr_populated_csets;
};
struct cgroup_subsys_state {
	struct cgroup *cgroup;
};
struct css_set {
	struct cgroup_subsys_state *subsys[1];
	struct cgroup *dfl_cgrp;
	int nr_tasks;
};

/* --- memory ------------------------------------------------------------------------------------ */

typedef struct {
	s64 counter;
} atomic_long_t;
struct page_counter {
	atomic_long_t usage;
	unsigned long max;
	struct page_counter *parent;
};
struct mem_cgroup {
	struct cgroup_subsys_state css;
	struct page_counter memory;
	struct page_counter memsw;
	_Bool oom_lock; /* since 6.11 only with CONFIG_MEMCG_V1 */
};
struct percpu_counter {
	s64 count;
};
struct mm_rss_stat {
	atomic_long_t count[4];
};
struct mm_struct {
	unsigned long total_vm;
	struct percpu_counter rss_stat[4]; /* since 6.2 */
};
struct mm_struct___before_6_2 {
	struct mm_rss_stat rss_stat;
};

/* --- network namespaces ------------------------------------------------------------------------ */

struct ns_common {
	u32 inum;
};
struct netns_ipv4 {
	struct fib_table *fib_default; /* these two: only with CONFIG_IP_MULTIPLE_TABLES */
	_Bool fib_has_custom_rules;
	u8 sysctl_tcp_syn_retries; /* once an int; at most 127, so its first byte is enough */
};
struct netns_ipv6 {
	struct fib6_info *fib6_null_entry;
	_Bool fib6_has_custom_rules; /* only with CONFIG_IPV6_MULTIPLE_TABLES */
};
struct net {
	struct ns_common ns;
	struct netns_ipv4 ipv4;
	struct netns_ipv6 ipv6;
};
typedef struct {
	struct net *net;
} possible_net_t;

/* --- processes --------------------------------------------------------------------------------- */

typedef struct {
	u32 val;
} kuid_t;
struct cred {
	kuid_t uid;
};
struct pid_namespace {
	struct task_struct *child_reaper;
};
struct upid {
	int nr;
	struct pid_namespace *ns;
};
struct pid {
	u32 level;
	struct upid numbers[1];
};
typedef struct {
	int counter;
} atomic_t;
struct signal_struct {
	atomic_t live;
	int nr_threads;
	int group_exit_code;
	u32 flags;
	s16 oom_score_adj;
};
struct nsproxy {
	struct net *net_ns;
};
struct task_struct {
	u32 flags;
	int exit_code;
	int pid;
	int tgid;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	u64 start_boottime;
	struct cred *real_cred;
	u8 comm[16];
	struct signal_struct *signal;
	struct mm_struct *mm;
	struct css_set *cgroups;
	struct nsproxy *nsproxy;
};
struct kernel_siginfo {
	int si_code;
};

/* --- sockets ----------------------------------------------------------------------------------- */

struct in6_addr {
	u8 bytes[16];
};
struct sock_common {
	u32 skc_daddr;
	u32 skc_rcv_saddr;
	u16 skc_dport;
	u16 skc_num;
	u16 skc_family;
	u8 skc_state;
	int skc_incoming_cpu;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};
typedef struct {
	int owned;
} socket_lock_t;
struct sk_buff {
	u8 cb[48];
};
struct sk_buff_head {
	struct sk_buff *prev; /* the last one in */
	u32 qlen;
};
struct sock_extended_err {
	u32 ee_errno;
};
/* What sk_buff.cb holds in an error queue. */
struct sock_exterr_skb {
	struct sock_extended_err ee;
};
struct sock {
	struct sock_common __sk_common;
	struct sk_buff_head sk_error_queue;
	socket_lock_t sk_lock;
	int sk_err;
	int sk_err_soft;
	struct socket *sk_socket;
	u16 sk_protocol;
	u8 sk_shutdown;
};
struct inet_sock {
	u32 inet_saddr;
	u16 inet_sport;
};
struct inet_connection_sock {
	u8 icsk_retransmits;
	u8 icsk_syn_retries;
	u32 icsk_user_timeout;
};

struct tcp_sock {
	u32 packets_out;
	u32 total_retrans;
	u32 segs_in;
	u32 rcv_nxt;
	u64 bytes_acked;
};

/* --- routes ------------------------------------------------------------------------------------ */

struct flowi_common {
	int flowic_oif;
	u8 flowic_proto;
};
union flowi_uli {
	struct {
		u16 dport;
		u16 sport;
	} ports;
};
struct flowi4 {
	struct flowi_common __fl_common;
	u32 saddr;
	u32 daddr;
	union flowi_uli uli;
};
struct flowi6 {
	struct flowi_common __fl_common;
	struct in6_addr daddr;
	struct in6_addr saddr;
	union flowi_uli uli;
};
struct fib6_info {
	u8 fib6_type;
};
struct fib6_result {
	struct fib6_info *f6i;
};
struct fib6_table {
	u32 tb6_id;
};

#pragma clang attribute pop

/* --- constants of the kernel that BTF does not carry ------------------------------------------- */

enum { PF_KTHREAD = 0x00200000, SIGNAL_GROUP_EXIT = 0x00000004 };
enum { MM_FILEPAGES = 0, MM_ANONPAGES = 1, MM_SHMEMPAGES = 3 };
enum { AF_INET = 2, AF_INET6 = 10, IPPROTO_TCP = 6 };
enum { TCP_ESTABLISHED = 1, TCP_SYN_SENT = 2, TCP_SYN_RECV = 3, TCP_CLOSE = 7, TCP_LISTEN = 10 };
enum { SHUTDOWN_MASK = 3 };
enum { RT_TABLE_MAIN = 254 };
enum { RTN_BLACKHOLE = 6, RTN_UNREACHABLE = 7, RTN_PROHIBIT = 8 };
enum {
	EAGAIN = 11, EACCES = 13, EINVAL = 22, EPIPE = 32, ENETUNREACH = 101, ECONNABORTED = 103,
	ETIMEDOUT = 110, ECONNREFUSED = 111,
	EHOSTUNREACH = 113,
};

#endif
