use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mortise_deploy::{Deployer, Upload, UploadWriter};
use mortise_types::{Error, Result};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Chunks between the connection and the disk.
const CHUNKS_IN_FLIGHT: usize = 8;

/// Bytes of a refused upload that are still read.
const MAX_DISCARDED_BYTES: usize = 64 << 20;

/// Files that were uploaded and wait for the deployment that takes them.
pub(super) struct Uploads {
    pending: Mutex<HashMap<String, Pending>>,
    next_id: AtomicU64,
    max_pending: usize,
    keep_for: Duration,
}

struct Pending {
    upload: Upload,
    since: Instant,
}

impl Uploads {
    pub(super) fn new(max_pending: usize, keep_for: Duration) -> Self {
        Self { pending: Mutex::default(), next_id: AtomicU64::new(1), max_pending, keep_for }
    }

    /// Keeps a finished upload and returns the name to take it by.
    ///
    /// # Errors
    /// `Overloaded` when too many wait; the file is removed.
    pub(super) fn keep(&self, upload: Upload) -> Result<String> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.retain(|_, waiting| waiting.since.elapsed() < self.keep_for);
        if pending.len() >= self.max_pending {
            return Err(Error::overloaded(format!(
                "{} uploads wait for a deployment, which is admin.max_pending_uploads",
                self.max_pending
            )));
        }
        let id = format!("u{}", self.next_id.fetch_add(1, Ordering::Relaxed));
        pending.insert(id.clone(), Pending { upload, since: Instant::now() });
        Ok(id)
    }

    /// # Errors
    /// `NotFound` when no such upload waits.
    pub(super) fn take(&self, id: &str) -> Result<Upload> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = pending.remove(id).ok_or_else(|| {
            Error::not_found(format!(
                "no upload \"{id}\": each can be deployed once, soon after it was uploaded"
            ))
        })?;
        Ok(taken.upload)
    }
}

/// Streams a request's body to disk.
///
/// # Errors
/// When the client breaks off, the file is too large, or the disk is full.
pub(super) async fn receive(deployer: Arc<Deployer>, mut body: Incoming) -> Result<Upload> {
    let (chunks, inbox) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let writing = tokio::task::spawn_blocking(move || write_all(deployer.upload()?, inbox));
    while let Some(chunk) = next_chunk(&mut body).await {
        let is_broken = chunk.is_err();
        if chunks.send(chunk).await.is_err() {
            // The writer has failed and says why below.
            discard(&mut body).await;
            break;
        }
        if is_broken {
            break;
        }
    }
    drop(chunks);
    writing.await.map_err(|_| Error::internal("writing the upload failed"))?
}

async fn next_chunk(body: &mut Incoming) -> Option<Result<Bytes>> {
    loop {
        match body.frame().await?.map(hyper::body::Frame::into_data) {
            Ok(Ok(data)) => return Some(Ok(data)),
            Ok(Err(_trailers)) => {}
            Err(error) => {
                return Some(Err(Error::invalid(format!("the upload was broken off: {error}"))));
            }
        }
    }
}

/// Reads on for a while: many clients look at the reply only after they have
/// sent their body.
async fn discard(body: &mut Incoming) {
    let mut left = MAX_DISCARDED_BYTES;
    while let Some(Ok(chunk)) = next_chunk(body).await {
        left = left.saturating_sub(chunk.len());
        if left == 0 {
            return;
        }
    }
}

fn write_all(mut writer: UploadWriter, mut inbox: mpsc::Receiver<Result<Bytes>>) -> Result<Upload> {
    while let Some(chunk) = inbox.blocking_recv() {
        writer.write(&chunk?)?;
    }
    writer.finish()
}
