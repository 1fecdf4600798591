use crate::background;
use crate::builtin::Builtin;
use crate::config::DeployConfig;
use crate::ensemble::ENSEMBLE;
use crate::inspect::Inspection;
use crate::memory::{Ledger, Loaded};
use crate::pipeline::{Context, Uploaded, Warmed, files};
use crate::quantize;
use crate::request::{DeployRequest, NamedUpload};
use crate::retire::Retirement;
use crate::rollout::{Active, Hooks, Plan, Prepared, start_ticker};
use crate::stage::{Failure, Stage, StageObserver, StageTiming};
use crate::status::{
    AuditEntry, AuditQuery, Deployed, EndpointState, EndpointStatus, GcReport, InProgress,
    Reversion, RevisionInfo, SignatureInfo, StoreStatus, VersionInfo,
};
use crate::store::{
    AuditRecord, Keep, NewRevision, Numbers, Store, StoredEndpoint, UploadWriter, digest_of,
};
use crate::traffic::Traffic;
use mortise_serve::{Drain, Readiness};
use mortise_types::{Bytes, Error, Result};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Owns a store directory and everything that is deployed from it.
pub struct Deployer {
    pub(crate) ctx: Context,
    observer: Arc<dyn StageObserver>,
    pub(crate) retirement: Retirement,
    pub(crate) hooks: Arc<dyn Hooks>,
    /// Rollouts under way, by endpoint.
    pub(crate) rollouts: Mutex<HashMap<String, Arc<Mutex<Active>>>>,
    /// Traffic that several versions share outside of rollouts, by endpoint.
    pub(crate) traffic: Mutex<HashMap<String, Arc<Mutex<Traffic>>>>,
    pub(crate) loaded: Loaded,
    /// Held while a stored rollout takes in reports: two at once would lose one.
    pub(crate) late_reports: Mutex<()>,
    /// Endpoints that something is being done to.
    busy: Mutex<HashMap<String, Busy>>,
}

/// What is being done to an endpoint.
struct Busy {
    who: String,
    stage: Stage,
    since: Instant,
}

/// Frees an endpoint for the next one when dropped.
pub(crate) struct Turn<'a> {
    deployer: &'a Deployer,
    name: String,
}

impl Deployer {
    /// Takes the store's lock, migrates it, removes what a crash left behind,
    /// and restores every live endpoint. An endpoint that cannot be restored
    /// is not ready, with its reason; the others serve.
    ///
    /// # Errors
    /// `Conflict` when another process owns the store; `Internal` when the
    /// directory or database cannot be used.
    pub fn open(config: DeployConfig) -> Result<Arc<Self>> {
        let store = Store::open(&config.store_dir, config.limits.max_artifact_bytes)?;
        let builtins = config.builtins.into_iter().map(|builtin| {
            let digest = digest_of(&builtin.component);
            (builtin.name, Builtin { digest, component: builtin.component })
        });
        let deployer = Arc::new(Self {
            retirement: Retirement::start(config.observer.clone(), config.limits.drain_timeout)?,
            observer: config.observer,
            hooks: config.hooks,
            rollouts: Mutex::default(),
            traffic: Mutex::default(),
            loaded: Loaded::default(),
            late_reports: Mutex::default(),
            busy: Mutex::default(),
            ctx: Context {
                store,
                registry: config.registry,
                toolchain: config.toolchain,
                upstreams: config.upstreams,
                ledger: Ledger::new(config.limits.max_model_memory_bytes),
                limits: config.limits,
                plugin_limits: config.plugin_limits,
                limits_by_plugin: config.limits_by_plugin,
                builtins: builtins.collect(),
            },
        });
        deployer.restore_all()?;
        start_ticker(&deployer)?;
        Ok(deployer)
    }

    /// Starts streaming a file to disk. Dropping the writer or the finished
    /// [`crate::Upload`] removes the file unless a deployment took it.
    ///
    /// # Errors
    /// `Overloaded` when the disk is full, `Internal` when it is read-only.
    pub fn upload(&self) -> Result<UploadWriter> {
        self.ctx.store.blobs().upload()
    }

    /// Takes a deployment through every stage. Returns when it is live and
    /// committed to disk, or has failed and what was live before still is.
    ///
    /// # Errors
    /// [`Failure`] with the stage and the reason: `Conflict` when another
    /// deployment to this endpoint is under way or the version exists,
    /// `Overloaded` when too many are under way, memory does not suffice, or
    /// the disk is full.
    pub fn deploy(&self, request: DeployRequest) -> Result<Deployed, Failure> {
        let (name, who) = (request.name.clone(), request.who.clone());
        let (turn, numbers) = self.accept(&request).map_err(|reason| {
            let endpoint = name.clone();
            let failure = Failure { endpoint, stage: None, reason, stages: Vec::new() };
            self.record_failure(&failure, None, &who);
            failure
        })?;
        let mut track = Track::new(&turn);
        let result =
            background::run("mortise-deploy", self.ctx.limits.ordinary_priority_cpu, || {
                self.run_stages(request, numbers, &mut track)
            });
        result.map_err(|reason| {
            let failure =
                Failure { endpoint: name, stage: track.current, reason, stages: track.passed };
            self.record_failure(&failure, Some(numbers), &who);
            failure
        })
    }

    /// Brings back the revision that was live before the live one, whole.
    /// Again goes one further back. An unloaded endpoint is loaded.
    ///
    /// # Errors
    /// `NotFound` when there is no such endpoint, `Conflict` when there is no
    /// earlier revision or something is being done to the endpoint.
    pub fn rollback(&self, name: &str, who: &str) -> Result<Reversion> {
        let turn = self.begin(name, who)?;
        let endpoint = self.ctx.store.endpoint(name)?;
        let target = self.revision_before(&endpoint)?;
        let audit = AuditRecord {
            who: who.to_string(),
            action: "rollback",
            endpoint: Some(name.to_string()),
            version: Some(target.version.number),
            revision: Some(target.number),
            digests: files(&target.version),
            ok: true,
            detail: format!("from revision {} to {}", endpoint.live.number, target.number),
        };
        self.rebuild(&turn, &target, || self.ctx.store.set_live(name, target.number, &audit))
            .inspect_err(|error| self.record(&audit, error))?;
        Ok(Reversion {
            name: name.to_string(),
            revision: Some(target.number),
            version: Some(target.version.number),
            replaced_revision: Some(endpoint.live.number),
        })
    }

    /// Takes an endpoint out of service and forgets it with all its versions.
    /// Its files are garbage for [`Deployer::gc`]; the audit log stays.
    ///
    /// # Errors
    /// `NotFound` when there is no such endpoint, `Conflict` when something is
    /// being done to it.
    pub fn undeploy(&self, name: &str, who: &str) -> Result<Reversion> {
        let _turn = self.begin(name, who)?;
        let endpoint = self.ctx.store.endpoint(name)?;
        let audit = reversion_audit(&endpoint, "undeploy", who);
        self.ctx.store.delete_endpoint(name, &audit)?;
        self.traffic.lock().remove(name);
        self.let_go(name, self.ctx.registry.remove(name));
        Ok(out_of_service(&endpoint))
    }

    /// Takes an endpoint out of service and out of memory but keeps it; it
    /// stays out across restarts, until [`Deployer::load`] or a deployment.
    ///
    /// # Errors
    /// As [`Deployer::undeploy`].
    pub fn unload(&self, name: &str, who: &str) -> Result<Reversion> {
        let _turn = self.begin(name, who)?;
        let endpoint = self.ctx.store.endpoint(name)?;
        let audit = reversion_audit(&endpoint, "unload", who);
        if let Some(traffic) = self.traffic_of(name) {
            self.save(&mut traffic.lock());
        }
        self.ctx.store.set_loaded(name, false, &audit)?;
        self.traffic.lock().remove(name);
        self.let_go(name, self.ctx.registry.withdraw(name, UNLOADED));
        Ok(out_of_service(&endpoint))
    }

    /// Brings back an endpoint that was unloaded or could not be restored. One
    /// that is loaded stays as it is.
    ///
    /// # Errors
    /// As [`Deployer::undeploy`], or why it cannot be loaded.
    pub fn load(&self, name: &str, who: &str) -> Result<Reversion> {
        let turn = self.begin(name, who)?;
        let endpoint = self.ctx.store.endpoint(name)?;
        let live = &endpoint.live;
        let is_serving =
            self.ctx.registry.endpoint(name).is_some_and(|endpoint| endpoint.live().is_some());
        if !is_serving {
            let audit = reversion_audit(&endpoint, "load", who);
            self.rebuild(&turn, live, || self.ctx.store.set_loaded(name, true, &audit))
                .inspect_err(|error| self.record(&audit, error))?;
        }
        Ok(Reversion {
            name: name.to_string(),
            revision: Some(live.number),
            version: Some(live.version.number),
            replaced_revision: is_serving.then_some(live.number),
        })
    }

    /// Every endpoint, by name.
    ///
    /// # Errors
    /// `Internal` when the database cannot be read.
    pub fn status(&self) -> Result<Vec<EndpointStatus>> {
        let endpoints = self.ctx.store.endpoints()?;
        endpoints.into_iter().map(|endpoint| self.status_of(endpoint)).collect()
    }

    /// # Errors
    /// `NotFound` when there is no such endpoint.
    pub fn describe(&self, name: &str) -> Result<EndpointStatus> {
        self.status_of(self.ctx.store.endpoint(name)?)
    }

    /// What the live revision of an endpoint runs.
    ///
    /// # Errors
    /// `NotFound` when there is no such endpoint, `NotReady` when none of its
    /// revisions is loaded.
    pub fn inspect(&self, name: &str) -> Result<Inspection> {
        self.ctx.store.endpoint(name)?;
        let served = self.ctx.registry.endpoint(name);
        let live = served.and_then(|served| served.live()).ok_or_else(|| {
            Error::not_ready(format!("\"{name}\" is not loaded; `mortise load {name}` loads it"))
        })?;
        Ok(Inspection::of_revision(&live))
    }

    /// Every revision that is kept, newest first, with all it is made of.
    ///
    /// # Errors
    /// `NotFound` when there is no such endpoint.
    pub fn revisions(&self, name: &str) -> Result<Vec<RevisionInfo>> {
        self.ctx.store.endpoint(name)?;
        self.ctx.store.revisions(name)
    }

    /// Every version that is kept, newest first.
    ///
    /// # Errors
    /// `NotFound` when there is no such endpoint.
    pub fn versions(&self, name: &str) -> Result<Vec<VersionInfo>> {
        Ok(self.revisions(name)?.into_iter().map(|revision| revision.version).collect())
    }

    /// # Errors
    /// `Internal` when the database cannot be read.
    pub fn audit(&self, query: &AuditQuery) -> Result<Vec<AuditEntry>> {
        self.ctx.store.audit(query)
    }

    /// # Errors
    /// `Internal` when the store cannot be read.
    pub fn store_status(&self) -> Result<StoreStatus> {
        let (endpoint_count, version_count) = self.ctx.store.counts()?;
        let (blob_count, blob_bytes) = self.ctx.store.blob_usage()?;
        Ok(StoreStatus {
            store_dir: self.ctx.store.dir().display().to_string(),
            endpoint_count,
            version_count,
            blob_count,
            blob_bytes,
            memory_reserved_bytes: self.ctx.ledger.used_bytes(),
            max_model_memory_bytes: self.ctx.ledger.max_bytes(),
        })
    }

    /// Removes old versions beyond `keep_versions`, files that nothing names,
    /// and old lines of the audit log. Never the live version, nor the one
    /// that a rollback would go to.
    ///
    /// # Errors
    /// `Internal` when the store cannot be changed.
    pub fn gc(&self, who: &str) -> Result<GcReport> {
        let keep = Keep {
            versions: self.ctx.limits.keep_versions,
            audit_entries: self.ctx.limits.keep_audit_entries,
        };
        self.ctx.store.sweep(keep, who)
    }

    /// Bytes of a stored file, by its `sha256:…` digest.
    ///
    /// # Errors
    /// `NotFound` when there is no such file.
    pub fn blob(&self, digest: &str) -> Result<Bytes> {
        self.ctx.store.map(digest)
    }
}

const UNLOADED: &str = "it was unloaded; `load` brings it back";

impl Deployer {
    /// # Errors
    /// When the deployment cannot even begin.
    fn accept(&self, request: &DeployRequest) -> Result<(Turn<'_>, Numbers)> {
        check_request(request, self.ctx.limits.max_files)?;
        let turn = self.begin(&request.name, &request.who)?;
        self.check_traffic(request)?;
        let numbers = self.ctx.store.next_numbers(&request.name, request.version)?;
        Ok((turn, numbers))
    }

    fn run_stages(
        &self,
        mut request: DeployRequest,
        numbers: Numbers,
        track: &mut Track<'_>,
    ) -> Result<Deployed> {
        let ctx = &self.ctx;
        let beside = request.beside.take();
        let beside = beside.map(|beside| ctx.receive_beside(beside)).transpose()?;
        let rollout = request.rollout.take().map(|rollout| ctx.receive_rollout(rollout));
        let (rollout, _pins): (Option<Plan>, _) = rollout.transpose()?.unzip();
        let uploaded = track.stage(Stage::Uploaded, || Uploaded::receive(ctx, request, numbers))?;
        let verified = track.stage(Stage::Verified, || uploaded.verify())?;
        let compiled = track.stage(Stage::Compiled, || verified.compile())?;
        let tested = track.stage(Stage::SelfTested, || compiled.self_test())?;
        let (warmed, prepared) = track.stage(Stage::Warmed, || {
            let warmed = tested.warm();
            let prepared = rollout.map(|plan| Prepared::new(ctx, &warmed, plan)).transpose()?;
            Ok((warmed, prepared))
        })?;
        let mut deployed = track.stage(Stage::Live, || match (prepared, beside) {
            (Some(prepared), _) => self.commit_rollout(warmed, prepared),
            (None, Some(beside)) => self.commit_beside(warmed, beside),
            (None, None) => self.commit(warmed),
        })?;
        deployed.stages = std::mem::take(&mut track.passed);
        Ok(deployed)
    }

    /// The transaction comes first: once requests see the new revision, a crash
    /// must not bring the old one back.
    fn commit(&self, warmed: Warmed<'_>) -> Result<Deployed> {
        let Warmed { subject, .. } = &warmed;
        let blobs = files(&subject.version);
        let new = NewRevision {
            endpoint: &subject.endpoint,
            numbers: subject.numbers,
            version: &subject.version,
            blobs: &blobs,
        };
        let model = &subject.version.model;
        let audit = AuditRecord {
            who: subject.version.who.clone(),
            action: "deploy",
            endpoint: Some(subject.endpoint.clone()),
            version: Some(subject.numbers.version),
            revision: Some(subject.numbers.revision),
            digests: blobs.clone(),
            ok: true,
            detail: format!(
                "version {} of plugin {}{} is live",
                subject.numbers.version,
                model.plugin,
                quantize::note(subject.version.quantize.as_ref())
            ),
        };
        let commit = || self.ctx.store.commit_live(&new, &audit);
        self.make_stable(&subject.endpoint, &warmed.built.revision, commit)?;
        let replaced_revision = subject.numbers.previous;
        let deployed = Deployed { replaced_revision, ..warmed.deployed() };
        self.hold_memory(warmed);
        Ok(deployed)
    }

    /// Counts a revision's memory as long as it serves and its last request runs.
    pub(crate) fn hold_memory(&self, warmed: Warmed<'_>) {
        let Warmed { subject, built, .. } = warmed;
        self.loaded.insert(&subject.endpoint, subject.numbers.revision, built.reservation);
    }

    /// Gives the memory of revisions that no longer serve back when their last
    /// request has left.
    pub(crate) fn let_go(&self, name: &str, drains: Vec<Drain>) {
        for drain in drains {
            if let Some(reservation) = self.loaded.take(name, drain.number()) {
                self.retirement.retire(name, drain, reservation);
            }
        }
    }

    /// Takes a stored revision through the stages and makes it live.
    fn rebuild(
        &self,
        turn: &Turn<'_>,
        revision: &RevisionInfo,
        commit: impl FnOnce() -> Result<()> + Send,
    ) -> Result<()> {
        background::run("mortise-deploy", self.ctx.limits.ordinary_priority_cpu, || {
            let warmed = self.build_stored(&turn.name, revision)?;
            self.make_stable(&turn.name, &warmed.built.revision, commit)?;
            self.hold_memory(warmed);
            Ok(())
        })
    }

    pub(crate) fn build_stored(&self, name: &str, revision: &RevisionInfo) -> Result<Warmed<'_>> {
        let uploaded = Uploaded::restore(&self.ctx, name, revision);
        Ok(uploaded.verify()?.compile()?.self_test()?.warm())
    }

    fn restore_all(&self) -> Result<()> {
        let endpoints = self.ctx.store.endpoints()?;
        // Ensembles last: they are made of what the others serve.
        let is_ensemble =
            |endpoint: &StoredEndpoint| endpoint.live.version.model.plugin == ENSEMBLE;
        let (ensembles, models): (Vec<_>, Vec<_>) = endpoints.into_iter().partition(is_ensemble);
        self.restore_each(&models);
        self.restore_each(&ensembles);
        Ok(())
    }

    fn restore_each(&self, endpoints: &[StoredEndpoint]) {
        let next = AtomicUsize::new(0);
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        // Nothing is served yet, so these run at ordinary priority.
        std::thread::scope(|scope| {
            for _ in 0..threads.min(endpoints.len()) {
                scope.spawn(|| {
                    while let Some(endpoint) = endpoints.get(next.fetch_add(1, Ordering::Relaxed)) {
                        self.restore(endpoint);
                    }
                });
            }
        });
    }

    fn restore(&self, endpoint: &StoredEndpoint) {
        let name = &endpoint.name;
        if !endpoint.loaded {
            self.ctx.registry.withdraw(name, UNLOADED);
            return;
        }
        let restore = || self.restore_rollout(endpoint, self.build_stored(name, &endpoint.live)?);
        // A panic of one endpoint must not keep the others from serving.
        let result = background::run("mortise-restore", Duration::MAX, restore);
        if let Err(error) = result {
            tracing::error!(endpoint = name, %error, "an endpoint could not be restored");
            self.ctx.registry.withdraw(name, &format!("it could not be restored: {error}"));
        }
    }

    fn revision_before(&self, endpoint: &StoredEndpoint) -> Result<RevisionInfo> {
        let name = &endpoint.name;
        let Some(number) = endpoint.live.previous else {
            return Err(Error::conflict(format!(
                "\"{name}\" has no revision before {}: nothing to roll back to",
                endpoint.live.number
            )));
        };
        self.ctx.store.revision(name, number)?.ok_or_else(|| {
            Error::conflict(format!(
                "revision {number} of \"{name}\" was removed by `mortise gc`: nothing to roll back \
                 to; raise keep_versions to keep more"
            ))
        })
    }

    fn status_of(&self, endpoint: StoredEndpoint) -> Result<EndpointStatus> {
        let name = endpoint.name;
        let served = self.ctx.registry.endpoint(&name);
        let state = match served.as_ref().map(|served| served.readiness()) {
            _ if !endpoint.loaded => EndpointState::Unloaded,
            Some(Readiness::Ready) => EndpointState::Ready,
            Some(Readiness::NotReady(reason)) => EndpointState::NotReady(reason),
            None => EndpointState::NotReady("it is loading".to_string()),
        };
        let live = served.and_then(|served| served.live());
        let in_progress = self.busy.lock().get(&name).map(|busy| InProgress {
            stage: busy.stage,
            who: busy.who.clone(),
            elapsed_ms: u64::try_from(busy.since.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
        Ok(EndpointStatus {
            rollback_revision: self.rollback_target(&name, &endpoint.live)?,
            last_failure: self.ctx.store.last_failure(&name)?,
            memory_bytes: self.loaded.bytes(&name),
            rollout: self.rollout_note(&name),
            versions: self.live_versions(&name),
            signature: live.map(|live| SignatureInfo::from(live.signature())),
            revision: endpoint.live,
            state,
            in_progress,
            name,
        })
    }

    /// `canary: version 4 gets 5 % (running)`
    fn rollout_note(&self, name: &str) -> Option<String> {
        let active = self.rollouts.lock().get(name).cloned()?;
        let row = active.lock().row.clone();
        Some(format!(
            "{}: version {} gets {} % ({})",
            row.plan.strategy.plugin,
            row.candidate_version,
            f64::from(row.weight) / 100.0,
            row.phase.name()
        ))
    }

    fn rollback_target(&self, name: &str, live: &RevisionInfo) -> Result<Option<u64>> {
        let Some(previous) = live.previous else { return Ok(None) };
        let target = self.ctx.store.revision(name, previous)?;
        Ok(target.map(|revision| revision.number))
    }

    /// # Errors
    /// `Conflict` when something is being done to the endpoint, `Overloaded`
    /// when too much is under way.
    pub(crate) fn begin(&self, name: &str, who: &str) -> Result<Turn<'_>> {
        let mut busy = self.busy.lock();
        if let Some(other) = busy.get(name) {
            return Err(Error::conflict(format!(
                "\"{name}\" is being changed by {} (stage {}, for {} ms): wait for that to end",
                other.who,
                other.stage,
                other.since.elapsed().as_millis()
            )));
        }
        let rollout = self.rollouts.lock().get(name).cloned();
        if let Some(rollout) = rollout {
            // It may be evaluated just now, and others need not wait for that.
            drop(busy);
            return Err(rollout_under_way(name, rollout.lock().row.candidate_version));
        }
        let max = self.ctx.limits.max_concurrent_deployments;
        if busy.len() >= max {
            return Err(Error::overloaded(format!(
                "{max} deployments are under way (max_concurrent_deployments = {max}): try again \
                 when one has ended"
            )));
        }
        let entry = Busy { who: who.to_string(), stage: Stage::Uploaded, since: Instant::now() };
        busy.insert(name.to_string(), entry);
        Ok(Turn { deployer: self, name: name.to_string() })
    }

    /// What was refused before it began has no numbers, and what can be no name
    /// is not recorded as one.
    fn record_failure(&self, failure: &Failure, numbers: Option<Numbers>, who: &str) {
        let name = Some(&failure.endpoint);
        let audit = AuditRecord {
            who: who.to_string(),
            action: "deploy",
            endpoint: name.filter(|name| check_name("endpoint", name).is_ok()).cloned(),
            version: numbers.map(|numbers| numbers.version),
            revision: numbers.map(|numbers| numbers.revision),
            ..AuditRecord::default()
        };
        self.record(&audit, &failure.explained());
    }

    /// A failure that cannot be recorded (the disk is full) is still reported
    /// to whoever asked, and in the log.
    fn record(&self, audit: &AuditRecord, error: &Error) {
        let audit = AuditRecord { ok: false, detail: error.to_string(), ..audit.clone() };
        let (action, endpoint) = (audit.action, &audit.endpoint);
        tracing::warn!(action, endpoint, %error, "a change to an endpoint failed");
        if let Err(error) = self.ctx.store.append_audit(&audit) {
            tracing::error!(%error, "the audit log could not be written");
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.deployer.busy.lock().remove(&self.name);
    }
}

/// Follows a deployment through its stages.
struct Track<'a> {
    turn: &'a Turn<'a>,
    current: Option<Stage>,
    passed: Vec<StageTiming>,
}

impl<'a> Track<'a> {
    fn new(turn: &'a Turn<'a>) -> Self {
        Self { turn, current: None, passed: Vec::with_capacity(Stage::DEPLOYMENT.len()) }
    }

    fn stage<T>(&mut self, stage: Stage, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let deployer = self.turn.deployer;
        let started = Instant::now();
        self.current = Some(stage);
        if let Some(busy) = deployer.busy.lock().get_mut(&self.turn.name) {
            busy.stage = stage;
        }
        deployer.observer.entered(&self.turn.name, stage)?;
        let value = work()?;
        self.passed.push(StageTiming::new(stage, started.elapsed()));
        Ok(value)
    }
}

fn rollout_under_way(name: &str, version: u64) -> Error {
    Error::conflict(format!(
        "a rollout of version {version} of \"{name}\" is under way: `mortise rollout promote {name}` \
         or `mortise rollout abort {name}` ends it, and `mortise rollout status {name} --watch` \
         shows it"
    ))
}

fn reversion_audit(endpoint: &StoredEndpoint, action: &'static str, who: &str) -> AuditRecord {
    AuditRecord {
        who: who.to_string(),
        action,
        endpoint: Some(endpoint.name.clone()),
        version: Some(endpoint.live.version.number),
        revision: Some(endpoint.live.number),
        ok: true,
        detail: format!("revision {}", endpoint.live.number),
        ..AuditRecord::default()
    }
}

fn out_of_service(endpoint: &StoredEndpoint) -> Reversion {
    Reversion {
        name: endpoint.name.clone(),
        revision: None,
        version: None,
        replaced_revision: Some(endpoint.live.number),
    }
}

fn check_request(request: &DeployRequest, max_files: usize) -> Result<()> {
    check_name("endpoint", &request.name)?;
    request.serving.resolve()?;
    quantize::check_request(request)?;
    let samples = request.quantize.as_ref().and_then(|quantize| quantize.samples.as_ref());
    samples.map_or(Ok(()), |file| check_name("file", &file.name))?;
    if request.version == Some(0) {
        return Err(Error::invalid("versions count from 1"));
    }
    if request.version.is_some_and(|version| version > MAX_VERSION) {
        return Err(Error::invalid(format!("a version is at most {MAX_VERSION}")));
    }
    let transforms = request.transforms.iter().map(|transform| &transform.assets);
    let tests = request.tests.iter().map(|tests| &tests.data);
    let groups: Vec<&Vec<NamedUpload>> =
        [&request.assets].into_iter().chain(transforms).chain(tests).collect();
    let count: usize = groups.iter().map(|group| group.len()).sum();
    if count > max_files {
        return Err(Error::too_large(format!(
            "the deployment has {count} files, more than max_files = {max_files}"
        )));
    }
    groups.into_iter().try_for_each(|group| check_files(group))
}

/// What SQLite and JSON both hold exactly.
const MAX_VERSION: u64 = (1 << 53) - 1;

fn check_files(files: &[NamedUpload]) -> Result<()> {
    let mut names = BTreeSet::new();
    for file in files {
        check_name("file", &file.name)?;
        if !names.insert(&file.name) {
            return Err(Error::invalid(format!("the file \"{}\" is given twice", file.name)));
        }
    }
    Ok(())
}

fn check_name(what: &str, name: &str) -> Result<()> {
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if starts_well && name.len() <= 128 && name.bytes().all(is_plain) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "\"{}\" cannot be the name of the {what}: use 1 to 128 of A-Z a-z 0-9 _ - . starting with \
         a letter or digit",
        name.chars().take(128).collect::<String>()
    )))
}
