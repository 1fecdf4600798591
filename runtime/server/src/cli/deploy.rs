use super::CliError;
use super::args::DeployArgs;
use super::client::AdminClient;
use super::show::print_json;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use mortise_deploy::serving::ServingInfo;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Uploads the files, deploys them, and shows the stages.
///
/// # Errors
/// When a file is missing, or the deployment failed; what was live still is.
pub(crate) fn run(args: &DeployArgs) -> Result<()> {
    let plan = Plan::from_args(args)?;
    let client = AdminClient::connect(&args.admin)?;
    let started = Instant::now();
    let body = plan.upload_all(&client)?;
    let progress = (!args.admin.json).then(Progress::new);
    let end = client.deploy(&args.name, &body, |event| {
        if let Some(progress) = &progress {
            progress.show(event);
        }
    })?;
    if let Some(progress) = progress {
        progress.bar.finish_and_clear();
    }
    if end["event"] != "deployed" {
        return Err(failed(&end, args.admin.json).into());
    }
    match args.admin.json {
        true => print_json(&end["deployed"]),
        false => {
            print_deployed(&end["deployed"], started);
            Ok(())
        }
    }
}

fn failed(end: &Value, as_json: bool) -> CliError {
    if as_json {
        println!("{end}");
    }
    CliError {
        message: end["error"].as_str().unwrap_or("the deployment broke off").to_string(),
        hint: end["hint"].as_str().map(str::to_string),
        is_unreachable: false,
    }
}

fn print_deployed(deployed: &Value, started: Instant) {
    let stages: Vec<String> = deployed["stages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|stage| {
            let ms = stage["duration_us"].as_f64()? / 1e3;
            Some(format!("{} {ms:.1} ms", stage["stage"].as_str()?))
        })
        .collect();
    if let Some(line) = shared_line(deployed, started.elapsed().as_secs_f64()) {
        println!("{line}");
        for warning in deployed["warnings"].as_array().into_iter().flatten() {
            println!("  warning: {}", warning.as_str().unwrap_or_default());
        }
        return print_quantized(&deployed["quantize"]);
    }
    println!(
        "{} version {} is live (revision {}) after {:.2} s: {}",
        deployed["name"].as_str().unwrap_or_default(),
        deployed["version"],
        deployed["revision"],
        started.elapsed().as_secs_f64(),
        stages.join(", ")
    );
    print_quantized(&deployed["quantize"]);
}

/// Of a version that does not answer alone; `None` of one that is live.
fn shared_line(deployed: &Value, elapsed_s: f64) -> Option<String> {
    let (name, version) = (deployed["name"].as_str()?, &deployed["version"]);
    let beside = deployed["beside_weight_percent"].as_f64();
    let percent = beside.or(deployed["rollout_weight_percent"].as_f64())?;
    let share = match deployed["divided_by"].as_str() {
        Some(router) => format!("what {router} gives it of the traffic"),
        None => format!("{percent} % of the traffic"),
    };
    let shown = match beside {
        Some(_) => format!(
            "beside the stable one after {elapsed_s:.2} s; `mortise traffic status {name}` shows how \
             they fare"
        ),
        None => format!(
            "after {elapsed_s:.2} s; `mortise rollout status {name} --watch` shows how it fares\n  \
             requests to /v2/models/{name}/versions/{version}/infer try it out"
        ),
    };
    Some(format!("{name} version {version} gets {share} {shown}"))
}

/// The sizes, the difference, and what stays as it was.
fn print_quantized(report: &Value) {
    let count = |key: &str| report[key].as_u64().unwrap_or(0);
    if report.is_null() {
        return;
    }
    let ratio = |kind: &str| {
        let (before, after) =
            (count(&format!("{kind}_bytes_before")), count(&format!("{kind}_bytes_after")));
        let shown = [before, after].map(|bytes| indicatif::HumanBytes(bytes).to_string());
        let ratio = before as f64 / (after as f64).max(1.0);
        format!("{} to {} ({ratio:.2}x smaller)", shown[0], shown[1])
    };
    println!("  weights    {}; on the device {}", ratio("weight"), ratio("device"));
    let difference = &report["difference"];
    let number = |key: &str| difference[key].as_f64().unwrap_or(f64::INFINITY);
    let made_up = if report["generated"] == true { "made-up " } else { "" };
    println!(
        "  outputs    differ by up to {:.3e}, on average {:.3e}, in {} {made_up}samples (largest \
         output {:.3e}; {} of {} labels changed)",
        number("max_abs_error"),
        number("mean_abs_error"),
        difference["samples"],
        number("largest_output"),
        difference["changed"],
        difference["compared"],
    );
    println!("  quantized  {} products, {} tables", count("products"), count("tables"));
    for left in report["left"].as_array().into_iter().flatten() {
        println!(
            "  stays FP32 {} {} ({}): {}",
            left["count"],
            left["operator"].as_str().unwrap_or_default(),
            indicatif::HumanBytes(left["bytes"].as_u64().unwrap_or(0)),
            left["reason"].as_str().unwrap_or_default()
        );
    }
}

/// A deployment as read from the arguments, before anything is uploaded.
struct Plan {
    plugin: Component,
    version: Option<u64>,
    assets: Vec<Named>,
    config: Map<String, Value>,
    transforms: Vec<Transform>,
    tests: Option<Tests>,
    serving: ServingInfo,
    quantize: Option<Quantize>,
    rollout: Option<Rollout>,
    beside: Option<Beside>,
}

/// How weights are put into fewer bits.
struct Quantize {
    mode: String,
    samples: Option<Named>,
    max_error: Option<f64>,
}

/// How the new version gets its traffic.
struct Rollout {
    strategy: Component,
    config: Map<String, Value>,
    router: Option<Component>,
    router_config: Map<String, Value>,
    key: Option<String>,
    hook: Option<Value>,
}

/// The share that the new version gets beside the live one.
struct Beside {
    percent: f64,
    router: Option<Component>,
    router_config: Map<String, Value>,
    key: Option<String>,
}

/// A plugin that the server has, or the file of one.
pub(super) enum Component {
    Builtin(String),
    File(PathBuf),
    /// Deployed models in a row.
    Ensemble(PathBuf),
    /// The address of another server.
    Upstream(String),
}

/// A file and what plugins call it.
pub(super) struct Named {
    pub(super) name: String,
    pub(super) path: PathBuf,
}

struct Transform {
    plugin: Component,
    config: Map<String, Value>,
}

struct Tests {
    path: PathBuf,
    data: Vec<Named>,
}

impl Plan {
    fn from_args(args: &DeployArgs) -> Result<Self> {
        let (plugin, mut assets) = match (&args.upstream, &args.path) {
            (Some(url), _) => (Component::Upstream(url.clone()), Vec::new()),
            (None, path) => {
                let path = path.as_deref().unwrap_or(Path::new(""));
                plugin_and_assets(args.plugin.as_deref(), path)?
            }
        };
        assets.extend(named_assets(&args.asset)?);
        let transforms =
            args.transform.iter().map(|text| transform(text)).collect::<Result<_>>()?;
        let (model, strategy) = split_settings(args);
        Ok(Self {
            plugin,
            version: args.version,
            assets,
            config: config(&model)?,
            quantize: quantize(args),
            rollout: rollout(args, &strategy)?,
            beside: beside(args)?,
            transforms,
            tests: args.tests.as_deref().map(tests).transpose()?,
            serving: args.serving.as_deref().map(serving).transpose()?.unwrap_or_default(),
        })
    }

    fn upload_all(&self, client: &AdminClient) -> Result<Value> {
        let files = |files: &[Named]| -> Result<Vec<Value>> {
            let upload = |file: &Named| {
                Ok(json!({"name": file.name, "upload": upload(client, &file.path)?}))
            };
            files.iter().map(upload).collect()
        };
        let transforms = self.transforms.iter().map(|transform| {
            Ok(json!({"plugin": transform.plugin.upload(client)?, "config": transform.config}))
        });
        let tests = self.tests.as_ref().map(|tests| -> Result<Value> {
            Ok(json!({"upload": upload(client, &tests.path)?, "data": files(&tests.data)?}))
        });
        let quantize = self.quantize.as_ref().map(|quantize| -> Result<Value> {
            let samples = files(quantize.samples.as_slice())?.pop();
            let (mode, max_error) = (&quantize.mode, quantize.max_error);
            Ok(json!({"mode": mode, "samples": samples, "max_error": max_error}))
        });
        Ok(json!({
            "plugin": self.plugin.upload(client)?,
            "version": self.version,
            "assets": files(&self.assets)?,
            "config": self.config,
            "transforms": transforms.collect::<Result<Vec<_>>>()?,
            "tests": tests.transpose()?,
            "serving": self.serving,
            "quantize": quantize.transpose()?,
            "rollout": self.rollout.as_ref().map(|rollout| rollout.upload(client)).transpose()?,
            "beside": self.beside.as_ref().map(|beside| beside.upload(client)).transpose()?,
        }))
    }
}

impl Rollout {
    fn upload(&self, client: &AdminClient) -> Result<Value> {
        let router = self.router.as_ref().map(|router| router.upload(client)).transpose()?;
        Ok(json!({
            "strategy": self.strategy.upload(client)?,
            "config": self.config,
            "router": router,
            "router_config": self.router_config,
            "key": self.key,
            "hook": self.hook,
        }))
    }
}

impl Beside {
    fn upload(&self, client: &AdminClient) -> Result<Value> {
        let router = self.router.as_ref().map(|router| router.upload(client)).transpose()?;
        Ok(json!({
            "percent": self.percent,
            "router": router,
            "router_config": self.router_config,
            "key": self.key,
        }))
    }
}

/// Splits `--set` into the plugin's and the strategy's: without a rollout all
/// are the plugin's, with one those that begin with `model.`.
fn split_settings(args: &DeployArgs) -> (Vec<String>, Vec<String>) {
    if args.rollout.is_none() {
        return (args.set.clone(), Vec::new());
    }
    let (model, strategy): (Vec<&String>, Vec<&String>) =
        args.set.iter().partition(|pair| pair.starts_with(MODEL_PREFIX));
    let strip = |pair: &String| pair.trim_start_matches(MODEL_PREFIX).to_string();
    (model.into_iter().map(strip).collect(), strategy.into_iter().cloned().collect())
}

const MODEL_PREFIX: &str = "model.";

fn rollout(args: &DeployArgs, settings: &[String]) -> Result<Option<Rollout>> {
    let Some(strategy) = &args.rollout else { return Ok(None) };
    let hook = args.hook.as_ref().map(|url| json!({"url": url, "confirm": args.hook_confirm}));
    Ok(Some(Rollout {
        strategy: Component::parse(strategy),
        config: config(settings)?,
        router: args.router.as_deref().map(Component::parse),
        router_config: config(&args.router_set)?,
        key: args.key.clone(),
        hook,
    }))
}

fn beside(args: &DeployArgs) -> Result<Option<Beside>> {
    let Some(share) = &args.beside else { return Ok(None) };
    Ok(Some(Beside {
        percent: super::rollout::percent(share)?,
        router: args.router.as_deref().map(Component::parse),
        router_config: config(&args.router_set)?,
        key: args.key.clone(),
    }))
}

fn quantize(args: &DeployArgs) -> Option<Quantize> {
    let samples = args.calibrate.as_deref();
    let samples = samples.map(|path| Named { name: file_name(path), path: path.to_path_buf() });
    let max_error = args.max_quantize_error;
    args.quantize.clone().map(|mode| Quantize { mode, samples, max_error })
}

impl Component {
    pub(super) fn parse(text: &str) -> Self {
        match text.ends_with(".wasm") {
            true => Self::File(text.into()),
            false => Self::Builtin(text.to_string()),
        }
    }

    pub(super) fn upload(&self, client: &AdminClient) -> Result<Value> {
        Ok(match self {
            Self::Builtin(name) => json!({"name": name}),
            Self::Ensemble(path) => {
                json!({"name": "ensemble", "upload": upload(client, path)?})
            }
            Self::Upstream(url) => json!({"name": "upstream", "url": url}),
            Self::File(path) => json!({"name": stem(path), "upload": upload(client, path)?}),
        })
    }
}

/// The values of `--asset`.
pub(super) fn named_assets(pairs: &[String]) -> Result<Vec<Named>> {
    let named = |pair: &String| {
        let (name, path) = split_pair(pair, "--asset")?;
        Ok(Named { name: name.to_string(), path: path.into() })
    };
    pairs.iter().map(named).collect()
}

/// Which plugin serves the file or folder at `path`, and the files that it gets.
pub(super) fn plugin_and_assets(
    plugin: Option<&str>,
    path: &Path,
) -> Result<(Component, Vec<Named>)> {
    if !path.exists() {
        let message = format!("{} does not exist", path.display());
        return Err(CliError::new(message, "give a model file, a folder, or a .wasm plugin").into());
    }
    let extension = path.extension().and_then(|text| text.to_str()).unwrap_or_default();
    if extension == "wasm" && plugin.is_none() {
        return Ok((Component::File(path.to_path_buf()), Vec::new()));
    }
    if plugin == Some("ensemble") {
        return Ok((Component::Ensemble(path.to_path_buf()), Vec::new()));
    }
    let assets = match path.is_dir() {
        true => files_of(path)?,
        false => vec![Named { name: asset_name(path, extension), path: path.to_path_buf() }],
    };
    let guessed = assets.iter().find_map(|asset| match asset.path.extension()?.to_str()? {
        "onnx" => Some("onnx"),
        "safetensors" => Some("mlp"),
        _ => None,
    });
    let Some(plugin) = plugin.or(guessed) else {
        let message = format!("cannot tell which plugin serves {}", path.display());
        return Err(CliError::new(
            message,
            "pass --plugin onnx, --plugin mlp or --plugin FILE.wasm",
        )
        .into());
    };
    Ok((Component::parse(plugin), assets))
}

/// The name under which plugins look for the one file of a model.
fn asset_name(path: &Path, extension: &str) -> String {
    match extension {
        "" => file_name(path),
        extension => format!("model.{extension}"),
    }
}

fn files_of(dir: &Path) -> Result<Vec<Named>> {
    let entries =
        std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.is_file() {
            files.push(Named { name: file_name(&path), path });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// `PLUGIN=FILE.json`, or `PLUGIN` alone for an empty configuration.
fn transform(text: &str) -> Result<Transform> {
    let (plugin, file) = text.split_once('=').unwrap_or((text, ""));
    let config = match file {
        "" => Map::new(),
        path => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the transform's configuration {path}"))?;
            serde_json::from_str(&text).with_context(|| format!("{path} is not a JSON object"))?
        }
    };
    Ok(Transform { plugin: Component::parse(plugin), config })
}

/// Values that are JSON are taken as such, everything else as text.
pub(super) fn config(pairs: &[String]) -> Result<Map<String, Value>> {
    let parse = |pair: &String| {
        let (key, text) = split_pair(pair, "--set")?;
        let value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
        Ok((key.to_string(), value))
    };
    pairs.iter().map(parse).collect()
}

/// Checked here already, so that a typo is told before anything is uploaded.
fn serving(path: &Path) -> Result<ServingInfo> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the serving options {}", path.display()))?;
    ServingInfo::parse(&text).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))
}

/// The test file and the files that it names, which lie beside it.
fn tests(path: &Path) -> Result<Tests> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the tests {}", path.display()))?;
    let table: toml::Table =
        toml::from_str(&text).with_context(|| format!("{} is not TOML", path.display()))?;
    let dir = path.parent().unwrap_or(Path::new(""));
    let mut names = Vec::new();
    table.values().for_each(|value| collect_files(value, &mut names));
    names.sort();
    names.dedup();
    let data = names.into_iter().map(|name| Named { path: dir.join(&name), name }).collect();
    Ok(Tests { path: path.to_path_buf(), data })
}

/// The values of every key `file`, at the depth at which test files have them.
fn collect_files(value: &toml::Value, names: &mut Vec<String>) {
    let tables: Vec<&toml::Table> = match value {
        toml::Value::Table(table) => vec![table],
        toml::Value::Array(items) => items.iter().filter_map(toml::Value::as_table).collect(),
        _ => Vec::new(),
    };
    let files = tables.iter().filter_map(|table| table.get("file")?.as_str());
    names.extend(files.map(str::to_string));
}

pub(super) fn split_pair<'a>(pair: &'a str, flag: &str) -> Result<(&'a str, &'a str)> {
    pair.split_once('=').ok_or_else(|| {
        let hint = format!("write {flag} NAME=VALUE");
        CliError::new(format!("{flag} \"{pair}\" has no \"=\""), hint).into()
    })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn upload(client: &AdminClient, path: &Path) -> Result<String> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let bar = ProgressBar::new(file.metadata()?.len());
    let style = "upload {msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}";
    bar.set_style(ProgressStyle::with_template(style)?);
    bar.set_message(file_name(path));
    let id = client.upload(bar.wrap_read(file))?;
    bar.finish_and_clear();
    Ok(id)
}

/// The stage a deployment is in; nothing when stderr is no terminal.
struct Progress {
    bar: ProgressBar,
}

impl Progress {
    fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(std::time::Duration::from_millis(100));
        Self { bar }
    }

    fn show(&self, event: &Value) {
        if let Some(stage) = event["stage"].as_str() {
            self.bar.set_message(stage.replace('_', "-"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_json_or_text() {
        let pairs = ["a=1", "b=true", "c=text", "d=[1,2]", "e=x=y"].map(String::from);
        let want = json!({"a": 1, "b": true, "c": "text", "d": [1, 2], "e": "x=y"});
        assert_eq!(Value::Object(config(&pairs).unwrap()), want);
        assert!(config(&["a".to_string()]).is_err());
    }
}
