//! `/v1/endpoints/{name}/rollout` and `/metrics`: rollouts under way.

use super::deploy::PluginBody;
use super::{Admin, json_error, json_reply, read_json, read_json_or_default, to_json};
use crate::control::Reply;
use http::{Method, StatusCode};
use hyper::body::Incoming;
use mortise_deploy::{
    Deployer, MetricReport, PluginRef, RolloutHook, RolloutRequest, StrategyChange,
};
use mortise_types::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// The router of rollouts that name none.
const DEFAULT_ROUTER: &str = "weighted";

/// The part of a deployment that says how its version gets traffic.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RolloutBody {
    strategy: PluginBody,
    #[serde(default)]
    config: Map<String, Value>,
    router: Option<PluginBody>,
    #[serde(default)]
    router_config: Map<String, Value>,
    key: Option<String>,
    hook: Option<RolloutHook>,
}

impl RolloutBody {
    pub(super) fn into_request(self, admin: &Admin) -> Result<RolloutRequest> {
        let router = match self.router {
            Some(router) => router.resolve(admin)?,
            None => PluginRef::Builtin(DEFAULT_ROUTER.to_string()),
        };
        Ok(RolloutRequest {
            strategy: self.strategy.resolve(admin)?,
            config: self.config,
            router,
            router_config: self.router_config,
            key: self.key,
            hook: self.hook,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightBody {
    percent: f64,
    /// Whether it is done though the hook does not agree.
    #[serde(default)]
    force: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PromoteBody {
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StrategyBody {
    strategy: PluginBody,
    #[serde(default)]
    config: Map<String, Value>,
    #[serde(default)]
    defaults: bool,
}

/// What to do, with the name of the endpoint and who asks.
pub(super) type Task = Box<dyn FnOnce(&Deployer, &str, &str) -> Result<Value> + Send>;

/// Answers what is below `/v1/endpoints/{name}/rollout`.
pub(super) async fn rollout(
    admin: Arc<Admin>,
    method: &Method,
    (name, rest): (&str, &[&str]),
    who: String,
    body: Incoming,
) -> Reply {
    let task: Result<Task> = match (method, rest) {
        (&Method::GET, []) => Ok(Box::new(|deployer, name, _| to_json(&deployer.rollout(name)?))),
        (&Method::POST, ["pause"]) => Ok(change(Deployer::pause_rollout)),
        (&Method::POST, ["resume"]) => Ok(change(Deployer::resume_rollout)),
        (&Method::POST, ["promote"]) => read_json_or_default(body).await.map(promote),
        (&Method::POST, ["abort"]) => Ok(change(Deployer::abort_rollout)),
        (&Method::POST, ["weight"]) => read_json(body).await.and_then(set_weight),
        (&Method::POST, ["strategy"]) => {
            read_json(body).await.and_then(|body| swap_strategy(&admin, body))
        }
        _ => Err(Error::not_found(format!(
            "a rollout answers GET, and POST to pause, resume, promote, abort, weight and strategy; \
             not {method} {rest:?}"
        ))),
    };
    run(admin, task, name, who).await
}

/// `POST /v1/endpoints/{name}/metrics`
pub(super) async fn metrics(admin: Arc<Admin>, name: &str, who: String, body: Incoming) -> Reply {
    let reports: Result<Vec<MetricReport>> = read_json(body).await;
    let task = reports.map(|reports| -> Task {
        Box::new(move |deployer, name, _| {
            Ok(json!({"accepted": deployer.report_metrics(name, &reports)?}))
        })
    });
    run(admin, task, name, who).await
}

pub(super) async fn run(admin: Arc<Admin>, task: Result<Task>, name: &str, who: String) -> Reply {
    let task = match task {
        Ok(task) => task,
        Err(error) => return json_error(&error),
    };
    let name = name.to_string();
    let work = move || task(&admin.app.deployer, &name, &who);
    let outcome = tokio::task::spawn_blocking(work).await;
    match outcome.unwrap_or_else(|_| Err(Error::internal("the request broke down"))) {
        Ok(value) => json_reply(StatusCode::OK, &value),
        Err(error) => json_error(&error),
    }
}

fn change(change: fn(&Deployer, &str, &str) -> Result<mortise_deploy::RolloutStatus>) -> Task {
    Box::new(move |deployer, name, who| to_json(&change(deployer, name, who)?))
}

fn set_weight(body: WeightBody) -> Result<Task> {
    if !(0.0..=100.0).contains(&body.percent) {
        return Err(Error::invalid("percent must lie between 0 and 100"));
    }
    let weight = (body.percent * 100.0).round() as u32;
    Ok(Box::new(move |deployer, name, who| {
        to_json(&deployer.set_rollout_weight(name, weight, body.force, who)?)
    }))
}

fn promote(body: PromoteBody) -> Task {
    Box::new(move |deployer, name, who| to_json(&deployer.promote_rollout(name, body.force, who)?))
}

fn swap_strategy(admin: &Admin, body: StrategyBody) -> Result<Task> {
    let StrategyBody { strategy, config, defaults } = body;
    let change = StrategyChange { strategy: strategy.resolve(admin)?, config, defaults };
    Ok(Box::new(move |deployer, name, who| to_json(&deployer.swap_strategy(name, change, who)?)))
}
