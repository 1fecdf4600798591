//! Webhooks of rollouts.

use mortise_deploy::{HookEvent, Hooks};
use mortise_types::{Error, Result};
use std::time::Duration;
use ureq::Agent;

/// How long a service may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Posts events as JSON. Any status of success is consent.
pub(crate) struct WebHooks(Agent);

impl WebHooks {
    pub(crate) fn new() -> Self {
        let config = Agent::config_builder().timeout_global(Some(TIMEOUT)).build();
        Self(config.into())
    }
}

impl Hooks for WebHooks {
    fn call(&self, url: &str, event: &HookEvent) -> Result<()> {
        match self.0.post(url).send_json(event) {
            Ok(_) => Ok(()),
            Err(ureq::Error::StatusCode(status)) => {
                Err(Error::conflict(format!("it answered with status {status}")))
            }
            Err(error) => Err(Error::not_ready(error.to_string())),
        }
    }
}
