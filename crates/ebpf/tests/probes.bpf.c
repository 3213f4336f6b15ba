/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * One small program of each sort that the manager attaches, for its tests. Minimum kernel: 5.8; a test run
 * of `told` needs 5.10.
 */
#include "kernel.h"

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

/* Tells its first argument, which a test run chooses. */
SEC("raw_tracepoint")
int told(u64 *arguments)
{
	u64 first = arguments[0];

	bpf_ringbuf_output(&ring, &first, sizeof(first), 0);
	return 0;
}

SEC("tracepoint")
int point(void *context)
{
	(void)context;
	return 0;
}

SEC("kprobe")
int entered(void *context)
{
	(void)context;
	return 0;
}

SEC("kretprobe")
int returned(void *context)
{
	(void)context;
	return 0;
}
