//! Takes everything and keeps nothing: to measure, or to run observers for
//! their metrics alone.

use std::future::ready;
use std::sync::Arc;

use vahti_runtime::emitter::{Emission, EmitOutcome, EventEmitter};
use vahti_runtime::event::Event;

/// Counts every event as delivered and forgets it.
#[derive(Debug)]
pub struct NoneEmitter {
    name: String,
}

impl NoneEmitter {
    /// One of this name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        NoneEmitter { name: name.to_owned() }
    }
}

impl EventEmitter for NoneEmitter {
    fn name(&self) -> &str {
        &self.name
    }

    fn emit<'a>(&'a mut self, _batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
        Box::pin(ready(EmitOutcome::Delivered))
    }
}
