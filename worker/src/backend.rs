//! The one place that knows apalis' storage traits: batches of claimed lanes, as tasks.
//!
//! Our tables are the queue; this backend only hands over what the coordinator claimed. It never reports an error: a
//! database that is away is the coordinator's to wait for, and an error here would end the apalis worker and drop the
//! sends that are under way.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use apalis_core::{
    backend::{Backend, BackendConfig, finalize::Ephemeral},
    task::{Task, builder::TaskBuilder},
    worker::context::WorkerContext,
};
use tokio::sync::mpsc;
use tower::layer::util::Identity;

use crate::coordinator::Batch;

/// Batches from the coordinator. Clones share one channel, so that a restarted apalis worker goes on where the last one
/// ended.
#[derive(Debug, Clone)]
pub(crate) struct Batches {
    receiver: Arc<Mutex<mpsc::Receiver<Batch>>>,
}

impl Batches {
    pub(crate) fn new(receiver: mpsc::Receiver<Batch>) -> Self {
        Self { receiver: Arc::new(Mutex::new(receiver)) }
    }
}

impl Backend for Batches {
    type Task = Task<Batch>;
    type Error = Infallible;

    fn poll_ready(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// The channel's end, which the coordinator brings about when everything is settled, ends the apalis worker.
    fn poll_next(&mut self, cx: &mut Context<'_>, _: &WorkerContext) -> Poll<Option<Result<Self::Task, Infallible>>> {
        let mut receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        receiver.poll_recv(cx).map(|batch| batch.map(|batch| Ok(TaskBuilder::new(batch).build())))
    }

    fn poll_close(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
}

impl BackendConfig for Batches {
    type Args = Batch;
    type Id = ();
    type Kind = Ephemeral;
    type Config = ();
    type Layer = Identity;

    fn config(&self) -> &Self::Config {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Self::Layer {
        Identity::new()
    }
}
