//! Which page answers which path.

use std::sync::{Arc, OnceLock};

use hyper::StatusCode;

use super::{Ask, Page, metrics};
use crate::health::{Check, Report};
use crate::run::Running;

/// The page of a path; until the agent has started there is nothing to tell of
/// but itself.
pub(crate) fn page(ask: &Ask<'_>, running: &Arc<OnceLock<Running>>) -> Option<Page> {
    let running = running.get();
    let is_verbose = ask.query.split('&').any(|part| part.split('=').next() == Some("verbose"));
    match ask.path {
        "/metrics" => Some(Page {
            status: StatusCode::OK,
            content: ask.format.content(),
            body: metrics::text(running, ask.format),
        }),
        "/livez" => Some(checks(&Report::of(running).live, is_verbose, None)),
        "/readyz" => {
            let report = Report::of(running);
            Some(checks(&report.ready, is_verbose, report.note()))
        }
        "/health" => {
            let report = Report::of(running);
            Some(Page::json(status(report.is_healthy()), &report.to_json()))
        }
        path => {
            let name = path.strip_prefix("/health/")?;
            let report = Report::of(running);
            let observer = report.observers.iter().find(|observer| observer.name == name)?;
            Some(Page::json(status(observer.is_healthy()), &observer.to_json()))
        }
    }
}

fn status(is_well: bool) -> StatusCode {
    if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// As Kubernetes' own components tell theirs: every check if that is asked for
/// or if one fails.
fn checks(checks: &[Check], is_verbose: bool, note: Option<String>) -> Page {
    let is_well = checks.iter().all(|check| check.why.is_none());
    if is_well && !is_verbose {
        return Page::text(StatusCode::OK, "ok\n");
    }
    let told = checks.iter().filter(|check| is_verbose || check.why.is_some());
    let mut text: String = told.map(|check| format!("{check}\n")).collect();
    text.extend(note.filter(|_| is_verbose).map(|note| note + "\n"));
    text.push_str(if is_well { "ok\n" } else { "failed\n" });
    Page::text(status(is_well), text)
}
