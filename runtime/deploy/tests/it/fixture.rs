use mortise_deploy::serving::ServingInfo;
use mortise_deploy::{
    CompiledPlugin, DeployConfig, DeployRequest, Deployed, Deployer, Failure, NamedUpload,
    PluginRef, Stage, StageObserver, TestUpload, Toolchain, TransformRequest, Upload,
    VerifiedPlugin,
};
use mortise_host::{
    CompileLimits, Host, HostConfig, LoadRequest, PluginHealth, PluginStats, WorkerCommand, World,
};
use mortise_serve::{CustomStage, Registry, ServeConfig, StageRun};
use mortise_types::{
    Bytes, DType, Error, ErrorKind, Result, RunControl, Signature, Tensor, TensorSpec,
};
use parking_lot::Mutex;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// A component is a line: `model` or `transform`, then what it adds to `x` to
/// give `y` (a model) or `x` (a transform). `broken` fails to load, and the
/// asset `bias`, when there is one, is added too.
pub(crate) struct LineToolchain;

struct Line {
    world: World,
    text: String,
}

struct Adder {
    sum: f32,
}

impl Toolchain for LineToolchain {
    fn verify(&self, _digest: &str, component: Bytes) -> Result<Box<dyn VerifiedPlugin>> {
        let text = String::from_utf8_lossy(&component).into_owned();
        let world = match text.split_whitespace().next() {
            Some("model") => World::Model,
            Some("transform") => World::Transform,
            _ => return Err(Error::invalid("it fits no world")),
        };
        Ok(Box::new(Line { world, text }))
    }
}

impl VerifiedPlugin for Line {
    fn world(&self) -> World {
        self.world
    }

    fn is_compiled(&self) -> bool {
        true
    }

    fn compile(self: Box<Self>) -> Result<Box<dyn CompiledPlugin>> {
        Ok(self)
    }
}

impl CompiledPlugin for Line {
    fn load(&self, request: LoadRequest) -> Result<mortise_serve::Stage> {
        let word = self.text.split_whitespace().nth(1).unwrap_or_default();
        let number = word.parse::<f32>().map_err(|_| Error::plugin(format!("load: {word}")))?;
        let bias = match request.assets.get("bias") {
            Ok(asset) => String::from_utf8_lossy(&asset.bytes).trim().parse().unwrap_or(0.0),
            Err(_) => 0.0,
        };
        let output = if self.world == World::Model { "y" } else { "x" };
        let spec = |name| vec![TensorSpec::new(name, DType::F32, &[-1])];
        Ok(mortise_serve::Stage {
            name: request.plugin,
            digest: String::new(),
            transforms: Vec::new(),
            signature: Signature { inputs: spec("x"), outputs: spec(output) },
            run: StageRun::Custom(Arc::new(Adder { sum: number + bias })),
        })
    }
}

impl CustomStage for Adder {
    fn call(&self, inputs: Vec<Tensor>, _control: &RunControl) -> Result<Vec<Tensor>> {
        let values = inputs[0].as_slice::<f32>()?.iter().map(|value| value + self.sum).collect();
        Ok(vec![Tensor::from_vec(inputs[0].shape(), values)?])
    }

    fn health(&self) -> PluginHealth {
        PluginHealth::Ready
    }

    fn stats(&self) -> PluginStats {
        PluginStats::default()
    }
}

/// Calls `on_stage` at every stage of a deployment.
pub(crate) struct Watch<F>(pub(crate) F);

impl<F: Fn(&str, Stage) -> Result<()> + Send + Sync> StageObserver for Watch<F> {
    fn entered(&self, endpoint: &str, stage: Stage) -> Result<()> {
        self.0(endpoint, stage)
    }
}

/// A deployer over a directory, with its registry.
pub(crate) struct Fixture {
    pub(crate) deployer: Arc<Deployer>,
    pub(crate) registry: Arc<Registry>,
}

/// The host is never asked: [`LineToolchain`] takes its place.
fn host() -> Arc<Host> {
    static HOST: OnceLock<(Arc<Host>, tempfile::TempDir)> = OnceLock::new();
    let make = || {
        let dir = tempfile::tempdir().unwrap();
        let worker = WorkerCommand { program: "/bin/false".into(), args: Vec::new() };
        let config = HostConfig {
            compile: CompileLimits::default(),
            ..HostConfig::new(dir.path().join("cache"), worker)
        };
        (Host::new(config).unwrap(), dir)
    };
    HOST.get_or_init(make).0.clone()
}

/// One at a time: what SQLite and the pools need of a test machine is small,
/// but the host reserves address space.
pub(crate) fn config(dir: &Path) -> (DeployConfig, Arc<Registry>) {
    static REGISTRY: Mutex<()> = Mutex::new(());
    let _one = REGISTRY.lock();
    let serve = ServeConfig { compute_threads: 1, plugin_threads: 2, ..ServeConfig::default() };
    let registry = Registry::new(serve).unwrap();
    let mut config = DeployConfig::new(dir.to_path_buf(), host(), registry.clone());
    config.toolchain = Arc::new(LineToolchain);
    (config, registry)
}

impl Fixture {
    pub(crate) fn open(dir: &Path) -> Self {
        Self::open_with(dir, |_| {})
    }

    pub(crate) fn open_with(dir: &Path, change: impl FnOnce(&mut DeployConfig)) -> Self {
        let (mut config, registry) = config(dir);
        change(&mut config);
        Self { deployer: Deployer::open(config).unwrap(), registry }
    }

    pub(crate) fn upload(&self, bytes: impl AsRef<[u8]>) -> Upload {
        let mut writer = self.deployer.upload().unwrap();
        writer.write(bytes.as_ref()).unwrap();
        writer.finish().unwrap()
    }

    pub(crate) fn named(&self, name: &str, bytes: impl AsRef<[u8]>) -> NamedUpload {
        NamedUpload { name: name.to_string(), upload: self.upload(bytes) }
    }

    pub(crate) fn request(&self, name: &str, component: &str) -> DeployRequest {
        DeployRequest {
            serving: ServingInfo::default(),
            name: name.to_string(),
            plugin: self.plugin(component),
            version: None,
            assets: Vec::new(),
            config: serde_json::Map::new(),
            transforms: Vec::new(),
            tests: None,
            quantize: None,
            rollout: None,
            beside: None,
            who: "a tester".to_string(),
        }
    }

    pub(crate) fn plugin(&self, component: &str) -> PluginRef {
        PluginRef::Uploaded { name: "line".to_string(), component: self.upload(component) }
    }

    pub(crate) fn transform(&self, component: &str) -> TransformRequest {
        TransformRequest {
            plugin: self.plugin(component),
            assets: Vec::new(),
            config: serde_json::Map::new(),
        }
    }

    pub(crate) fn tests(&self, text: &str) -> Option<TestUpload> {
        Some(TestUpload { file: self.upload(text), data: Vec::new() })
    }

    pub(crate) fn deploy(&self, name: &str, component: &str) -> Result<Deployed, Failure> {
        self.deployer.deploy(self.request(name, component))
    }

    /// What an endpoint makes of 0, or why it does not answer.
    pub(crate) fn ask(&self, name: &str) -> Result<f32> {
        let endpoint = self.registry.endpoint(name).ok_or_else(|| Error::not_found("unknown"))?;
        let live = endpoint.live().ok_or_else(|| {
            Error::new(ErrorKind::NotReady, format!("{:?}", endpoint.readiness()))
        })?;
        let zero = Tensor::from_vec(&[1], vec![0f32])?;
        let outputs = live.run_blocking(vec![("x".to_string(), zero)], &RunControl::unbounded())?;
        Ok(outputs[0].1.as_slice::<f32>()?[0])
    }
}
