use crate::plane::receiving::{BodyBudget, BodyShare};
use crate::status::grpc_status;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tonic::Status;

/// What a client sends in a call. Messages of which only a part has come count
/// against the budget of bodies; those that come in one piece do not.
pub(super) struct CallMessages {
    body: Incoming,
    framing: Framing,
    share: BodyShare,
}

impl CallMessages {
    pub(super) fn new(body: Incoming, budget: &Arc<BodyBudget>) -> Self {
        Self { body, framing: Framing::default(), share: budget.share() }
    }
}

impl Body for CallMessages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let frame = match ready!(Pin::new(&mut this.body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(Status::from_error(error.into())))),
            None => return Poll::Ready(None),
        };
        if let Some(data) = frame.data_ref() {
            this.framing.advance(data);
            if let Err(error) = this.share.hold(this.framing.unfinished_bytes) {
                return Poll::Ready(Some(Err(grpc_status(&error))));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A byte that says whether a message is compressed, and four of its length.
const PREFIX_BYTES: usize = 5;

/// Where messages begin and end in a call's data.
#[derive(Default)]
struct Framing {
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of `prefix` that have come.
    prefix_bytes: usize,
    /// Bytes of the present message that have not come.
    missing_bytes: usize,
    /// Bytes of the present message that have come.
    unfinished_bytes: usize,
}

impl Framing {
    fn advance(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let taken = match self.missing_bytes {
                0 => self.read_prefix(data),
                missing => self.pass(missing.min(data.len())),
            };
            data = &data[taken..];
        }
    }

    fn pass(&mut self, bytes: usize) -> usize {
        self.missing_bytes -= bytes;
        self.unfinished_bytes = match self.missing_bytes {
            0 => 0,
            _ => self.unfinished_bytes + bytes,
        };
        bytes
    }

    fn read_prefix(&mut self, data: &[u8]) -> usize {
        let taken = data.len().min(PREFIX_BYTES - self.prefix_bytes);
        self.prefix[self.prefix_bytes..][..taken].copy_from_slice(&data[..taken]);
        self.prefix_bytes += taken;
        if self.prefix_bytes == PREFIX_BYTES {
            let [_compressed, length @ ..] = self.prefix;
            self.missing_bytes = u32::from_be_bytes(length) as usize;
            self.prefix_bytes = 0;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parts_of_messages_are_held() {
        let mut stream = Vec::new();
        for length in [3u8, 0, 9] {
            stream.extend([0, 0, 0, 0, length]);
            stream.extend(vec![7; length.into()]);
        }
        let held = |sizes: &[usize]| -> Vec<usize> {
            let mut framing = Framing::default();
            let mut rest = stream.as_slice();
            let mut step = |size: &usize| {
                let (piece, after) = rest.split_at(*size);
                rest = after;
                framing.advance(piece);
                framing.unfinished_bytes
            };
            sizes.iter().map(&mut step).collect()
        };
        assert_eq!(held(&[stream.len()]), [0]);
        // Within a prefix, within a message, at its end, and within the last.
        assert_eq!(held(&[2, 4, 2, 14, 5]), [0, 1, 0, 4, 0]);
        assert_eq!(held(&vec![1; stream.len()]).iter().max(), Some(&8));
    }
}
