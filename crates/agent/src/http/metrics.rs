//! What `/metrics` tells: one table of all metrics, and where they come from.
//!
//! The page docs/metrics.md is made from the table, the dashboard and the
//! alerts in deploy/ are checked against it.

mod process;
mod table;

use std::collections::BTreeMap;

use vahti_runtime::delivery::{EmitterHandle, EmitterState};
use vahti_runtime::latency::Distribution;
use vahti_runtime::metrics::Sample;
use vahti_runtime::observer::ObserverRuntime;

use self::process::Process;
pub(crate) use self::table::TABLE;
use super::exposition::{Exposition, Format, Kind};
use crate::log;
use crate::reload::{Outcome, Status};
use crate::run::Running;

type Labels = Vec<(String, String)>;

/// Everything at one moment, by metric.
#[derive(Default)]
struct Metrics {
    series: BTreeMap<String, BTreeMap<Labels, f64>>,
    histograms: BTreeMap<&'static str, Vec<(Labels, Distribution)>>,
}

/// All metrics as text. Before the agent has started, those of its process.
pub(crate) fn text(running: Option<&Running>, format: Format) -> Vec<u8> {
    Metrics::of(running).write(format)
}

impl Metrics {
    fn of(running: Option<&Running>) -> Self {
        let mut metrics = Metrics::default();
        metrics.add("vahti_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        metrics.log(&log::counts());
        metrics.process(&Process::read());
        let Some(running) = running else { return metrics };
        let gap = running.gap.iter().filter(|gap| gap.was_there()).map(|gap| &gap.runtime);
        for observer in running.observers.iter().chain(gap) {
            metrics.observer(observer);
        }
        for name in &running.enabled {
            // One that can't run here is down, which is to be seen.
            let is_up = running.observers.iter().any(|o| o.name() == *name && o.is_healthy());
            metrics.add("vahti_observer_up", &[("observer", name)], f64::from(is_up));
        }
        for emitter in &running.emitters {
            metrics.emitter(emitter);
        }
        metrics.store(running);
        metrics.configuration(&running.in_force.status());
        metrics
    }

    fn add(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels = owned(labels);
        self.series.entry(name.to_owned()).or_default().insert(labels, value);
    }

    fn samples(&mut self, samples: Vec<Sample>) {
        for Sample { name, labels, value, .. } in samples {
            self.series.entry(name).or_default().insert(labels, value as f64);
        }
    }

    fn observer(&mut self, observer: &ObserverRuntime) {
        if !observer.config().metrics.enabled {
            return;
        }
        self.zeros(observer);
        self.samples(observer.metrics());
        let name = ("observer", observer.name());
        self.add("vahti_observer_restarts_total", &[name], observer.restarts() as f64);
        for fill in observer.lane_fills() {
            let labels = [name, ("emitter", &fill.emitter)];
            self.add("vahti_lane_queue_items", &labels, fill.items as f64);
            self.add("vahti_lane_queue_bytes", &labels, fill.bytes as f64);
            self.add("vahti_lane_queue_max_items", &labels, fill.max_items as f64);
            self.add("vahti_lane_queue_max_bytes", &labels, fill.max_bytes as f64);
        }
        for cost in observer.costs() {
            let labels = [name, ("program", &*cost.program)];
            let seconds = cost.run_time_ns as f64 / 1e9;
            // Two instances of a program under one name cost together.
            self.sum("vahti_bpf_run_seconds_total", &labels, seconds);
            self.sum("vahti_bpf_runs_total", &labels, cost.runs as f64);
        }
    }

    fn sum(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        *self.series.entry(name.to_owned()).or_default().entry(owned(labels)).or_default() += value;
    }

    /// Events that there were none of yet, so that the first one is seen as a
    /// rise.
    fn zeros(&mut self, observer: &ObserverRuntime) {
        let config = observer.config();
        let allowed = &config.metrics.allowed_labels;
        for [subtype, severity, outcome] in table::known_events(observer.name()) {
            let all = [
                ("observer", observer.name()),
                ("type", observer.name()),
                ("subtype", *subtype),
                ("severity", *severity),
                ("outcome", *outcome),
            ];
            let is_allowed = |key: &str| allowed.iter().any(|allowed| allowed == key);
            let mut labels: Vec<_> = Vec::new();
            if !is_allowed("observer") {
                labels.push(all[0]);
            }
            let known = allowed.iter().filter_map(|key| all.iter().find(|(k, _)| k == key));
            labels.extend(known);
            self.add("vahti_events_seen_total", &labels, 0.0);
        }
    }

    fn emitter(&mut self, emitter: &EmitterHandle) {
        let name = ("emitter", emitter.name());
        let is_up = emitter.state() == EmitterState::Working;
        self.add("vahti_emitter_up", &[name], f64::from(is_up));
        self.add("vahti_emitter_stuck", &[name], f64::from(emitter.is_stuck()));
        self.add("vahti_emitter_panics_total", &[name], emitter.panics() as f64);
        self.add("vahti_emitter_taken_over_total", &[name], emitter.taken_over() as f64);
        self.samples(emitter.samples());
        let latencies = emitter.latencies();
        let all = self.histograms.entry("vahti_event_latency_seconds").or_default();
        for (stage, histogram) in
            [("accepted", &latencies.accepted), ("delivered", &latencies.delivered)]
        {
            all.push((owned(&[name, ("stage", stage)]), histogram.read()));
        }
    }

    fn store(&mut self, running: &Running) {
        let store = running.store.as_ref();
        let is_open = store.is_some_and(|store| store.has_begun());
        let set_aside = store.map_or(0, |store| store.set_aside());
        self.add("vahti_store_open", &[], f64::from(is_open));
        self.add("vahti_store_set_aside_total", &[], set_aside as f64);
        self.add("vahti_store_size_bytes", &[], running.store_bytes() as f64);
        let Some(store) = store else { return };
        self.samples(store.own_line().samples());
        for emitter in running.emitters.iter().filter(|emitter| emitter.is_durable()) {
            for line in emitter.lane_lines() {
                self.samples(line.samples());
            }
        }
    }

    fn log(&mut self, counts: &log::Counts) {
        for (level, count) in counts.lines {
            self.add("vahti_log_lines_total", &[("level", level)], count as f64);
        }
        for (reason, count) in [("rate", counts.rate), ("stderr", counts.stderr)] {
            self.add("vahti_log_held_back_total", &[("reason", reason)], count as f64);
        }
    }

    fn configuration(&mut self, status: &Status) {
        self.add("vahti_config_generation", &[], status.generation as f64);
        let successful = f64::from(status.refused.is_none());
        self.add("vahti_config_last_reload_successful", &[], successful);
        let at = "vahti_config_last_reload_success_timestamp_seconds";
        self.add(at, &[], status.success_seconds);
        for (outcome, count) in Outcome::ALL.iter().zip(status.counts) {
            let result = [("result", outcome.as_str())];
            self.add("vahti_config_reloads_total", &result, count as f64);
        }
        let waits = status.needs_restart.len() as f64;
        self.add("vahti_config_restart_needed", &[], waits);
    }

    fn process(&mut self, process: &Process) {
        let all = [
            ("process_cpu_seconds_total", process.cpu_seconds),
            ("process_resident_memory_bytes", process.resident_bytes),
            ("process_start_time_seconds", process.start_seconds),
            ("process_open_fds", process.open_fds),
        ];
        for (name, value) in all {
            // Nothing rather than something untrue.
            if let Some(value) = value {
                self.add(name, &[], value);
            }
        }
    }

    fn write(&self, format: Format) -> Vec<u8> {
        let mut exposition = Exposition::new(format);
        for row in TABLE {
            let name = row.family.name;
            exposition.family(&row.family);
            if row.family.kind == Kind::Histogram {
                for (labels, d) in self.histograms.get(name).into_iter().flatten() {
                    let labels = borrowed(labels);
                    exposition.histogram(name, &labels, &d.below, d.count, d.sum_seconds);
                }
            }
            for (labels, value) in self.series.get(name).into_iter().flatten() {
                exposition.series(name, &borrowed(labels), *value);
            }
        }
        exposition.end()
    }
}

fn owned(labels: &[(&str, &str)]) -> Labels {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn borrowed(labels: &Labels) -> Vec<(&str, &str)> {
    labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

#[cfg(test)]
mod tests;
