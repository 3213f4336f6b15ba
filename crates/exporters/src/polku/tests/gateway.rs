//! The gateway of these tests itself: without it the emitter's care would be
//! tested by nobody.

use prost::Message;
use serde_json::Value;
use tonic::client::Grpc;
use tonic::codec::Streaming;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::super::message::{Ack, EventPayload, IngestBatch, Payload, PolkuEvent};
use super::super::{GATEWAY_BYTES, STREAM};
use crate::receivers::Gateway;

/// A batch as the emitter never sends one.
#[derive(Clone, PartialEq, Message)]
struct RawBatch {
    #[prost(string, tag = "1")]
    source: String,
    #[prost(string, tag = "2")]
    cluster: String,
    #[prost(message, optional, tag = "3")]
    raw: Option<RawPayload>,
}

#[derive(Clone, PartialEq, Message)]
struct RawPayload {
    #[prost(bytes = "vec", tag = "1")]
    data: Vec<u8>,
    #[prost(string, tag = "2")]
    format: String,
}

/// What the gateway answers to these batches, one stream's, without an emitter
/// between: acknowledgements, and how the stream ended.
pub(super) async fn answers<B>(url: &str, batches: Vec<B>) -> (Vec<Ack>, Result<(), Status>)
where
    B: Message + Send + Sync + Default + 'static,
{
    let channel = Endpoint::from_shared(url.to_owned()).unwrap().connect().await.unwrap();
    let mut client = Grpc::new(channel);
    client.ready().await.unwrap();
    let request = Request::new(tokio_stream::iter(batches));
    let answer = client.streaming(request, STREAM, ProstCodec::<B, Ack>::default()).await;
    let mut stream: Streaming<Ack> = match answer {
        Ok(answer) => answer.into_inner(),
        Err(status) => return (Vec::new(), Err(status)),
    };
    let mut acks = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(ack)) => acks.push(ack),
            Ok(None) => return (acks, Ok(())),
            Err(status) => return (acks, Err(status)),
        }
    }
}

/// A batch of one event that takes so many bytes.
pub(super) fn batch(cluster: &str, id: &str, bytes: usize) -> IngestBatch {
    let of = |letters: usize| IngestBatch {
        source: "test".to_owned(),
        cluster: cluster.to_owned(),
        payload: Some(Payload::Events(EventPayload {
            events: vec![PolkuEvent {
                id: id.to_owned(),
                payload: Value::String("x".repeat(letters)).to_string().into_bytes(),
                ..PolkuEvent::default()
            }],
        })),
    };
    let batch = of(bytes.saturating_sub(of(bytes).encoded_len() - bytes));
    assert_eq!(batch.encoded_len(), bytes);
    batch
}

const IDS: [&str; 3] =
    ["01J000000000000000000000A1", "01J000000000000000000000A2", "01J000000000000000000000A3"];

#[tokio::test]
async fn a_batch_over_4_mib_ends_the_stream_without_a_word() {
    let Some(gateway) = Gateway::start(&["ack"]) else { return };
    let [before, large, after] = IDS;
    let batches = vec![
        batch("prod", before, GATEWAY_BYTES),
        batch("prod", large, GATEWAY_BYTES + 1),
        batch("prod", after, 1_000),
    ];
    let (acks, end) = answers(&gateway.url(), batches).await;
    assert!(end.is_ok(), "{end:?}");
    let acks: Vec<_> = acks.into_iter().map(|ack| (ack.event_ids, ack.errors)).collect();
    assert_eq!(acks, [(vec![before.to_owned()], vec![])]);
    assert_eq!(gateway.receives()["id"], before);
    // It is there all the same, and has seen nothing of what it did not take.
    let (acks, end) = answers(&gateway.url(), vec![batch("prod", after, 1_000)]).await;
    assert!(end.is_ok() && acks.len() == 1, "{acks:?} {end:?}");
    assert_eq!(gateway.receives()["id"], after);
    assert!(gateway.received().is_empty());
}

#[tokio::test]
async fn raw_bytes_are_refused_and_end_the_stream() {
    let Some(gateway) = Gateway::start(&["ack"]) else { return };
    let raw = RawBatch {
        source: "test".to_owned(),
        cluster: "prod".to_owned(),
        raw: Some(RawPayload { data: b"{}".to_vec(), format: "tapio".to_owned() }),
    };
    let (acks, end) = answers(&gateway.url(), vec![raw.clone(), raw]).await;
    assert!(acks.is_empty(), "{acks:?}");
    assert_eq!(end.unwrap_err().code(), Code::Unimplemented);
    assert!(gateway.received().is_empty());
}
