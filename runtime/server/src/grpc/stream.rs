//! `ModelStreamInfer`: requests of one stream run beside each other, up to a
//! bound, and are answered in the order in which they came.

use super::Service;
use super::infer::Caller;
use crate::app::Shutdown;
use mortise_grpc_proto::inference::ModelStreamInferResponse;
use mortise_grpc_proto::{ModelInferRequest, ModelInferResponse};
use mortise_types::{Error, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::codegen::tokio_stream::Stream;
use tonic::{Status, Streaming};

/// Requests of one stream that are under way; a client that sends more waits.
const MAX_UNDER_WAY: usize = 32;

/// Says that no more answers to this request follow.
const FINAL: &[(&str, bool)] = &[("triton_final_response", true)];

type Item = Result<ModelStreamInferResponse, Status>;

/// The answers of a stream.
pub(super) struct Answers {
    queue: mpsc::Receiver<Pending>,
    next: Option<Pending>,
    /// Reads requests; ends with the stream.
    _reader: Task<()>,
}

/// An answer that is there or on its way.
enum Pending {
    Running(Task<ModelStreamInferResponse>),
    Done(Box<Item>),
}

/// A task that ends when nobody waits for it.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Answers {
    pub(super) fn of(
        service: Service,
        caller: Caller,
        requests: Streaming<ModelInferRequest>,
    ) -> Self {
        let (sender, queue) = mpsc::channel(MAX_UNDER_WAY);
        let stopping = service.stopping.clone();
        let reader = Task(tokio::spawn(read(service, caller, requests, sender, stopping)));
        Self { queue, next: None, _reader: reader }
    }
}

impl Stream for Answers {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Item>> {
        let pending = match self.next.take() {
            Some(pending) => pending,
            None => match ready!(self.queue.poll_recv(context)) {
                Some(pending) => pending,
                None => return Poll::Ready(None),
            },
        };
        match pending {
            Pending::Done(item) => Poll::Ready(Some(*item)),
            Pending::Running(mut task) => match Pin::new(&mut task.0).poll(context) {
                Poll::Ready(Ok(response)) => Poll::Ready(Some(Ok(response))),
                Poll::Ready(Err(error)) => {
                    Poll::Ready(Some(Err(Status::internal(format!("a request failed: {error}")))))
                }
                Poll::Pending => {
                    self.next = Some(Pending::Running(task));
                    Poll::Pending
                }
            },
        }
    }
}

/// Reads requests until the client is done, the stream breaks, or the server
/// stops; what was read before that is answered.
async fn read(
    service: Service,
    caller: Caller,
    mut requests: Streaming<ModelInferRequest>,
    sender: mpsc::Sender<Pending>,
    mut stopping: Shutdown,
) {
    loop {
        // Room first: a request that was read is under way.
        let Ok(room) = sender.reserve().await else { return };
        let message = tokio::select! {
            message = requests.message() => message,
            () = stopping.requested() => return,
        };
        match message {
            Ok(Some(message)) => {
                let is_crowded = sender.max_capacity() - sender.capacity() > 1;
                let limit = service.settings.request_timeout;
                let caller = caller.again(limit, is_crowded);
                room.send(service.start(message, caller).await);
            }
            Ok(None) => return,
            Err(status) => return room.send(Pending::Done(Box::new(Err(status)))),
        }
    }
}

impl Service {
    async fn start(&self, message: ModelInferRequest, caller: Caller) -> Pending {
        let id = message.id().to_owned();
        let decoded = match self.decode(message, &caller).await {
            Ok(decoded) => decoded,
            Err(error) => return Pending::Done(Box::new(Ok(failed(&id, &error)))),
        };
        let service = self.clone();
        let in_sequence = decoded.is_in_sequence();
        let run = async move {
            match service.run(decoded, &caller, FINAL).await {
                Ok(answered) => ModelStreamInferResponse {
                    error_message: String::new(),
                    infer_response: Some(answered.message),
                },
                Err(error) => failed(&id, &error),
            }
        };
        match in_sequence {
            // The steps of a sequence must not overtake each other.
            true => Pending::Done(Box::new(Ok(run.await))),
            false => Pending::Running(Task(tokio::spawn(run))),
        }
    }
}

fn failed(id: &str, error: &Error) -> ModelStreamInferResponse {
    ModelStreamInferResponse {
        error_message: error.message().to_owned(),
        infer_response: Some(ModelInferResponse::without_outputs(id)),
    }
}
