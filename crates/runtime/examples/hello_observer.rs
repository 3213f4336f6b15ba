//! A whole observer: it reads the machine's load and makes an event of it.
//! `cargo run -p vahti-runtime --example hello_observer`

use std::sync::Arc;
use std::{error::Error, fs, time::Duration};

use vahti_runtime::clock::ClockPair;
use vahti_runtime::event::{Custom, Event, EventData, EventKind, Priority, Severity, Value};
use vahti_runtime::observer::ObserverRuntime;
use vahti_runtime::processor::*;
use vahti_runtime::source::*;
use vahti_runtime::{event::to_json_line, shutdown, testing::CapturingEmitter};

/// What its events are called, and how important they are.
static LOAD: EventKind =
    EventKind::custom("example.machine.load", "machine", "load", Priority::Normal);

/// Reads bytes and understands nothing: three records, then it ends.
struct LoadFile(u64);

impl Source for LoadFile {
    fn name(&self) -> &str {
        "/proc/loadavg"
    }
    fn read(
        &mut self,
        b: &mut RecordBatch,
        _: Option<Duration>,
    ) -> Result<ReadOutcome, SourceError> {
        let Some(left) = self.0.checked_sub(1) else { return Ok(ReadOutcome::Ended) };
        self.0 = left;
        // What can't be read is empty, hence malformed, hence counted.
        let bytes = fs::read("/proc/loadavg").unwrap_or_default();
        let (kind, ClockPair { boot_ns, wall_ns }) = (RecordKind::Fact, ClockPair::now());
        b.push(RawRecord { kind, boot_ns, wall_ns, cpu: 0, seq: left, bytes: &bytes });
        Ok(ReadOutcome::Read)
    }
    fn stop(&mut self) {
        self.0 = 0;
    }
    fn interrupter(&self) -> Arc<dyn Interrupt> {
        Arc::new(()) // Its reads never wait.
    }
}

/// Understands bytes and reads nothing: no file, no clock.
struct Load;

impl EventProcessor for Load {
    fn name(&self) -> &str {
        "load"
    }
    fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError> {
        let text = std::str::from_utf8(record.bytes).unwrap_or_default();
        let Some(Ok(load)) = text.split(' ').next().map(str::parse) else {
            return Err(ProcessError::Malformed { what: "load", len: record.bytes.len() });
        };
        let attributes = vec![("load.1m".into(), Value::Double(load))];
        let schema = "https://example.org/load/1".into();
        let data = EventData::Custom(Box::new(Custom { schema, attributes }));
        Ok(Event { data, ..Event::new(&LOAD, Severity::Info) }.into())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (emitter, captured) = CapturingEmitter::new("capture");
    let observer =
        ObserverRuntime::builder(|| Load).source(LoadFile(3)).emitter(emitter).build()?;
    let (_trigger, shutdown) = shutdown::channel();
    Arc::clone(&observer).run(shutdown).await?;
    let mut lines = Vec::new();
    captured.events().iter().for_each(|event| to_json_line(event, &mut lines));
    print!("{}", String::from_utf8(lines)?);
    println!("{}", serde_json::to_string_pretty(&observer.ledger())?);
    Ok(())
}
