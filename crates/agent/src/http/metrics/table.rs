//! The one table of all metrics: name, kind, meaning, labels.

use crate::http::exposition::{Family, Kind};

/// A metric and the labels that its series may have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) family: Family,
    /// For the page, and for what asks for them.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests compare pages and alerts"))]
    pub(crate) labels: &'static [&'static str],
}

const fn row(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Row {
    Row { family: Family { name, kind, help }, labels }
}

use Kind::{Counter, Gauge, Histogram, Info};

/// All metrics, in the order in which they are told.
pub(crate) const TABLE: &[Row] = &[
    row("vahti_build_info", Info, &["version"], "The agent that answers; always 1."),
    row(
        "vahti_observer_up",
        Gauge,
        &["observer"],
        "1 if the observer watches, 0 if it is down or can't run here.",
    ),
    row(
        "vahti_observer_restarts_total",
        Counter,
        &["observer"],
        "How often the observer was started again after it had failed.",
    ),
    row(
        "vahti_events_seen_total",
        Counter,
        &["observer", "type", "subtype", "severity", "outcome"],
        "Occurrences of each event, before sampling.",
    ),
    row(
        "vahti_kernel_total",
        Counter,
        &["observer", "outcome"],
        "Records that the eBPF programs tried to write: attempted, submitted, lost; beside them \
         calls that the kernel skipped: missed.",
    ),
    row(
        "vahti_ring_total",
        Counter,
        &["observer", "outcome"],
        "Records in the ring buffer: submitted, received, abandoned.",
    ),
    row("vahti_ring_records", Gauge, &["observer", "state"], "Records written and not yet read."),
    row(
        "vahti_records_total",
        Counter,
        &["observer", "outcome", "reason"],
        "Records read: received, ignored, processed, failed by reason.",
    ),
    row("vahti_observer_records", Gauge, &["observer", "state"], "Records being processed."),
    row(
        "vahti_events_total",
        Counter,
        &["observer", "outcome"],
        "Occurrences made of records: produced, sampled_out, routed.",
    ),
    row(
        "vahti_observer_events",
        Gauge,
        &["observer", "state"],
        "Occurrences waiting for enrichment, or folded into a summary that is still open.",
    ),
    row(
        "vahti_lane_total",
        Counter,
        &["observer", "emitter", "outcome", "stage", "reason", "priority"],
        "Occurrences handed to a lane: routed, delivered, rejected, dropped by stage, reason and \
         priority. observer=\"store\": what the store has, and owes to durable emitters.",
    ),
    row(
        "vahti_lane_events",
        Gauge,
        &["observer", "emitter", "state"],
        "Occurrences on their way: queued, in_flight, stored.",
    ),
    row("vahti_lane_queue_items", Gauge, &["observer", "emitter"], "Events that wait in the lane."),
    row("vahti_lane_queue_bytes", Gauge, &["observer", "emitter"], "What those take."),
    row(
        "vahti_lane_queue_max_items",
        Gauge,
        &["observer", "emitter"],
        "How many events may wait in the lane.",
    ),
    row("vahti_lane_queue_max_bytes", Gauge, &["observer", "emitter"], "What those may take."),
    row(
        "vahti_ledger_difference",
        Gauge,
        &["observer", "line"],
        "What does not add up in a line of the ledger; 0 when nothing moves.",
    ),
    row(
        "vahti_metrics_series_overflow_total",
        Counter,
        &["observer"],
        "How often a new series was refused for metrics.max_series or its memory, and counted as \
         _other.",
    ),
    row(
        "vahti_emitter_up",
        Gauge,
        &["emitter"],
        "1 if the last batch arrived, 0 if the emitter fails or has ended.",
    ),
    row(
        "vahti_emitter_stuck",
        Gauge,
        &["emitter"],
        "1 if the emitter has work, makes no progress and can't be replaced.",
    ),
    row(
        "vahti_emitter_panics_total",
        Counter,
        &["emitter"],
        "How often the emitter panicked and was made anew.",
    ),
    row(
        "vahti_emitter_taken_over_total",
        Counter,
        &["emitter"],
        "How often a call did not return and a fresh one went on.",
    ),
    row(
        "vahti_emitter_spans_total",
        Counter,
        &["emitter", "result"],
        "Spans that an otlp emitter has sent: acknowledged, or refused for good; their records \
         count in vahti_lane_total.",
    ),
    row(
        "vahti_event_latency_seconds",
        Histogram,
        &["emitter", "stage"],
        "How long after it happened an event that was delivered was accepted by its observer, and \
         delivered by the emitter.",
    ),
    row(
        "vahti_config_generation",
        Gauge,
        &[],
        "Which configuration is in force: 1 at the start, one more with each new one.",
    ),
    row(
        "vahti_config_last_reload_successful",
        Gauge,
        &[],
        "1 if the configuration that was read last is good, 0 if it was refused.",
    ),
    row(
        "vahti_config_last_reload_success_timestamp_seconds",
        Gauge,
        &[],
        "When a good configuration was read last, since 1970.",
    ),
    row(
        "vahti_config_reloads_total",
        Counter,
        &["result"],
        "How often the configuration was read again: changed, unchanged, refused.",
    ),
    row(
        "vahti_config_restart_needed",
        Gauge,
        &[],
        "How many fields of the configuration need a restart to be gone by.",
    ),
    row("vahti_store_open", Gauge, &[], "1 if the store was opened, 0 if not or if there is none."),
    row("vahti_store_size_bytes", Gauge, &[], "What the store's files take, every ten seconds."),
    row(
        "vahti_store_set_aside_total",
        Counter,
        &[],
        "Files of the store that could not be read and were set aside.",
    ),
    row(
        "vahti_bpf_run_seconds_total",
        Counter,
        &["observer", "program"],
        "Time spent in an eBPF program, while sysctl kernel.bpf_stats_enabled is 1.",
    ),
    row(
        "vahti_bpf_runs_total",
        Counter,
        &["observer", "program"],
        "How often an eBPF program ran, while sysctl kernel.bpf_stats_enabled is 1.",
    ),
    row(
        "vahti_log_lines_total",
        Counter,
        &["level"],
        "Lines that the agent has written to its own log, by level.",
    ),
    row(
        "vahti_log_held_back_total",
        Counter,
        &["reason"],
        "Lines that it has not: rate, as they came too often; stderr, as nobody took them at once.",
    ),
    row("process_cpu_seconds_total", Counter, &[], "CPU time of the agent, user and system."),
    row("process_resident_memory_bytes", Gauge, &[], "Resident memory of the agent."),
    row("process_start_time_seconds", Gauge, &[], "When the agent was started, since 1970."),
    row("process_open_fds", Gauge, &[], "File descriptors that the agent has open."),
];

/// What an observer sees: subtype, severity and outcome.
pub(super) fn known_events(observer: &str) -> &'static [[&'static str; 3]] {
    match observer {
        "network" => &[
            ["connection_refused", "error", "failure"],
            ["connection_timeout", "error", "timeout"],
            ["connection_unreachable", "error", "failure"],
            ["connection_reset", "error", "failure"],
            ["connection_abandoned", "warning", "timeout"],
        ],
        "container" => &[
            ["oom_kill", "error", "failure"],
            ["container_exit", "error", "failure"],
            ["process_crash", "error", "failure"],
        ],
        "agent" => &[["gap", "error", "failure"]],
        _ => &[],
    }
}
