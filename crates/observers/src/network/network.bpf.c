/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Which TCP connections failed, by the socket's own error, and whose they were.
 *
 * A socket's error comes up in softirq, where `current` is nobody in particular. So its owner is
 * remembered where a process can be told: at connect(), at listen(), and when an accepted socket is
 * first received from. Minimum kernel: 5.8 with BTF; connection_error needs 5.14.
 *
 * Two programs share one tracepoint on purpose. Since 6.1 the kernel skips a program that it has
 * interrupted in the middle; before, such a run finds its scratch memory taken. The long one (begin) runs
 * in process context, so a softirq that interrupts it still finds the other (end) free.
 *
 * A kernel may hide a process of its own from tracing (seen: a sandbox's pid 1), and with it whatever a
 * softirq does that interrupts it. So nothing here relies on a softirq alone: connection_end forgets a socket's owner, and whose owner is still known when
 * its process disconnects or closes the socket has ended unseen. Then the socket itself is asked.
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
	u16 kind;
	u16 peer_port; /* of connect(), host order: the socket forgets it when it is disconnected */
	u16 noted_err; /* what its process may have been told before the socket closed */
	u16 stood;     /* the peer answered connect() */
};

/*
 * By address of the socket. Forgotten when it closes, by connection_end, and at the latest when it is
 * destroyed; evicted oldest first.
 */
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

/* By slot: a softirq's program may interrupt another in process context. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLOTS);
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

/*
 * A socket begins anew whose owner was still known: its last end was seen by nobody, and what it was can
 * no longer be told. From 5.14 on connection_error tells it before, when the socket is disconnected.
 */
static __always_inline void count_forgotten(u64 key)
{
	if (bpf_map_lookup_elem(&owners, &key))
		count_lost(VAHTI_SLOT_CONNECTION_BEGIN);
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
		count_forgotten(key);
		describe_current(&begun.owner, VAHTI_SLOT_CONNECTION_BEGIN);
		begun.kind = VAHTI_OWNER_CONNECT;
		begun.peer_port = big_endian(read(sk->__sk_common.skc_dport));
		begun.begin_boot_ns = bpf_ktime_get_boot_ns();
		bpf_map_update_elem(&owners, &key, &begun, BPF_ANY);
	} else if (new_state == TCP_LISTEN) {
		struct listener listener = listener_of(sk);
		struct vahti_owner owner = {};

		if (!is_tcp(sk))
			return 0;
		count_forgotten(key);
		bpf_map_delete_elem(&owners, &key);
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
	/* What was left to read: its end was told already. */
	if (read(sk->__sk_common.skc_state) == TCP_CLOSE)
		return 0;
	describe_current(&learned.owner, VAHTI_SLOT_CONNECTION_RECEIVE);
	if (learned.owner.flags & VAHTI_OWNER_KERNEL_THREAD)
		return 0;
	learned.kind = VAHTI_OWNER_RECEIVE;
	bpf_map_update_elem(&owners, &key, &learned, BPF_ANY);
	return 0;
}

/*
 * The error that a connect() must have ended with, where the socket no longer has it. Whom a segment
 * reached was refused: all others end the attempt without one. Who has sent as many SYNs as it may had no
 * answer. What is left was ended by ICMP, most often this machine's own, as the peer has no neighbour
 * entry; an ICMP "port unreachable" (which is ECONNREFUSED) looks just the same.
 *
 * tcp_disconnect() leaves these fields alone, but for segs_in and the port (net/ipv4/tcp.c, 5.10 to 7.3).
 */
static __always_inline int inferred_error(struct sock *sk)
{
	struct inet_connection_sock *connection = (void *)sk;
	struct tcp_sock *tcp = (void *)sk;
	struct net *net = read(sk->__sk_common.skc_net.net);
	u8 resent = read(connection->icsk_retransmits), limit = read(connection->icsk_syn_retries);
	int connected = read(sk->__sk_common.skc_dport);
	int soft = read(sk->sk_err_soft);

	/* The second holds for the socket's whole life, and is -1 before a segment has come. */
	if (connected ? read(tcp->segs_in) != 0 : read(sk->__sk_common.skc_incoming_cpu) >= 0)
		return ECONNREFUSED;
	if (!limit)
		limit = read(net->ipv4.sysctl_tcp_syn_retries);
	if (resent && (resent >= limit || read(connection->icsk_user_timeout)))
		return soft ? soft : ETIMEDOUT;
	return EHOSTUNREACH;
}

/*
 * The error that a connect() ended with. A process that closes or disconnects its socket holds it; a soft
 * error that is still there then was not taken by anyone. Where nobody holds it, the kernel gave up, so
 * there was an error: if it is gone, a process that polls has taken it (SO_ERROR) before the kernel came
 * to close the socket.
 */
static __always_inline int connect_error(struct sock *sk, u64 key, u32 *flags)
{
	int err = read(sk->sk_err), held = read(sk->sk_lock.owned);
	struct socket_owner *known;

	if (err || (held && read(sk->sk_err_soft)))
		return err;
	known = bpf_map_lookup_elem(&owners, &key);
	if (known && known->noted_err)
		return known->noted_err;
	if (held)
		return 0;
	*flags |= VAHTI_FLAG_ERROR_TAKEN;
	return inferred_error(sk);
}

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
		if (!c->peer_port)
			c->peer_port = known->peer_port;
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

	if (is_maker(c->owner.tgid, c->owner.start_boot_ns))
		return VAHTI_FLAG_PROOF;
	if (!facts || !facts->proof || c->owner.tgid != facts->tgid)
		return 0;
	return c->peer_port == facts->proof || c->local_port == facts->proof ? VAHTI_FLAG_PROOF : 0;
}

static __always_inline void tell_end(struct sock *sk, int old_state, int err, u32 slot, u32 flags)
{
	u64 key = (u64)sk;
	struct record *record = bpf_map_lookup_elem(&scratch, &slot);

	if (!record || !begin_record(slot))
		return;
	struct network_connection *c = &record->fixed;
	c->header.boot_ns = bpf_ktime_get_boot_ns();
	c->old_state = old_state;
	c->err = err;
	fill_socket(c, sk);
	fill_owner(c, sk, key);
	c->header.flags = flags | proof_flag(c);
	u32 len = append_path(&c->header, record->path, c->owner.cgroup_id);
	c->path_len = len;
	submit(&ring, slot, &c->header, VAHTI_KIND_CONNECTION_END, sizeof(*c) + len);
}

/*
 * Whether the peer ever answered this connect(). A SYN-ACK gives the socket a sequence number to expect,
 * which connect() sets to 0 and which stays also when the socket is disconnected. That number may be 0 by
 * chance; so what connection_end saw counts too, and so does what was acknowledged.
 */
static __always_inline int has_stood(struct sock *sk, struct socket_owner *known)
{
	struct tcp_sock *tcp = (void *)sk;

	return known->kind != VAHTI_OWNER_CONNECT || known->stood || read(tcp->rcv_nxt) ||
	       read(tcp->bytes_acked);
}

/*
 * connection_end takes what is known of a socket with it. What is known still, once the socket is closed,
 * was closed unseen: while connection_end was at work on this CPU already (the timers of many connections
 * end in the softirq that interrupts one close(), and the kernel skips the program then), or in a softirq
 * for which the kernel ran no program at all. A connect() that was never answered failed, as its process
 * can't have given it up: that is seen. Whether a connection that stood failed is no longer known, as its
 * socket is shut down by now in any case: it is counted, unless nobody used it any more.
 */
static __always_inline void tell_unseen(struct sock *sk, u64 key, struct socket_owner *known, u32 slot,
					u32 flags)
{
	int err = read(sk->sk_err);

	if (has_stood(sk, known)) {
		if (err != EPIPE && err != ECONNABORTED && (read(sk->sk_socket) || read(sk->sk_lock.owned)))
			count_lost(slot);
	} else {
		if (!err)
			err = known->noted_err;
		if (!err) {
			flags |= VAHTI_FLAG_ERROR_TAKEN;
			err = inferred_error(sk);
		}
		if (is_failure(sk, TCP_SYN_SENT, err))
			tell_end(sk, TCP_SYN_SENT, err, slot, flags);
	}
	bpf_map_delete_elem(&owners, &key);
}

/*
 * An ICMP error that comes while its process holds the socket (it was rejected on this machine: a
 * firewall, a service without endpoints) does not close it. The process is woken, takes the error by
 * SO_ERROR, and closes the socket, which then has no error any more. So the error is noted here. Before
 * 6.10 the same could happen to sk_err itself, between the report and the close. Needs 5.14.
 */
SEC("raw_tp/inet_sk_error_report")
int connection_error(u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	u64 key = (u64)sk;
	struct socket_owner *known;
	u32 err;
	u8 state;

	if (ctx[0] == VAHTI_TEST_RUN_MAGIC)
		return prove(&ring, VAHTI_SLOT_CONNECTION_ERROR);
	state = read(sk->__sk_common.skc_state);
	if (state != TCP_SYN_SENT && state != TCP_CLOSE)
		return 0;
	known = bpf_map_lookup_elem(&owners, &key);
	if (!known)
		return 0;
	if (state == TCP_CLOSE) {
		/* Without a port its process disconnects it: the end of a connect() that failed, or of its retry. */
		u32 flags = read(sk->__sk_common.skc_dport) ? 0 : VAHTI_FLAG_TOLD_LATE;

		tell_unseen(sk, key, known, VAHTI_SLOT_CONNECTION_ERROR, flags);
		return 0;
	}
	err = read(sk->sk_err);
	if (!err && read(sk->sk_error_queue.qlen)) {
		struct sk_buff *last = read(sk->sk_error_queue.prev);
		struct sock_exterr_skb *reported = (void *)&last->cb;

		err = read(reported->ee.ee_errno);
	}
	known->noted_err = err;
	return 0;
}

SEC("raw_tp/inet_sock_set_state")
int connection_end(u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	int old_state = ctx[1], new_state = ctx[2];
	u64 key = (u64)sk;
	u32 flags = 0;
	int err;

	if (ctx[0] == VAHTI_TEST_RUN_MAGIC)
		return prove(&ring, VAHTI_SLOT_CONNECTION_END);
	if (new_state == TCP_ESTABLISHED && old_state == TCP_SYN_SENT) {
		struct socket_owner *known = bpf_map_lookup_elem(&owners, &key);

		if (known)
			known->stood = 1;
		return 0;
	}
	if (new_state != TCP_CLOSE || !is_tcp(sk))
		return 0;
	err = old_state == TCP_SYN_SENT ? connect_error(sk, key, &flags) : read(sk->sk_err);
	if (is_failure(sk, old_state, err))
		tell_end(sk, old_state, err, VAHTI_SLOT_CONNECTION_END, flags);
	bpf_map_delete_elem(&owners, &key);
	return 0;
}

/*
 * The last that is heard of a socket: in close(), or, where its process had closed it before it ended, in
 * a softirq. Tracepoint since 4.16.
 */
SEC("raw_tp/tcp_destroy_sock")
int connection_destroy(u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	u64 key = (u64)sk;
	struct socket_owner *known;

	if (ctx[0] == VAHTI_TEST_RUN_MAGIC)
		return prove(&ring, VAHTI_SLOT_CONNECTION_DESTROY);
	known = bpf_map_lookup_elem(&owners, &key);
	if (known)
		tell_unseen(sk, key, known, VAHTI_SLOT_CONNECTION_DESTROY, VAHTI_FLAG_TOLD_LATE);
	return 0;
}

/* --- routes ------------------------------------------------------------------------------------ */

/*
 * A connect() that the routing table refuses never changes its socket's state. What tells it from every
 * other lookup: it is for TCP, to a port, and from none, as a port is chosen only after the route was
 * found. A socket bound to a port before, or to a device, is therefore not told.
 *
 * Both tracepoints fire for every lookup, forwarded packets included, so errors are told apart first.
 */
static __always_inline int is_connect(struct flowi_common *flow, union flowi_uli *uli)
{
	return read(flow->flowic_proto) == IPPROTO_TCP && !read(uli->ports.sport) && read(uli->ports.dport) &&
	       !read(flow->flowic_oif);
}

/* Whoever gets a record from this must tell it. */
static __always_inline struct network_connection *begin_refused(u32 slot, int err)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct nsproxy *namespaces = read(task->nsproxy);
	struct net *net = read(namespaces->net_ns);
	struct record *record = bpf_map_lookup_elem(&scratch, &slot);

	if (!record || !begin_record(slot))
		return 0;
	struct network_connection *c = &record->fixed;
	__builtin_memset(c, 0, sizeof(*c));
	c->header.boot_ns = bpf_ktime_get_boot_ns();
	c->old_state = TCP_CLOSE;
	c->err = err;
	c->owner_kind = VAHTI_OWNER_CONNECT;
	c->netns = read(net->ns.inum);
	describe_current(&c->owner, slot);
	return c;
}

static __always_inline void tell_refused(struct network_connection *c, union flowi_uli *uli, u32 slot)
{
	struct record *record = (void *)c;

	c->peer_port = big_endian(read(uli->ports.dport));
	c->header.flags = proof_flag(c);
	u32 len = append_path(&c->header, record->path, c->owner.cgroup_id);
	c->path_len = len;
	submit(&ring, slot, &c->header, VAHTI_KIND_CONNECTION_END, sizeof(*c) + len);
}

/* No match in the main table, and no other table to ask: only then is EAGAIN the end of the search. */
static __always_inline int ends_search_v4(u32 table)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct nsproxy *namespaces = read(task->nsproxy);
	struct net *net = read(namespaces->net_ns);

	if (!field_exists(net->ipv4.fib_has_custom_rules))
		return table == RT_TABLE_MAIN;
	return table == RT_TABLE_MAIN && !read(net->ipv4.fib_has_custom_rules) && !read(net->ipv4.fib_default);
}

/* u32 tb_id, const struct flowi4 *flp, const struct fib_nh_common *nhc, int err */
SEC("raw_tp/fib_table_lookup")
int route_v4(u64 *ctx)
{
	struct flowi4 *flow = (void *)ctx[1];
	int err = -(int)ctx[3];
	struct network_connection *c;

	if (ctx[1] == VAHTI_TEST_RUN_MAGIC)
		return prove(&ring, VAHTI_SLOT_ROUTE_V4);
	if (err <= 0 || !is_connect(&flow->__fl_common, &flow->uli))
		return 0;
	if (err == EAGAIN) {
		if (!ends_search_v4(ctx[0]))
			return 0;
		err = ENETUNREACH;
	}
	c = begin_refused(VAHTI_SLOT_ROUTE_V4, err);
	if (!c)
		return 0;
	c->family = AF_INET;
	bpf_probe_read_kernel(c->local_addr, 4, &flow->saddr);
	bpf_probe_read_kernel(c->peer_addr, 4, &flow->daddr);
	tell_refused(c, &flow->uli, VAHTI_SLOT_ROUTE_V4);
	return 0;
}

static __always_inline int is_any(struct in6_addr *address)
{
	u64 halves[2] = {};

	bpf_probe_read_kernel(halves, sizeof(halves), address);
	return !halves[0] && !halves[1];
}

/* ip6_rt_type_to_error in net/ipv6/route.c; 0: the search goes on, or found something. */
static __always_inline int refusal_v6(struct net *net, struct fib6_info *found, struct fib6_table *table)
{
	u8 type;

	if (found == read(net->ipv6.fib6_null_entry)) {
		if (read(table->tb6_id) != RT_TABLE_MAIN)
			return 0;
		if (field_exists(net->ipv6.fib6_has_custom_rules) && read(net->ipv6.fib6_has_custom_rules))
			return 0;
		return ENETUNREACH;
	}
	type = read(found->fib6_type);
	if (type == RTN_UNREACHABLE)
		return EHOSTUNREACH;
	if (type == RTN_PROHIBIT)
		return EACCES;
	return type == RTN_BLACKHOLE ? EINVAL : 0;
}

/* const struct net *net, const struct fib6_result *res, struct fib6_table *table, const struct flowi6 *flp */
SEC("raw_tp/fib6_table_lookup")
int route_v6(u64 *ctx)
{
	struct net *net = (void *)ctx[0];
	struct fib6_result *result = (void *)ctx[1];
	struct flowi6 *flow = (void *)ctx[3];
	struct network_connection *c;
	int err;

	if (ctx[1] == VAHTI_TEST_RUN_MAGIC)
		return prove(&ring, VAHTI_SLOT_ROUTE_V6);
	err = refusal_v6(net, read(result->f6i), (void *)ctx[2]);
	/* connect() looks twice: first for an address of its own, whose failure does not count. */
	if (!err || !is_connect(&flow->__fl_common, &flow->uli) || is_any(&flow->saddr))
		return 0;
	c = begin_refused(VAHTI_SLOT_ROUTE_V6, err);
	if (!c)
		return 0;
	c->family = AF_INET6;
	bpf_probe_read_kernel(c->local_addr, 16, &flow->saddr);
	bpf_probe_read_kernel(c->peer_addr, 16, &flow->daddr);
	tell_refused(c, &flow->uli, VAHTI_SLOT_ROUTE_V6);
	return 0;
}
