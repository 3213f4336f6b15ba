//! `cargo xtask bench`: the figures that are promised, measured here and now.
//!
//! The runtime's parts are interleaved with what they are compared to; the
//! agent's are taken from the release binary at work, from the outside: its
//! output, `/proc`, and the kernel's own accounts of its eBPF programs. These
//! machines are noisy: medians and ratios, and nothing is asserted.

mod agent;
pub(crate) mod faults;
mod process;

use std::process::Command;

/// Which parts to run; none named means all.
pub(crate) fn run(parts: &[&str]) -> Result<(), String> {
    if let ["reload", options @ ..] = parts {
        return crate::crash::reloads(options);
    }
    const AGENT: [&str; 5] = ["latency", "commit", "start", "idle", "storm"];
    const RUNTIME: [&str; 7] =
        ["queue", "sampler", "pipeline", "lines", "network", "store", "otlp"];
    if let Some(unknown) = parts.iter().find(|p| !AGENT.contains(p) && !RUNTIME.contains(p)) {
        return Err(format!(
            "there is no part {unknown:?}; there are {}, {}",
            RUNTIME.join(", "),
            AGENT.join(", ")
        ));
    }
    let wanted = |part: &str| parts.is_empty() || parts.contains(&part);
    let runtime: Vec<&str> =
        ["queue", "sampler", "pipeline", "lines"].into_iter().filter(|p| wanted(p)).collect();
    if !runtime.is_empty() {
        cargo(
            &[&["bench", "-q", "-p", "vahti-runtime", "--bench", "runtime", "--"], &runtime[..]]
                .concat(),
        )?;
    }
    if wanted("network") {
        cargo(&["bench", "-q", "-p", "vahti-observers", "--bench", "network"])?;
    }
    for part in ["store", "otlp"] {
        if wanted(part) {
            cargo(&["bench", "-q", "-p", "vahti-exporters", "--bench", part])?;
        }
    }
    let agent: Vec<&str> = AGENT.into_iter().filter(|part| wanted(part)).collect();
    if agent.is_empty() {
        return Ok(());
    }
    if std::env::var_os(process::BINARY).is_none() {
        cargo(&["build", "-q", "--release", "-p", "vahti-agent"])?;
    }
    for part in agent {
        match part {
            "latency" => agent::latency()?,
            "commit" => agent::commit()?,
            "start" => agent::start()?,
            "idle" => agent::idle()?,
            _ => agent::storm()?,
        }
    }
    Ok(())
}

pub(crate) fn cargo(args: &[&str]) -> Result<(), String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let status = Command::new(cargo).args(args).status().map_err(|e| format!("cargo: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("cargo {} failed", args.join(" "))) }
}
