//! What becomes of spans, and how that is counted.

use std::sync::mpsc::channel;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use tonic::Status;
use vahti_runtime::emitter::{Delivery, EmitOutcome, EventEmitter};

use super::answers::{Grpc, Sending, batch, to, word};
use crate::otlp::OtlpEmitter;
use crate::otlp::config::{OtlpConfig, Protocol};

/// How many spans were acknowledged, and refused.
fn counted(sending: &Sending) -> [i64; 2] {
    count(&sending.emitter)
}

fn count(emitter: &OtlpEmitter) -> [i64; 2] {
    let samples = emitter.meter().unwrap()();
    ["acknowledged", "refused"].map(|result| {
        let label = ("result".to_owned(), result.to_owned());
        samples.iter().find(|sample| sample.labels.contains(&label)).unwrap().value
    })
}

#[test]
fn records_that_arrived_are_not_sent_again_for_a_span_that_did_not() {
    let (records, sent) = channel();
    let mut fails = 2;
    let url = Grpc::logs(move |request| {
        let logs = request.into_inner().resource_logs;
        records.send(logs[0].scope_logs[0].log_records.len()).unwrap();
        Ok(ExportLogsServiceResponse::default())
    })
    .traces(move |_| {
        fails -= 1;
        if fails >= 0 { Err(Status::unavailable("not yet")) } else { Ok(Default::default()) }
    })
    .serve();
    let mut sending = Sending::with(&OtlpConfig { traces: Some(true), ..to(&url, Protocol::Grpc) });
    let all = batch(2, 3);
    let (again, done) = (Delivery::Retryable, Delivery::Delivered);
    let EmitOutcome::Each { deliveries, reason, .. } = sending.send(&all) else { panic!() };
    assert_eq!(deliveries, [again, again, done, done, done]);
    assert!(reason.contains("not yet"), "{reason}");
    let outcome = sending.send(&all[..2]);
    assert_eq!(word(&outcome).0, "later", "{outcome:?}");
    assert_eq!(sending.send(&all[..2]), EmitOutcome::Delivered);
    assert_eq!(sent.try_iter().collect::<Vec<_>>(), [5]);
    assert_eq!(counted(&sending), [2, 0]);
}

#[test]
fn a_receiver_without_traces_takes_the_records() {
    for refusal in [Status::unimplemented("no traces"), Status::invalid_argument("no")] {
        let url = Grpc::content().traces(move |_| Err(refusal.clone())).serve();
        let config = OtlpConfig { traces: Some(true), ..to(&url, Protocol::Grpc) };
        let mut sending = Sending::with(&config);
        for refused in [2, 4] {
            assert_eq!(sending.send(&batch(2, 1)), EmitOutcome::Delivered);
            assert_eq!(counted(&sending), [0, refused]);
        }
    }
}

#[test]
fn spans_that_are_refused_in_part_count_as_the_receiver_says_and_never_more_than_there_are() {
    for (rejected_spans, expected) in [(1, [2, 1]), (i64::MAX, [0, 3]), (-1, [3, 0]), (0, [3, 0])] {
        let url = Grpc::content().traces(move |_| {
            let error_message = "too old".to_owned();
            let partial = ExportTracePartialSuccess { rejected_spans, error_message };
            Ok(ExportTraceServiceResponse { partial_success: Some(partial) })
        });
        let config = OtlpConfig { traces: Some(true), ..to(&url.serve(), Protocol::Grpc) };
        let mut sending = Sending::with(&config);
        assert_eq!(sending.send(&batch(3, 2)), EmitOutcome::Delivered);
        assert_eq!(counted(&sending), expected);
    }
}

#[test]
fn an_emitter_that_is_made_anew_goes_on_counting_and_one_without_spans_has_no_count() {
    let url = Grpc::content().serve();
    let config = |traces| OtlpConfig { traces: Some(traces), ..to(&url, Protocol::Grpc) };
    let target = config(true).target().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for total in [2, 4] {
        let mut emitter = OtlpEmitter::new("otlp", target.clone());
        assert_eq!(runtime.block_on(emitter.emit(&batch(2, 0))), EmitOutcome::Delivered);
        assert_eq!(count(&emitter), [total, 0]);
    }
    assert!(Sending::with(&config(false)).emitter.meter().is_none());
}
