//! The admin API: uploads, deployments and their state.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::http1::{Client, Response};

/// A client of the admin port.
pub struct Admin {
    client: Client,
}

/// What to deploy. The files are held as bytes; they are small here.
#[derive(Clone, Debug, Default)]
pub struct Deployment {
    pub plugin: Part,
    pub transforms: Vec<Part>,
    pub version: Option<u64>,
    /// The self-test file and the data files it names.
    pub tests: Option<(String, Vec<File>)>,
    /// How requests wait, merge and are limited; `null` for the defaults.
    pub serving: Value,
    /// How weights are put into fewer bits.
    pub quantize: Option<Quantize>,
    pub rollout: Option<Rollout>,
    /// Keeps the version beside the stable one.
    pub beside: Option<Beside>,
}

/// A share of the traffic, and who divides it.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    pub percent: f64,
    pub router: Option<Part>,
    pub key: Option<String>,
}

/// A mode, samples and the largest difference allowed.
#[derive(Clone, Debug, Default)]
pub struct Quantize {
    pub mode: String,
    pub samples: Option<File>,
    pub max_error: Option<f64>,
}

/// How a version gets its traffic.
#[derive(Clone, Debug, Default)]
pub struct Rollout {
    pub strategy: Part,
    pub router: Option<Part>,
    pub key: Option<String>,
    pub hook: Option<Value>,
}

impl Rollout {
    pub fn of(strategy: Part) -> Self {
        Self { strategy, ..Self::default() }
    }
}

/// A file by name.
pub type File = (String, Vec<u8>);

/// A plugin with its files and configuration.
#[derive(Clone, Debug, Default)]
pub struct Part {
    pub name: String,
    /// The component, unless it is a first-party plugin.
    pub component: Option<Vec<u8>>,
    /// The address of another server, for `upstream`.
    pub url: Option<String>,
    pub assets: Vec<File>,
    pub config: Map<String, Value>,
}

impl Part {
    /// A first-party plugin by name.
    pub fn builtin(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// A component of our own.
    pub fn uploaded(name: &str, component: Vec<u8>) -> Self {
        Self { name: name.to_owned(), component: Some(component), ..Self::default() }
    }

    /// A model of another server.
    pub fn upstream(address: SocketAddr) -> Self {
        Self::upstream_over("http", address)
    }

    /// The same over another protocol.
    pub fn upstream_over(scheme: &str, address: SocketAddr) -> Self {
        Self { url: Some(format!("{scheme}://{address}")), ..Self::builtin("upstream") }
    }

    #[must_use]
    pub fn asset(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.assets.push((name.to_owned(), bytes.into()));
        self
    }

    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.config.insert(key.to_owned(), value.into());
        self
    }
}

impl Deployment {
    /// An ONNX model.
    pub fn onnx(model: impl Into<Vec<u8>>) -> Self {
        Self { plugin: Part::builtin("onnx").asset("model.onnx", model), ..Self::default() }
    }

    pub fn of(plugin: Part) -> Self {
        Self { plugin, ..Self::default() }
    }

    #[must_use]
    pub fn version(mut self, version: u64) -> Self {
        self.version = Some(version);
        self
    }

    #[must_use]
    pub fn transform(mut self, transform: Part) -> Self {
        self.transforms.push(transform);
        self
    }

    #[must_use]
    pub fn serving(mut self, serving: Value) -> Self {
        self.serving = serving;
        self
    }

    #[must_use]
    pub fn rollout(mut self, rollout: Rollout) -> Self {
        self.rollout = Some(rollout);
        self
    }

    #[must_use]
    pub fn beside(mut self, beside: Beside) -> Self {
        self.beside = Some(beside);
        self
    }

    #[must_use]
    pub fn quantize(mut self, quantize: Quantize) -> Self {
        self.quantize = Some(quantize);
        self
    }

    #[must_use]
    pub fn tests(mut self, toml: &str) -> Self {
        self.tests = Some((toml.to_owned(), Vec::new()));
        self
    }
}

/// A deployment that did not go live.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub status: u16,
    /// The stage that was not reached.
    pub stage: Option<String>,
    pub message: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (status {}, stage {:?})", self.message, self.status, self.stage)
    }
}

impl Admin {
    pub fn new(address: SocketAddr, token: &str) -> Self {
        let client = Client::new(address);
        Self { client: client.with_header("authorization", &format!("Bearer {token}")) }
    }

    /// Deploys and returns what went live.
    ///
    /// # Errors
    /// It did not go live.
    pub fn deploy(&mut self, name: &str, deployment: &Deployment) -> Result<Value> {
        match self.try_deploy(name, deployment, &mut |_| {})? {
            Ok(deployed) => Ok(deployed),
            Err(refusal) => bail!("deploying {name}: {refusal}"),
        }
    }

    /// Deploys what should be refused.
    ///
    /// # Errors
    /// It went live, or the server could not be asked.
    pub fn deploy_refused(&mut self, name: &str, deployment: &Deployment) -> Result<Refusal> {
        match self.try_deploy(name, deployment, &mut |_| {})? {
            Ok(deployed) => bail!("{name} went live: {deployed}"),
            Err(refusal) => Ok(refusal),
        }
    }

    /// Deploys; `on_stage` is told each stage as it is entered.
    ///
    /// # Errors
    /// The server cannot be reached, or breaks off.
    pub fn try_deploy(
        &mut self,
        name: &str,
        deployment: &Deployment,
        on_stage: &mut dyn FnMut(&str),
    ) -> Result<Result<Value, Refusal>> {
        let body = match self.upload_all(deployment)? {
            Ok(body) => body,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut last = Value::Null;
        let path = format!("/v1/endpoints/{name}/deploy");
        let response = self.client.post_for_lines(&path, &body, &mut |line| {
            let event: Value = serde_json::from_str(line).unwrap_or_default();
            match event["event"].as_str() {
                Some("stage") => on_stage(event["stage"].as_str().unwrap_or_default()),
                _ => last = event,
            }
        })?;
        if response.status != 200 {
            return Ok(Err(refusal_of(&response)?));
        }
        Ok(match last["event"].as_str() {
            Some("deployed") => Ok(last["deployed"].take()),
            Some("failed") => Err(Refusal {
                status: last["status"].as_u64().unwrap_or(0) as u16,
                stage: last["stage"].as_str().map(str::to_owned),
                message: last["error"].as_str().unwrap_or_default().to_owned(),
            }),
            _ => bail!("the answer to a deployment ended without a result: {}", response.text()),
        })
    }

    /// Uploads the files and returns the body of the deploy request.
    fn upload_all(&mut self, deployment: &Deployment) -> Result<Result<Value, Refusal>> {
        let mut refusal = None;
        let mut upload = |bytes: &[u8]| -> Result<Value> {
            let response = self.client.post("/v1/uploads", bytes)?;
            if response.status == 200 {
                return Ok(response.json()?["upload"].clone());
            }
            refusal = Some(refusal_of(&response)?);
            Ok(Value::Null)
        };
        let mut body = part_json(&deployment.plugin, &mut upload)?;
        if let Some(version) = deployment.version {
            body["version"] = version.into();
        }
        let transforms = deployment.transforms.iter().map(|part| part_json(part, &mut upload));
        body["transforms"] = transforms.collect::<Result<Vec<_>>>()?.into();
        if !deployment.serving.is_null() {
            body["serving"] = deployment.serving.clone();
        }
        if let Some((toml, data)) = &deployment.tests {
            let data = files_json(data, &mut upload)?;
            body["tests"] = json!({"upload": upload(toml.as_bytes())?, "data": data});
        }
        if let Some(Quantize { mode, samples, max_error }) = &deployment.quantize {
            let samples = files_json(samples.as_slice(), &mut upload)?;
            body["quantize"] = json!({"mode": mode, "samples": samples[0], "max_error": max_error});
        }
        if let Some(rollout) = &deployment.rollout {
            body["rollout"] = rollout_json(rollout, &mut upload)?;
        }
        if let Some(Beside { percent, router, key }) = &deployment.beside {
            body["beside"] = router_json(router.as_ref(), &mut upload)?;
            body["beside"]["percent"] = (*percent).into();
            body["beside"]["key"] = key.clone().into();
        }
        Ok(match refusal {
            Some(refusal) => Err(refusal),
            None => Ok(body),
        })
    }

    /// # Errors
    /// The server cannot be reached.
    pub fn get(&mut self, path: &str) -> Result<Response> {
        self.client.get(path)
    }

    /// # Errors
    /// The server cannot be reached.
    pub fn post(&mut self, path: &str) -> Result<Response> {
        self.client.post(path, b"")
    }

    /// # Errors
    /// There is nothing to go back to, or the server cannot be reached.
    pub fn rollback(&mut self, name: &str) -> Result<Value> {
        self.post(&format!("/v1/endpoints/{name}/rollback"))?.ok()?.json()
    }

    /// # Errors
    /// There is no such endpoint, or the server cannot be reached.
    pub fn undeploy(&mut self, name: &str) -> Result<Value> {
        let path = format!("/v1/endpoints/{name}");
        self.client.send("DELETE", &path, &[], b"")?.ok()?.json()
    }

    /// The rollout of an endpoint.
    ///
    /// # Errors
    /// It never had one, or the server cannot be reached.
    pub fn rollout(&mut self, name: &str) -> Result<Value> {
        self.get(&format!("/v1/endpoints/{name}/rollout"))?.ok()?.json()
    }

    /// `pause`, `resume`, `promote`, `abort`, and with a body `weight` and
    /// `strategy`.
    ///
    /// # Errors
    /// It is refused, or the server cannot be reached.
    pub fn steer_rollout(&mut self, name: &str, action: &str, body: &Value) -> Result<Value> {
        let path = format!("/v1/endpoints/{name}/rollout/{action}");
        self.client.post(&path, body.to_string().as_bytes())?.ok()?.json()
    }

    /// How the traffic of an endpoint is divided.
    ///
    /// # Errors
    /// It has one version alone, or the server cannot be reached.
    pub fn traffic(&mut self, name: &str) -> Result<Value> {
        self.get(&format!("/v1/endpoints/{name}/traffic"))?.ok()?.json()
    }

    /// Divides it otherwise; the answer as it comes.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub fn set_traffic(
        &mut self,
        name: &str,
        router: Option<&Part>,
        shares: &Value,
    ) -> Result<Response> {
        let mut upload = |bytes: &[u8]| -> Result<Value> {
            Ok(self.client.post("/v1/uploads", bytes)?.ok()?.json()?["upload"].take())
        };
        let mut body = router_json(router, &mut upload)?;
        body["shares"] = shares.clone();
        self.client.post(&format!("/v1/endpoints/{name}/traffic"), body.to_string().as_bytes())
    }

    /// Values of metrics that clients report.
    ///
    /// # Errors
    /// They are refused, or the server cannot be reached.
    pub fn report(&mut self, name: &str, reports: &Value) -> Result<Value> {
        let path = format!("/v1/endpoints/{name}/metrics");
        self.client.post(&path, reports.to_string().as_bytes())?.ok()?.json()
    }

    /// The state of one endpoint.
    ///
    /// # Errors
    /// There is no such endpoint, or the server cannot be reached.
    pub fn describe(&mut self, name: &str) -> Result<Value> {
        self.get(&format!("/v1/endpoints/{name}"))?.ok()?.json()
    }

    /// The states of all endpoints.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub fn list(&mut self) -> Result<Vec<Value>> {
        let list = self.get("/v1/endpoints")?.ok()?.json()?;
        ensure!(list.is_array(), "not a list: {list}");
        list.as_array().cloned().context("a list was just seen")
    }
}

fn refusal_of(response: &Response) -> Result<Refusal> {
    let message = response.json()?["error"].as_str().unwrap_or_default().to_owned();
    Ok(Refusal { status: response.status, stage: None, message })
}

type Upload<'a> = dyn FnMut(&[u8]) -> Result<Value> + 'a;

fn part_json(part: &Part, upload: &mut Upload) -> Result<Value> {
    let mut plugin = json!({"name": part.name});
    if let Some(component) = &part.component {
        plugin["upload"] = upload(component)?;
    }
    if let Some(url) = &part.url {
        plugin["url"] = url.as_str().into();
    }
    let assets = files_json(&part.assets, upload)?;
    Ok(json!({"plugin": plugin, "assets": assets, "config": part.config}))
}

/// `router` and `router_config`, where there is a router.
fn router_json(router: Option<&Part>, upload: &mut Upload) -> Result<Value> {
    let Some(router) = router else { return Ok(json!({})) };
    let plugin = part_json(router, upload)?["plugin"].take();
    Ok(json!({"router": plugin, "router_config": router.config}))
}

fn rollout_json(rollout: &Rollout, upload: &mut Upload) -> Result<Value> {
    let plugin = |part: &Part, upload: &mut Upload| -> Result<Value> {
        Ok(part_json(part, upload)?["plugin"].take())
    };
    let mut value = json!({
        "strategy": plugin(&rollout.strategy, upload)?,
        "config": rollout.strategy.config,
        "key": rollout.key,
        "hook": rollout.hook,
    });
    if let Some(router) = &rollout.router {
        value["router"] = plugin(router, upload)?;
        value["router_config"] = Value::Object(router.config.clone());
    }
    Ok(value)
}

fn files_json(files: &[File], upload: &mut Upload) -> Result<Value> {
    let mut file = |(name, bytes): &File| -> Result<Value> {
        Ok(json!({"name": name, "upload": upload(bytes)?}))
    };
    files.iter().map(&mut file).collect()
}
