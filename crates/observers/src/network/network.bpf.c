/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Which TCP connections failed, by the socket's own error, and whose they were.
 *
 * A socket's error comes up in softirq, where `current` is nobody in particular. So its owner is
 * remembered where a process can be told: at connect(), at listen(), and when an accepted socket is
 * first received from. Minimum kernel of every program: 5.8 with BTF.
 *
 * Two programs share one tracepoint on purpose. The kernel skips a program that it has interrupted
 * in the middle; the long one (begin) runs in process context, so a softirq that interrupts it still
 * finds the other (end) free.
 */
#include "vahti.bpf.h"
#include "network.h"

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} ring SEC(".maps");

struct socket_owner {
	struct vahti_owner owner;
	u64 begin_boot_ns;
	u64 kind;
};

/* By address of the socket. Forgotten when it closes; evicted oldest first. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, u64);
	__type(value, struct socket_owner);
} owners SEC(".maps");

struct listener {
	u64 net;
	u32 port;
	u32 family;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct listener);
	__type(value, struct vahti_owner);
} listeners SEC(".maps");

struct record {
	struct network_connection fixed;
	u8 path[VAHTI_PATH_SIZE];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct record);
} scratch SEC(".maps");

static __always_inline int is_tcp(struct sock *sk)
{
	u16 family = read(sk->__sk_common.skc_family);

	return read(sk->sk_protocol) == IPPROTO_TCP && (family == AF_INET || family == AF_INET6);
}

static __always_inline u16 big_endian(u16 value)
{
	return __builtin_bswap16(value);
}

static __always_inline struct listener listener_of(struct sock *sk)
{
	struct listener key = {};
	struct inet_sock *inet = (void *)sk;

	key.net = (u64)read(sk->__sk_common.skc_net.net);
	key.port = big_endian(read(inet->inet_sport));
	key.family = read(sk->__sk_common.skc_family);
	return key;
}

/* To be called in process context only, with current as the owner. */
static __always_inline void describe_current(struct vahti_owner *owner, u32 slot)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct cgroup *cgroup = cgroup_of(task);
	u64 id = cgroup_id(cgroup);

	describe(owner, task, id);
	remember_path(cgroup, id, slot);
}

/* connect() and listen() call this in process context; an accepted socket begins without an owner. */
SEC("raw_tp/inet_sock_set_state")
int connection_begin(u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	int old_state = ctx[1], new_state = ctx[2];
	u64 key = (u64)sk;

	if (ctx[0] == VAHTI_TEST_RUN_MAGIC)
		return prove(&ring, VAHTI_SLOT_CONNECTION_BEGIN);
	if (new_state == TCP_SYN_SENT && old_state == TCP_CLOSE) {
		struct socket_owner begun = {};

		if (!is_tcp(sk))
			return 0;
		describe_current(&begun.owner, VAHTI_SLOT_CONNECTION_BEGIN);
		begun.kind = VAHTI_OWNER_CONNECT;
		begun.begin_boot_ns = bpf_ktime_get_boot_ns();
		bpf_map_update_elem(&owners, &key, &begun, BPF_ANY);
	} else if (new_state == TCP_LISTEN) {
		struct listener listener = listener_of(sk);
		struct vahti_owner owner = {};

		if (!is_tcp(sk))
			return 0;
		describe_current(&owner, VAHTI_SLOT_CONNECTION_BEGIN);
		bpf_map_update_elem(&listeners, &listener, &owner, BPF_ANY);
	} else if (new_state == TCP_SYN_RECV) {
		/* The address may have been another socket's, evicted from elsewhere before it closed. */
		bpf_map_delete_elem(&owners, &key);
	}
	return 0;
}

/* Runs for every read from a TCP socket: what is known already costs one look-up. */
SEC("raw_tp/tcp_rcv_space_adjust")
int connection_receive(u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	u64 key = (u64)sk;
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct socket_owner *known, learned = {};

	if (ctx[0] == VAHTI_TEST_RUN_MAGIC)
		return prove(&ring, VAHTI_SLOT_CONNECTION_RECEIVE);
	known = bpf_map_lookup_elem(&owners, &key);
	if (known && (known->kind == VAHTI_OWNER_CONNECT || known->owner.tgid == tgid))
		return 0;
	/* In-kernel readers (strparser, kTLS) come here in softirq; a system call holds the socket's lock. */
	if (!read(sk->sk_lock.owned) || !is_tcp(sk))
		return 0;
	describe_current(&learned.owner, VAHTI_SLOT_CONNECTION_RECEIVE);
	if (learned.owner.flags & VAHTI_OWNER_KERNEL_THREAD)
		return 0;
	learned.kind = VAHTI_OWNER_RECEIVE;
	bpf_map_update_elem(&owners, &key, &learned, BPF_ANY);
	return 0;
}

enum { EPIPE = 32, ECONNABORTED = 103 };

/*
 * Is this end of a connection a failure? By the socket's error alone:
 *  - before it stood: any error, or given up by its process after a SYN had to be sent again;
 *  - after: an error that found a process still using it. EPIPE is a reset after the peer's orderly
 *    end; an orphaned or shut-down socket has no one whom it fails.
 *  - ECONNABORTED is an administrator's SOCK_DESTROY.
 */
static __always_inline int is_failure(struct sock *sk, int old_state, int err)
{
	struct tcp_sock *tcp = (void *)sk;

	if (err == ECONNABORTED || old_state == TCP_LISTEN)
		return 0;
	if (old_state == TCP_SYN_SENT)
		return err || read(tcp->total_retrans);
	return err && err != EPIPE && read(sk->sk_socket) && read(sk->sk_shutdown) != SHUTDOWN_MASK;
}

static __always_inline void fill_socket(struct network_connection *c, struct sock *sk)
{
	struct inet_sock *inet = (void *)sk;
	struct tcp_sock *tcp = (void *)sk;
	struct net *net = read(sk->__sk_common.skc_net.net);

	c->family = read(sk->__sk_common.skc_family);
	if (c->family == AF_INET) {
		__builtin_memset(c->local_addr, 0, sizeof(c->local_addr));
		__builtin_memset(c->peer_addr, 0, sizeof(c->peer_addr));
		bpf_probe_read_kernel(c->local_addr, 4, &inet->inet_saddr);
		bpf_probe_read_kernel(c->peer_addr, 4, &sk->__sk_common.skc_daddr);
	} else {
		bpf_probe_read_kernel(c->local_addr, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_probe_read_kernel(c->peer_addr, 16, &sk->__sk_common.skc_v6_daddr);
	}
	/* skc_num is gone by now: the port was given back. */
	c->local_port = big_endian(read(inet->inet_sport));
	c->peer_port = big_endian(read(sk->__sk_common.skc_dport));
	c->err_soft = read(sk->sk_err_soft);
	c->retransmits = read(tcp->total_retrans);
	c->netns = read(net->ns.inum);
}

static __always_inline void fill_owner(struct network_connection *c, struct sock *sk, u64 key)
{
	struct socket_owner *known = bpf_map_lookup_elem(&owners, &key);
	struct vahti_owner *owner;

	c->begin_boot_ns = 0;
	c->owner_kind = VAHTI_OWNER_UNKNOWN;
	if (known) {
		c->owner = known->owner;
		c->owner_kind = known->kind;
		c->begin_boot_ns = known->begin_boot_ns;
		return;
	}
	struct listener listener = listener_of(sk);
	owner = bpf_map_lookup_elem(&listeners, &listener);
	if (owner) {
		c->owner = *owner;
		c->owner_kind = VAHTI_OWNER_LISTEN;
	} else {
		__builtin_memset(&c->owner, 0, sizeof(c->owner));
	}
}

static __always_inline u32 proof_flag(struct network_connection *c)
{
	struct vahti_self *facts = self_facts();

	if (!facts || !facts->port || c->owner.tgid != facts->tgid)
		return 0;
	return c->peer_port == facts->port || c->local_port == facts->port ? VAHTI_FLAG_PROOF : 0;
}

static __always_inline void tell_end(struct sock *sk, int old_state, int err)
{
	u64 key = (u64)sk;
	u32 zero = 0;
	struct record *record = bpf_map_lookup_elem(&scratch, &zero);

	if (!record)
		return;
	struct network_connection *c = &record->fixed;
	c->header.boot_ns = bpf_ktime_get_boot_ns();
	c->old_state = old_state;
	c->err = err;
	fill_socket(c, sk);
	fill_owner(c, sk, key);
	c->header.flags = proof_flag(c);
	u32 len = append_path(&c->header, record->path, c->owner.cgroup_id);
	c->path_len = len;
	submit(&ring, VAHTI_SLOT_CONNECTION_END, &c->header, VAHTI_KIND_CONNECTION_END, sizeof(*c) + len);
}

SEC("raw_tp/inet_sock_set_state")
int connection_end(u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	int old_state = ctx[1], new_state = ctx[2];
	u64 key = (u64)sk;
	int err;

	if (ctx[0] == VAHTI_TEST_RUN_MAGIC)
		return prove(&ring, VAHTI_SLOT_CONNECTION_END);
	if (new_state != TCP_CLOSE || !is_tcp(sk))
		return 0;
	err = read(sk->sk_err);
	if (is_failure(sk, old_state, err))
		tell_end(sk, old_state, err);
	bpf_map_delete_elem(&owners, &key);
	return 0;
}
