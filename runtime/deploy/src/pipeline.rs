//! The stages of a deployment as types. Each is made from the one before, which
//! it consumes, so that skipping one does not compile.

use crate::background;
use crate::builtin::{Builtin, unknown_plugin};
use crate::config::DeployLimits;
use crate::ensemble::{self, ENSEMBLE};
use crate::generate;
use crate::memory::{Ledger, Reservation};
use crate::quantize::{self, QuantizeInfo};
use crate::request::{DeployRequest, NamedUpload, PluginRef, QuantizeRequest, RolloutRequest};
use crate::rollout::Plan;
use crate::selftest::{self, Report, SelfTest};
use crate::status::{AssetInfo, Deployed, Merging, PartInfo, RevisionInfo, VersionInfo};
use crate::store::{Numbers, Pin, Store, Upload, now_ms};
use crate::toolchain::{CompiledPlugin, Toolchain, VerifiedPlugin};
use crate::upstream::{self, UPSTREAM, UpstreamTarget, Upstreams};
use mortise_host::{GraphRunner, LoadRequest, PluginLimits, World};
use mortise_serve::{Registry, Revision, RevisionParts, Stage as ServeStage};
use mortise_types::{Asset, Assets, Error, Result, RunControl};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// Memory that one warm instance of a plugin takes, for the budget: what its
/// limit allows is far more than what a plugin uses.
const INSTANCE_BYTES: u64 = 4 << 20;

/// Time for the run that warms a revision up.
const WARM_UP_TIMEOUT: Duration = Duration::from_secs(10);

/// Recorded examples that a warm-up runs.
const MAX_WARM_UP_EXAMPLES: usize = 16;

/// What the stages work with.
pub(crate) struct Context {
    pub(crate) store: Store,
    pub(crate) registry: Arc<Registry>,
    pub(crate) toolchain: Arc<dyn Toolchain>,
    pub(crate) upstreams: Arc<dyn Upstreams>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) limits: DeployLimits,
    pub(crate) plugin_limits: PluginLimits,
    pub(crate) limits_by_plugin: HashMap<String, PluginLimits>,
    pub(crate) builtins: HashMap<String, Builtin>,
}

/// What is being built.
pub(crate) struct Subject<'a> {
    ctx: &'a Context,
    pub(crate) endpoint: String,
    pub(crate) numbers: Numbers,
    pub(crate) version: VersionInfo,
    origin: Origin,
}

/// Where the files come from.
enum Origin {
    /// A deployment; its files are kept from `gc` until they are committed.
    Request { _pin: Pin },
    /// A revision that went through every stage before.
    Store,
}

/// Files in place, complete and durable.
pub(crate) struct Uploaded<'a>(Subject<'a>);

/// Every component fits the world that it is used for.
pub(crate) struct Verified<'a> {
    subject: Subject<'a>,
    plugins: Vec<Box<dyn VerifiedPlugin>>,
}

/// A whole revision, connected, with its memory reserved; nobody sees it yet.
pub(crate) struct Compiled<'a> {
    subject: Subject<'a>,
    built: Built,
}

pub(crate) struct SelfTested<'a> {
    subject: Subject<'a>,
    built: Built,
    report: Option<Report>,
    tests: Option<SelfTest>,
    merging: Merging,
}

/// Ready to answer.
pub(crate) struct Warmed<'a> {
    pub(crate) subject: Subject<'a>,
    pub(crate) built: Built,
    pub(crate) report: Option<Report>,
    pub(crate) merging: Merging,
}

pub(crate) struct Built {
    pub(crate) revision: Arc<Revision>,
    pub(crate) reservation: Reservation,
}

impl<'a> Uploaded<'a> {
    /// Takes the uploads of a request into the store.
    ///
    /// # Errors
    /// When a plugin is unknown, or the disk is full or read-only.
    pub(crate) fn receive(
        ctx: &'a Context,
        request: DeployRequest,
        numbers: Numbers,
    ) -> Result<Self> {
        let endpoint = request.name.clone();
        let mut intake = Intake { ctx, endpoint, uploads: Vec::new() };
        let version = intake.version(request, numbers)?;
        // Before anything asks which files are known: see `Store::sweep`.
        let pin = ctx.store.blobs().pin(files(&version.1));
        let uploads = intake.with_builtins(&version.1)?;
        ctx.store.place(uploads)?;
        let (endpoint, version) = version;
        let origin = Origin::Request { _pin: pin };
        Ok(Self(Subject { ctx, endpoint, numbers, version, origin }))
    }

    /// A revision that was live before.
    pub(crate) fn restore(ctx: &'a Context, endpoint: &str, revision: &RevisionInfo) -> Self {
        let numbers = Numbers {
            version: revision.version.number,
            revision: revision.number,
            previous: revision.previous,
        };
        let endpoint = endpoint.to_string();
        let version = revision.version.clone();
        Self(Subject { ctx, endpoint, numbers, version, origin: Origin::Store })
    }

    /// # Errors
    /// When a component is damaged or fits no world, or another than the one
    /// it is used for.
    pub(crate) fn verify(self) -> Result<Verified<'a>> {
        let subject = self.0;
        let ctx = subject.ctx;
        let roles = subject.parts().map(|(part, world)| {
            let component = ctx.store.map(&part.plugin_digest)?;
            let digest = &part.plugin_digest;
            let plugin = match part.plugin.as_str() {
                ENSEMBLE => ensemble::verify(digest, &component, &ctx.registry),
                UPSTREAM => upstream::verify(digest, &component, &ctx.upstreams),
                _ => ctx.toolchain.verify(digest, component),
            };
            let plugin = plugin.map_err(|error| about(part, error))?;
            match plugin.world() == world {
                true => Ok(plugin),
                false => Err(wrong_world(part, plugin.world(), world)),
            }
        });
        let plugins = roles.collect::<Result<_>>()?;
        Ok(Verified { subject, plugins })
    }
}

impl<'a> Verified<'a> {
    /// Compiles, loads and connects the parts.
    ///
    /// # Errors
    /// When memory does not suffice, a part does not compile or load, or the
    /// parts do not fit each other.
    pub(crate) fn compile(self) -> Result<Compiled<'a>> {
        let Self { mut subject, plugins } = self;
        let must_compile = plugins.iter().any(|plugin| !plugin.is_compiled());
        if must_compile && matches!(subject.origin, Origin::Request { .. }) {
            // Known to be long, and a compiler inherits the priority.
            background::lower_priority();
        }
        let mut reservation = subject.ctx.ledger.reserve(subject.expected_bytes())?;
        let codes = subject
            .parts()
            .zip(plugins)
            .map(|((part, _), plugin)| plugin.compile().map_err(|error| about(part, error)));
        let codes = codes.collect::<Result<Vec<_>>>()?;
        let revision = Arc::new(subject.connect(&codes)?);
        reservation.resize(subject.actual_bytes(&revision))?;
        Ok(Compiled { subject, built: Built { revision, reservation } })
    }
}

impl<'a> Compiled<'a> {
    /// Runs the tests that travel with the deployment, if any. A revision from
    /// the store passed them when it was deployed.
    ///
    /// # Errors
    /// The first test that fails: expected, got, tolerance.
    pub(crate) fn self_test(self) -> Result<SelfTested<'a>> {
        let Self { subject, built } = self;
        let tests = match subject.origin {
            Origin::Request { .. } => subject.tests()?,
            Origin::Store => None,
        };
        let ctx = subject.ctx;
        let live = ctx.registry.endpoint(&subject.endpoint).and_then(|endpoint| endpoint.live());
        let deadline = Instant::now() + ctx.limits.self_test_timeout;
        let live = live.as_deref().map(|live| live as &dyn selftest::Subject);
        let run = |tests: &SelfTest| tests.run(&*built.revision, live, deadline);
        let report = tests.as_ref().map(run).transpose()?;
        let merging = selftest::merging::check(&built.revision, tests.as_ref(), deadline);
        if let Merging::Off(reason) = &merging {
            tracing::info!(endpoint = subject.endpoint, reason, "requests are not merged");
        }
        Ok(SelfTested { subject, built, report, tests, merging })
    }
}

impl<'a> SelfTested<'a> {
    /// Runs the revision, so that its first requests find caches, arenas and
    /// instances filled and its time is known. The answers do not matter:
    /// inputs that are made up may well be refused.
    pub(crate) fn warm(self) -> Warmed<'a> {
        let Self { subject, built, report, tests, merging } = self;
        let deadline = Instant::now() + WARM_UP_TIMEOUT;
        let control = RunControl::new(Some(deadline), RunControl::DEFAULT_LOOP_ITERATIONS);
        let mut recorded = match &tests {
            Some(tests) => tests.all_inputs(&*built.revision),
            None => Vec::new(),
        };
        let warm_up = &subject.version.serving.warm_up;
        let sizes: &[usize] = match recorded.is_empty() && warm_up.batch_sizes.is_empty() {
            true => &[1],
            false => &warm_up.batch_sizes,
        };
        recorded.truncate(MAX_WARM_UP_EXAMPLES);
        recorded.extend(sizes.iter().filter_map(|&rows| generate::zeros(&built.revision, rows)));
        for inputs in recorded.iter().cycle().take(recorded.len() * warm_up.runs.unwrap_or(1)) {
            if let Err(error) = built.revision.run_blocking(inputs.clone(), &control) {
                tracing::debug!(endpoint = subject.endpoint, %error, "a warm-up run failed");
            }
        }
        Warmed { subject, built, report, merging }
    }
}

impl Warmed<'_> {
    pub(crate) fn endpoint(&self) -> &str {
        &self.subject.endpoint
    }

    /// The answer to the deployment, without what it replaced and its share.
    pub(crate) fn deployed(&self) -> Deployed {
        let Subject { endpoint, numbers, version, .. } = &self.subject;
        Deployed {
            name: endpoint.clone(),
            version: numbers.version,
            revision: numbers.revision,
            replaced_revision: None,
            plugin: version.model.plugin.clone(),
            plugin_digest: version.model.plugin_digest.clone(),
            stages: Vec::new(),
            tests: self.report.clone(),
            quantize: version.quantize.as_ref().and_then(|info| info.report.clone()),
            merging: self.merging.clone(),
            memory_bytes: self.built.reservation.bytes(),
            rollout_weight_percent: None,
            divided_by: None,
            warnings: Vec::new(),
            beside_weight_percent: None,
        }
    }
}

impl Subject<'_> {
    /// In the order they run, each with the world it must fit.
    fn parts(&self) -> impl Iterator<Item = (&PartInfo, World)> {
        let transforms = self.version.transforms.iter().map(|part| (part, World::Transform));
        transforms.chain([(&self.version.model, World::Model)])
    }

    /// Loads and connects the parts. A version that is to be quantised learns
    /// how that went.
    fn connect(&mut self, codes: &[Box<dyn CompiledPlugin>]) -> Result<Revision> {
        let ctx = self.ctx;
        let Some(mut info) = self.version.quantize.take() else {
            let stages = self.stages(codes, ctx.registry.runner())?;
            return self.revision(ctx.registry.fuse_graphs(stages));
        };
        // Not fused with transforms: only the model's own weights are counted.
        let build = |runner| self.revision(self.stages(codes, runner)?);
        let revision = match self.origin {
            Origin::Store => quantize::rebuild(&info, &ctx.registry, &build)?,
            Origin::Request { .. } => {
                let deadline = Instant::now() + ctx.limits.self_test_timeout;
                let samples = info.samples.clone();
                let bytes = samples.as_ref().map(|info| ctx.store.map(&info.digest)).transpose()?;
                let samples = samples.as_ref().zip(bytes).map(|(info, bytes)| (&*info.name, bytes));
                quantize::first_build(&mut info, &ctx.registry, samples, deadline, &build)?
            }
        };
        self.version.quantize = Some(info);
        Ok(revision)
    }

    /// The parts, loaded; `runner` prepares the model's graphs.
    fn stages(
        &self,
        codes: &[Box<dyn CompiledPlugin>],
        runner: Arc<dyn GraphRunner>,
    ) -> Result<Vec<ServeStage>> {
        let stages = self.parts().zip(codes).map(|((part, world), code)| {
            let runner = match world {
                World::Model => runner.clone(),
                _ => self.ctx.registry.runner(),
            };
            self.load(part, &**code, runner).map_err(|error| about(part, error))
        });
        stages.collect()
    }

    fn revision(&self, stages: Vec<ServeStage>) -> Result<Revision> {
        Revision::new(RevisionParts {
            endpoint: self.endpoint.clone(),
            number: self.numbers.revision,
            version: self.numbers.version,
            stages,
            options: self.version.serving.resolve()?,
            created: UNIX_EPOCH + Duration::from_millis(self.version.created_ms),
        })
    }

    fn load(
        &self,
        part: &PartInfo,
        code: &dyn CompiledPlugin,
        runner: Arc<dyn GraphRunner>,
    ) -> Result<ServeStage> {
        code.load(LoadRequest {
            plugin: part.plugin.clone(),
            endpoint: self.endpoint.clone(),
            config_json: Value::Object(part.config.clone()).to_string(),
            assets: self.assets(&part.assets)?,
            limits: self.ctx.limits_of(&part.plugin).clone(),
            runner,
        })
    }

    /// Mapped from the store's own copies, which nothing can change.
    fn assets(&self, infos: &[AssetInfo]) -> Result<Assets> {
        let map = |info: &AssetInfo| {
            let bytes = self.ctx.store.map(&info.digest)?;
            Ok((info.name.clone(), Asset { digest: info.digest.as_str().into(), bytes }))
        };
        Ok(Assets::new(infos.iter().map(map).collect::<Result<BTreeMap<_, _>>>()?))
    }

    fn tests(&self) -> Result<Option<SelfTest>> {
        let Some(digest) = &self.version.tests_digest else { return Ok(None) };
        let text = self.ctx.store.map(digest)?;
        let mut data = BTreeMap::new();
        for info in &self.version.test_data {
            data.insert(info.name.clone(), self.ctx.store.map(&info.digest)?);
        }
        SelfTest::parse(&text, &data).map(Some)
    }

    fn asset_bytes(&self) -> u64 {
        self.parts().flat_map(|(part, _)| &part.assets).map(|asset| asset.size_bytes).sum()
    }

    fn instance_bytes(&self, plugin: &str) -> u64 {
        self.ctx.limits_of(plugin).instances as u64 * INSTANCE_BYTES
    }

    /// Before anything is loaded: the files, a packed copy of each, instances.
    fn expected_bytes(&self) -> u64 {
        let instances: u64 = self.parts().map(|(part, _)| self.instance_bytes(&part.plugin)).sum();
        self.asset_bytes() * 2 + instances
    }

    /// Once it is known what the graphs take and which plugins stay.
    fn actual_bytes(&self, revision: &Revision) -> u64 {
        let custom = revision.stages().iter().filter(|stage| stage.is_custom());
        let instances: u64 = custom.map(|stage| self.instance_bytes(&stage.name)).sum();
        self.asset_bytes() + revision.memory_bytes() + instances
    }
}

/// Splits a request into what is recorded and the files that come with it.
struct Intake<'a> {
    ctx: &'a Context,
    endpoint: String,
    uploads: Vec<Upload>,
}

impl Intake<'_> {
    fn version(
        &mut self,
        request: DeployRequest,
        numbers: Numbers,
    ) -> Result<(String, VersionInfo)> {
        let model = self.part(World::Model, request.plugin, request.assets, request.config)?;
        let transforms = request.transforms.into_iter();
        let transforms =
            transforms.map(|it| self.part(World::Transform, it.plugin, it.assets, it.config));
        let transforms = transforms.collect::<Result<_>>()?;
        let (tests_digest, test_data) = match request.tests {
            Some(tests) => {
                let digest = tests.file.digest().to_string();
                self.uploads.push(tests.file);
                (Some(digest), self.files(tests.data))
            }
            None => (None, Vec::new()),
        };
        let version = VersionInfo {
            number: numbers.version,
            created_ms: now_ms(),
            who: request.who,
            model,
            transforms,
            tests_digest,
            test_data,
            serving: request.serving,
            quantize: request.quantize.map(|quantize| self.quantize(quantize)),
        };
        Ok((request.name, version))
    }

    /// `world` is what the plugin is to be, for when there is none of its name.
    fn part(
        &mut self,
        world: World,
        plugin: PluginRef,
        assets: Vec<NamedUpload>,
        config: Map<String, Value>,
    ) -> Result<PartInfo> {
        let (plugin, plugin_digest) = match plugin {
            PluginRef::Builtin(name) => {
                let digest = self.ctx.builtin(&name, world)?.digest.clone();
                (name, digest)
            }
            PluginRef::Uploaded { name, .. } if [ENSEMBLE, UPSTREAM].contains(&name.as_str()) => {
                return Err(Error::invalid(format!(
                    "a plugin cannot be called \"{name}\"; give its file another name"
                )));
            }
            PluginRef::Upstream { url } => {
                let target = UpstreamTarget::parse(&url, &self.endpoint, &config)?;
                let text = upstream::describe(target, &*self.ctx.upstreams)?;
                let mut writer = self.ctx.store.blobs().upload()?;
                writer.write(&text)?;
                let file = writer.finish()?;
                let digest = file.digest().to_string();
                self.uploads.push(file);
                (UPSTREAM.to_string(), digest)
            }
            PluginRef::Ensemble { file } => {
                let digest = file.digest().to_string();
                self.uploads.push(file);
                (ENSEMBLE.to_string(), digest)
            }
            PluginRef::Uploaded { name, component } => {
                let digest = component.digest().to_string();
                self.uploads.push(component);
                (name, digest)
            }
        };
        Ok(PartInfo { plugin, plugin_digest, assets: self.files(assets), config })
    }

    fn quantize(&mut self, request: QuantizeRequest) -> QuantizeInfo {
        let QuantizeRequest { mode, samples, max_error } = request;
        let samples = self.files(samples.into_iter().collect()).pop();
        QuantizeInfo { mode, samples, max_error, ranges: BTreeMap::new(), report: None }
    }

    fn files(&mut self, files: Vec<NamedUpload>) -> Vec<AssetInfo> {
        let take = |NamedUpload { name, upload }: NamedUpload| {
            let digest = upload.digest().to_string();
            let info = AssetInfo { name, digest, size_bytes: upload.size_bytes() };
            self.uploads.push(upload);
            info
        };
        files.into_iter().map(take).collect()
    }

    /// The uploads, with a copy of each first-party plugin that the store lacks:
    /// a later mortise may carry another one, and versions do not change.
    fn with_builtins(mut self, version: &VersionInfo) -> Result<Vec<Upload>> {
        let parts = version.transforms.iter().chain([&version.model]);
        let used: BTreeSet<&str> = parts.map(|part| part.plugin_digest.as_str()).collect();
        for builtin in self.ctx.builtins.values() {
            let is_used = used.contains(builtin.digest.as_str());
            if is_used && !self.ctx.store.knows(&builtin.digest)? {
                let mut writer = self.ctx.store.blobs().builtin()?;
                writer.write(&builtin.component)?;
                self.uploads.push(writer.finish()?);
            }
        }
        Ok(self.uploads)
    }
}

impl Context {
    pub(crate) fn limits_of(&self, plugin: &str) -> &PluginLimits {
        self.limits_by_plugin.get(plugin).unwrap_or(&self.plugin_limits)
    }

    /// Takes the policies of a rollout into the store.
    ///
    /// # Errors
    /// When a plugin is unknown, or the disk is full or read-only.
    pub(crate) fn receive_rollout(&self, request: RolloutRequest) -> Result<(Plan, [Pin; 2])> {
        let (strategy, first) =
            self.receive_policy(World::Strategy, request.strategy, request.config)?;
        let (router, second) =
            self.receive_policy(World::Router, request.router, request.router_config)?;
        // The policies say the rest when they begin.
        let plan = Plan {
            strategy,
            router,
            key: request.key,
            hook: request.hook,
            check_every_ms: 0,
            follows_weights: true,
        };
        Ok((plan, [first, second]))
    }

    /// Takes a policy of this world into the store. `gc` leaves it alone while the
    /// pin lives.
    ///
    /// # Errors
    /// As [`Context::receive_rollout`].
    pub(crate) fn receive_policy(
        &self,
        world: World,
        plugin: PluginRef,
        config: Map<String, Value>,
    ) -> Result<(PartInfo, Pin)> {
        let mut intake = Intake { ctx: self, endpoint: String::new(), uploads: Vec::new() };
        let part = intake.part(world, plugin, Vec::new(), config)?;
        let pin = self.store.blobs().pin(vec![part.plugin_digest.clone()]);
        let mut uploads = intake.uploads;
        if let Some(builtin) = self.builtins.get(&part.plugin)
            && builtin.digest == part.plugin_digest
            && !self.store.knows(&builtin.digest)?
        {
            let mut writer = self.store.blobs().builtin()?;
            writer.write(&builtin.component)?;
            uploads.push(writer.finish()?);
        }
        self.store.place(uploads)?;
        Ok((part, pin))
    }

    fn builtin(&self, name: &str, world: World) -> Result<&Builtin> {
        self.builtins.get(name).ok_or_else(|| {
            let known = self.builtins.iter().filter_map(|(name, builtin)| {
                let plugin = self.toolchain.verify(&builtin.digest, builtin.component.clone());
                Some((name.as_str(), plugin.ok()?.world()))
            });
            unknown_plugin(name, &[world], known)
        })
    }
}

/// The digest of every file of a version, once.
pub(crate) fn files(version: &VersionInfo) -> Vec<String> {
    let parts = || version.transforms.iter().chain([&version.model]);
    let plugins = parts().map(|part| &part.plugin_digest);
    let samples = version.quantize.iter().filter_map(|info| info.samples.as_ref());
    let assets = parts().flat_map(|part| &part.assets).chain(&version.test_data).chain(samples);
    let assets = assets.map(|asset| &asset.digest);
    let all: BTreeSet<&String> = plugins.chain(&version.tests_digest).chain(assets).collect();
    all.into_iter().cloned().collect()
}

/// Errors of a loaded plugin name it already.
fn about(part: &PartInfo, error: Error) -> Error {
    match error.message().starts_with("plugin \"") {
        true => error,
        false => error.context(format_args!("plugin \"{}\"", part.plugin)),
    }
}

fn wrong_world(part: &PartInfo, is: World, wanted: World) -> Error {
    Error::invalid(format!(
        "plugin \"{}\" is a {is}, and is used as a {wanted}: models are given with --plugin, \
         transforms with --transform, strategies with --rollout, routers with --router",
        part.plugin
    ))
}
