//! Webhooks of rollouts.

use crate::net::agent_config;
use mortise_deploy::{HookEvent, Hooks};
use mortise_types::{Error, Result};
use std::time::Duration;
use ureq::http::Uri;
use ureq::{Agent, Body};

/// How long a service may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What is read of an answer that is no consent, and what of it is passed on.
const MAX_ANSWER_BYTES: u64 = 64 << 10;
const MAX_ANSWER_CHARS: usize = 256;

/// Posts events as JSON, over HTTP or HTTPS. Any status of success is consent.
pub(crate) struct WebHooks;

impl Hooks for WebHooks {
    fn check(&self, url: &str) -> Result<()> {
        let uri: Option<Uri> = url.parse().ok();
        let is_address = uri.is_some_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
        });
        match is_address {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "\"{url}\" is no address of a hook: write http://HOST:PORT/PATH or https://HOST/PATH"
            ))),
        }
    }

    fn call(&self, url: &str, event: &HookEvent) -> Result<()> {
        let config = Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .tls_config(agent_config(url)?)
            .http_status_as_error(false)
            .build();
        let mut answer = Agent::from(config)
            .post(url)
            .send_json(event)
            .map_err(|error| Error::not_ready(error.to_string()))?;
        if answer.status().is_success() {
            return Ok(());
        }
        let said = said(answer.body_mut());
        Err(Error::conflict(format!("it answered with status {}{said}", answer.status().as_u16())))
    }
}

/// `: ` and the text of an answer on one line, if it has one.
fn said(body: &mut Body) -> String {
    let text = body.with_config().limit(MAX_ANSWER_BYTES).read_to_string().unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().collect();
    let text: String = words.join(" ").chars().take(MAX_ANSWER_CHARS).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_web_are_taken() {
        for url in ["http://localhost:9000/hook", "https://example.com/a?b=c"] {
            WebHooks.check(url).unwrap();
        }
        for url in ["notaurl", "localhost:9000", "ftp://example.com", "http://", ""] {
            let error = WebHooks.check(url).unwrap_err();
            assert!(error.message().contains("write http://"), "{url}: {error}");
        }
    }
}
