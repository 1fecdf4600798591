//! A client of the admin API and of the data plane.

use super::CliError;
use super::args::AdminArgs;
use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::http::{Request, Response};
use ureq::{Agent, AsSendBody, Body, SendBody};

/// File in the store with the running server's addresses and token.
pub(crate) const ADMIN_FILE: &str = "admin.json";

/// Time to connect; everything else takes as long as it takes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What the running server writes into its store, for clients of the same user.
#[derive(Deserialize)]
pub(crate) struct AdminFile {
    pub(crate) admin: String,
    pub(crate) http: String,
    pub(crate) token: String,
}

impl AdminFile {
    /// # Errors
    /// When no server runs on the store.
    pub(crate) fn read(store: Option<&Path>) -> Result<Self> {
        let dir = store.map_or_else(default_store_dir, |dir| Ok(dir.to_path_buf()))?;
        let text = std::fs::read_to_string(dir.join(ADMIN_FILE)).map_err(|_| CliError {
            message: format!("no server runs on the store {}", dir.display()),
            hint: Some(
                "start one with `mortise serve`, or name another with --store DIR, \
                 or with --admin URL and --token TOKEN"
                    .to_string(),
            ),
            is_unreachable: true,
        })?;
        serde_json::from_str(&text).context("the store's admin.json is damaged")
    }
}

/// `$XDG_DATA_HOME/mortise` or `~/.local/share/mortise`.
///
/// # Errors
/// When neither variable is set.
pub(crate) fn default_store_dir() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_DATA_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("mortise"))
        .ok_or_else(|| {
            CliError::new("there is no home directory for the store", "pass --store DIR").into()
        })
}

/// A name as one segment of a path.
pub(crate) fn segment(name: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    name.bytes()
        .map(|byte| match keep(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

/// Speaks HTTP with a server and turns its errors into ours.
pub(crate) struct HttpClient {
    agent: Agent,
    base: String,
    token: Option<String>,
}

impl HttpClient {
    pub(crate) fn new(url: &str, token: Option<String>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            // The server is ours: a proxy for the world has no business here.
            .proxy(None)
            .build();
        let scheme = if url.contains("://") { "" } else { "http://" };
        let base = format!("{scheme}{}", url.trim_end_matches('/'));
        Self { agent: config.into(), base, token }
    }

    /// # Errors
    /// When the server cannot be reached or answers with an error.
    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        body: impl AsSendBody,
    ) -> Result<Response<Body>> {
        self.send_with(method, path, None, body)
    }

    fn send_with(
        &self,
        method: &str,
        path: &str,
        header: Option<(&str, &str)>,
        body: impl AsSendBody,
    ) -> Result<Response<Body>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("mortise-who", who());
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let request = request.body(body).context("the address is not a URL")?;
        let reply = self.agent.run(request).map_err(|error| CliError {
            message: format!("cannot reach the server at {}: {error}", self.base),
            hint: Some("is it running? `mortise serve` starts one".to_string()),
            is_unreachable: true,
        })?;
        match reply.status().is_success() {
            true => Ok(reply),
            false => Err(server_error(reply).into()),
        }
    }

    /// # Errors
    /// As [`HttpClient::send`], and when the answer is not JSON.
    pub(crate) fn json(&self, method: &str, path: &str, body: impl AsSendBody) -> Result<Value> {
        self.json_with(method, path, None, body)
    }

    /// As [`HttpClient::json`], with one more header.
    ///
    /// # Errors
    /// As [`HttpClient::json`].
    pub(crate) fn json_with(
        &self,
        method: &str,
        path: &str,
        header: Option<(&str, &str)>,
        body: impl AsSendBody,
    ) -> Result<Value> {
        let reply = self.send_with(method, path, header, body)?;
        let reader = reply.into_body().into_with_config().limit(u64::MAX).reader();
        serde_json::from_reader(BufReader::new(reader)).context("the server's answer is no JSON")
    }
}

fn server_error(reply: Response<Body>) -> CliError {
    let status = reply.status();
    let text = reply.into_body().read_to_string().unwrap_or_default();
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    let message = value["error"].as_str().unwrap_or(text.trim());
    CliError {
        message: match message {
            "" => format!("the server answered {status}"),
            message => message.to_string(),
        },
        hint: value["hint"].as_str().map(str::to_string),
        is_unreachable: false,
    }
}

/// `user@host`, for the audit log.
fn who() -> String {
    let user = std::env::var("USER").unwrap_or_else(|_| "unknown".to_string());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = format!("{user}@{}", host.trim());
    name.chars().filter(char::is_ascii_graphic).collect()
}

/// A client of the admin API.
pub(crate) struct AdminClient(HttpClient);

impl AdminClient {
    /// Takes address and token from the arguments, and what they leave out
    /// from the store of the server that runs there.
    ///
    /// # Errors
    /// When something is missing and no server runs on the store.
    pub(crate) fn connect(args: &AdminArgs) -> Result<Self> {
        if let (Some(url), Some(token)) = (&args.admin, &args.token) {
            return Ok(Self::new(url, token));
        }
        let file = AdminFile::read(args.store.as_deref())?;
        let url = args.admin.as_ref().unwrap_or(&file.admin);
        Ok(Self::new(url, args.token.as_ref().unwrap_or(&file.token)))
    }

    pub(crate) fn new(url: &str, token: &str) -> Self {
        Self(HttpClient::new(url, Some(token.to_string())))
    }

    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        self.0.json("GET", path, SendBody::none())
    }

    pub(crate) fn post(&self, path: &str) -> Result<Value> {
        self.0.json("POST", path, SendBody::none())
    }

    pub(crate) fn post_json(&self, path: &str, body: &Value) -> Result<Value> {
        self.0.json("POST", path, body.to_string())
    }

    pub(crate) fn delete(&self, path: &str) -> Result<Value> {
        self.0.json("DELETE", path, SendBody::none())
    }

    /// Streams a file to the server and returns the name of the upload.
    ///
    /// # Errors
    /// When the file cannot be read or the server refuses it.
    pub(crate) fn upload(&self, mut file: impl Read) -> Result<String> {
        let answer = self.0.json("POST", "/v1/uploads", SendBody::from_reader(&mut file))?;
        let id = answer["upload"].as_str().context("the server gave no name for the upload")?;
        Ok(id.to_string())
    }

    /// Deploys and hands each event to `on_event` as it arrives.
    ///
    /// # Errors
    /// When the server cannot be reached or breaks off.
    pub(crate) fn deploy(
        &self,
        name: &str,
        body: &Value,
        mut on_event: impl FnMut(&Value),
    ) -> Result<Value> {
        let path = format!("/v1/endpoints/{}/deploy", segment(name));
        let reply = self.0.send("POST", &path, body.to_string())?;
        let reader = reply.into_body().into_with_config().limit(u64::MAX).reader();
        let mut last = Value::Null;
        for line in BufReader::new(reader).lines() {
            let line = line.context("the server broke off during the deployment")?;
            last = serde_json::from_str(&line).context("the server's answer is no JSON")?;
            on_event(&last);
        }
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_one_segment() {
        let cases = [("a-b_c.1", "a-b_c.1"), ("a/b", "a%2Fb"), ("é", "%C3%A9")];
        for (name, want) in cases {
            assert_eq!(segment(name), want);
        }
    }
}
