//! Names to addresses, as this machine resolves them, and not for ever.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::dns::{GaiAddrs, GaiResolver, Name};
use tonic::codegen::Service;

/// Asks this machine's resolver, and says so where that does not answer:
/// otherwise the receiver would seem to be silent.
#[derive(Debug, Clone)]
pub(crate) struct Resolver {
    resolver: GaiResolver,
    limit: Duration,
}

impl Resolver {
    pub(crate) fn new(limit: Duration) -> Self {
        Resolver { resolver: GaiResolver::new(), limit }
    }
}

impl Service<Name> for Resolver {
    type Response = GaiAddrs;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<GaiAddrs>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.resolver.poll_ready(context)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let limit = self.limit;
        let looked_up = tokio::time::timeout(limit, self.resolver.call(name));
        Box::pin(async move {
            looked_up.await.unwrap_or_else(|_| {
                let ms = limit.as_millis();
                Err(io::Error::other(format!("no answer from its resolver within {ms} ms")))
            })
        })
    }
}
