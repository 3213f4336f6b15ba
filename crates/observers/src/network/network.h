/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The records of the network observer. How this file is read: abi.h in the crate ebpf. */
#ifndef VAHTI_NETWORK_H
#define VAHTI_NETWORK_H

#include "abi.h"

/* Record kinds. */
#define VAHTI_KIND_CONNECTION_END 257

/* A program's slot in `stats`. */
#define VAHTI_SLOT_CONNECTION_BEGIN 0
#define VAHTI_SLOT_CONNECTION_END 1
#define VAHTI_SLOT_CONNECTION_RECEIVE 2
#define VAHTI_SLOT_CONNECTION_ERROR 3
#define VAHTI_SLOT_ROUTE_V4 4
#define VAHTI_SLOT_ROUTE_V6 5
#define VAHTI_SLOT_CONNECTION_DESTROY 6

/* How the owner of a socket was learned. */
#define VAHTI_OWNER_UNKNOWN 0
#define VAHTI_OWNER_CONNECT 1 /* it called connect() */
#define VAHTI_OWNER_RECEIVE 2 /* it received from the accepted socket */
#define VAHTI_OWNER_LISTEN 3  /* it called listen(); who accepted is not known */

/*
 * A TCP connection that ended by an error, or was given up. Or one that did not begin, as the routing
 * table refused it: then old_state is TCP_CLOSE, and there is no local port.
 */
struct network_connection {
	struct vahti_header header;
	struct vahti_owner owner;
	u64 begin_boot_ns; /* connect() sent the first SYN; 0: not seen */
	u8 local_addr[16]; /* network order; IPv4 in the first four bytes */
	u8 peer_addr[16];
	u16 local_port; /* host order */
	u16 peer_port;
	u16 family; /* 2: AF_INET, 10: AF_INET6 */
	u8 old_state;
	u8 owner_kind;
	s32 err;      /* positive errno; 0: closed by its own process */
	s32 err_soft; /* sk_err_soft: what ICMP said while the kernel still hoped */
	u32 retransmits;
	u32 netns; /* inode number of the network namespace */
	u16 path_len;
	u16 reserved[3];
	/* path_len bytes of cgroup path follow */
};
VAHTI_SIZE(network_connection, 152);
VAHTI_OFFSET(network_connection, header, 0);
VAHTI_OFFSET(network_connection, owner, 32);
VAHTI_OFFSET(network_connection, begin_boot_ns, 80);
VAHTI_OFFSET(network_connection, local_addr, 88);
VAHTI_OFFSET(network_connection, peer_addr, 104);
VAHTI_OFFSET(network_connection, local_port, 120);
VAHTI_OFFSET(network_connection, peer_port, 122);
VAHTI_OFFSET(network_connection, family, 124);
VAHTI_OFFSET(network_connection, old_state, 126);
VAHTI_OFFSET(network_connection, owner_kind, 127);
VAHTI_OFFSET(network_connection, err, 128);
VAHTI_OFFSET(network_connection, err_soft, 132);
VAHTI_OFFSET(network_connection, retransmits, 136);
VAHTI_OFFSET(network_connection, netns, 140);
VAHTI_OFFSET(network_connection, path_len, 144);
VAHTI_OFFSET(network_connection, reserved, 146);

#endif
