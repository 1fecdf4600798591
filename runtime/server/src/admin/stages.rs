use mortise_deploy::{Stage, StageObserver};
use mortise_types::Result;
use tokio::sync::broadcast;

/// Stage events kept for a reader that lags; a deployment has six.
const CAPACITY: usize = 256;

/// Passes the stages of deployments on to whoever watches them.
pub(crate) struct StageFeed(broadcast::Sender<StageEvent>);

#[derive(Clone, Debug)]
pub(crate) struct StageEvent {
    pub(crate) endpoint: String,
    pub(crate) stage: Stage,
}

impl Default for StageFeed {
    fn default() -> Self {
        Self(broadcast::channel(CAPACITY).0)
    }
}

impl StageFeed {
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<StageEvent> {
        self.0.subscribe()
    }
}

impl StageObserver for StageFeed {
    fn entered(&self, endpoint: &str, stage: Stage) -> Result<()> {
        // Without watchers there is nobody to tell.
        let _ = self.0.send(StageEvent { endpoint: endpoint.to_string(), stage });
        Ok(())
    }
}
