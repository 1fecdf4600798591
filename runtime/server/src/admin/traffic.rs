//! `/v1/endpoints/{name}/traffic`: several versions of an endpoint at once.

use super::deploy::PluginBody;
use super::rollouts::{Task, run};
use super::{Admin, read_json, to_json};
use crate::control::Reply;
use http::Method;
use hyper::body::Incoming;
use mortise_deploy::{BesideRequest, RouterChoice, TrafficChange};
use mortise_types::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The part of a deployment that keeps its version beside the stable one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BesideBody {
    percent: f64,
    router: Option<PluginBody>,
    #[serde(default)]
    router_config: Map<String, Value>,
    key: Option<String>,
}

/// What is to be different.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrafficBody {
    router: Option<PluginBody>,
    #[serde(default)]
    router_config: Map<String, Value>,
    key: Option<String>,
    /// Percent by version.
    #[serde(default)]
    shares: BTreeMap<u64, f64>,
}

impl BesideBody {
    pub(super) fn into_request(self, admin: &Admin) -> Result<BesideRequest> {
        let router = router(admin, self.router, self.router_config)?;
        Ok(BesideRequest { percent: self.percent, router, key: self.key })
    }
}

impl TrafficBody {
    fn into_change(self, admin: &Admin) -> Result<TrafficChange> {
        let router = router(admin, self.router, self.router_config)?;
        Ok(TrafficChange { router, key: self.key, shares: self.shares })
    }
}

fn router(
    admin: &Admin,
    plugin: Option<PluginBody>,
    config: Map<String, Value>,
) -> Result<Option<RouterChoice>> {
    match plugin {
        Some(plugin) => Ok(Some(RouterChoice { plugin: plugin.resolve(admin)?, config })),
        None if config.is_empty() => Ok(None),
        None => Err(Error::invalid("router_config needs the router that it is for")),
    }
}

/// Answers what is below `/v1/endpoints/{name}/traffic`.
pub(super) async fn traffic(
    admin: Arc<Admin>,
    method: &Method,
    (name, rest): (&str, &[&str]),
    who: String,
    body: Incoming,
) -> Reply {
    let task: Result<Task> = match (method, rest) {
        (&Method::GET, []) => Ok(Box::new(|deployer, name, _| to_json(&deployer.traffic(name)?))),
        (&Method::POST, []) => read_json(body).await.and_then(|body| change(&admin, body)),
        (&Method::POST, ["retire", version]) => number(version).map(|version| -> Task {
            Box::new(move |deployer, name, who| {
                to_json(&deployer.retire_version(name, version, who)?)
            })
        }),
        (&Method::POST, ["promote", version]) => number(version).map(|version| -> Task {
            Box::new(move |deployer, name, who| {
                to_json(&deployer.promote_version(name, version, who)?)
            })
        }),
        _ => Err(Error::not_found(format!(
            "traffic answers GET, and POST to itself, retire/VERSION and promote/VERSION; not \
             {method} {rest:?}"
        ))),
    };
    run(admin, task, name, who).await
}

fn change(admin: &Admin, body: TrafficBody) -> Result<Task> {
    let change = body.into_change(admin)?;
    Ok(Box::new(move |deployer, name, who| to_json(&deployer.set_traffic(name, change, who)?)))
}

fn number(version: &str) -> Result<u64> {
    version
        .parse()
        .map_err(|_| Error::invalid(format!("\"{version}\" is no version: name a number")))
}
