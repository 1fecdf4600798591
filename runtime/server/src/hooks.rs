//! Webhooks of rollouts.

use crate::net::agent_config;
use mortise_deploy::{HookEvent, Hooks};
use mortise_types::{Error, Result};
use std::time::Duration;
use ureq::Agent;

/// How long a service may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Posts events as JSON, over HTTP or HTTPS. Any status of success is consent.
pub(crate) struct WebHooks;

impl Hooks for WebHooks {
    fn call(&self, url: &str, event: &HookEvent) -> Result<()> {
        let config = Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .tls_config(agent_config(url)?)
            .build();
        match Agent::from(config).post(url).send_json(event) {
            Ok(_) => Ok(()),
            Err(ureq::Error::StatusCode(status)) => {
                Err(Error::conflict(format!("it answered with status {status}")))
            }
            Err(error) => Err(Error::not_ready(error.to_string())),
        }
    }
}
