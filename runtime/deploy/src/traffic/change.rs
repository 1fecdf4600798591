//! What operators do to the traffic of an endpoint, and what deployments do.

use super::draft::{Draft, Member, Rebuilt};
use super::info::{
    self, BesideRequest, LiveVersion, StoredTraffic, TrafficChange, TrafficPlan, TrafficStatus,
};
use super::shared::Traffic;
use crate::deployer::Deployer;
use crate::pipeline::{Context, Warmed, files};
use crate::request::{DeployRequest, PluginRef};
use crate::rollout::{VariantTotals, percent};
use crate::status::{Deployed, PartInfo};
use crate::store::{AuditRecord, NewRevision, Pin};
use mortise_host::World;
use mortise_serve::{Lineup, Revision, Variant};
use mortise_types::{Error, Result};
use parking_lot::Mutex;
use serde_json::Map;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The router of endpoints that name none.
const DEFAULT_ROUTER: &str = "weighted";

/// How often counts and what routers learned are stored.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Who the audit log names for what a router does.
const ROUTER: &str = "router";

/// How a version is to go beside the stable one, with its policy in the store.
pub(crate) struct Beside {
    weight: u32,
    router: Option<PartInfo>,
    key: Option<String>,
    /// What makes the first division of the traffic.
    plan: TrafficPlan,
    _pins: [Pin; 2],
}

/// What is changed: the stable version of an endpoint, and a version that goes.
struct Target<'a> {
    name: &'a str,
    stable: &'a Arc<Revision>,
    without: Option<u64>,
}

impl Context {
    /// Takes the router into the store.
    ///
    /// # Errors
    /// When there is no such router, or the share is none.
    pub(crate) fn receive_beside(&self, request: BesideRequest) -> Result<Beside> {
        let weight = info::weight(request.percent)?;
        let builtin = PluginRef::Builtin(DEFAULT_ROUTER.to_string());
        let (weighted, first) = self.receive_policy(World::Router, builtin, Map::new())?;
        let router =
            request.router.map(|it| self.receive_policy(World::Router, it.plugin, it.config));
        let (router, second) = match router.transpose()? {
            Some((router, pin)) => (Some(router), pin),
            None => (None, self.store.blobs().pin(Vec::new())),
        };
        let plan = TrafficPlan { router: weighted, key: None };
        Ok(Beside { weight, router, key: request.key, plan, _pins: [first, second] })
    }
}

impl Deployer {
    /// How the traffic of an endpoint is divided.
    ///
    /// # Errors
    /// `NotFound` when it has one version alone.
    pub fn traffic(&self, name: &str) -> Result<TrafficStatus> {
        if let Some(shared) = self.traffic_of(name) {
            let lineup = self.ctx.registry.endpoint(name).and_then(|endpoint| endpoint.lineup());
            let routing = lineup.as_ref().and_then(|lineup| lineup.routing());
            let obstacles = self.obstacles(name);
            return Ok(TrafficStatus { obstacles, ..shared.lock().status(routing) });
        }
        let stored = self.ctx.store.traffic(name)?.ok_or_else(|| not_shared(name))?;
        Ok(TrafficStatus::not_loaded(stored))
    }

    /// Changes shares, the router, or the place of the key.
    ///
    /// # Errors
    /// `NotFound` when the endpoint has one version alone or not the one that is
    /// named, `InvalidInput` when the shares do not fit or the router refuses,
    /// `Conflict` when something is being done to the endpoint.
    pub fn set_traffic(
        &self,
        name: &str,
        change: TrafficChange,
        who: &str,
    ) -> Result<TrafficStatus> {
        let _turn = self.begin(name, who)?;
        let live = self.shared_live(name, None)?;
        let router =
            change.router.map(|it| self.ctx.receive_policy(World::Router, it.plugin, it.config));
        let (router, _pin) = router.transpose()?.unzip();
        let target = Target { name, stable: &live, without: None };
        let edit = |draft: &mut Draft| {
            draft.steer(router, change.key);
            change
                .shares
                .iter()
                .try_for_each(|(version, percent)| draft.set_share(*version, *percent))
        };
        self.change_traffic(&target, edit, |stored| {
            let audit = audit(stored, who, "traffic_set", None);
            self.ctx.store.save_traffic(stored, &audit)
        })?;
        self.traffic(name)
    }

    /// Takes a version that is beside the stable one out of service. It stays in
    /// the store until [`Deployer::gc`].
    ///
    /// # Errors
    /// As [`Deployer::set_traffic`].
    pub fn retire_version(&self, name: &str, version: u64, who: &str) -> Result<Vec<LiveVersion>> {
        let _turn = self.begin(name, who)?;
        let live = self.shared_live(name, Some(version))?;
        let target = Target { name, stable: &live, without: Some(version) };
        self.change_traffic(
            &target,
            |_| Ok(()),
            |stored| {
                let audit = audit(stored, who, "traffic_retire", Some(version));
                self.ctx.store.save_traffic(stored, &audit)
            },
        )?;
        Ok(self.live_versions(name))
    }

    /// Makes a version that is beside the stable one the stable one, in its
    /// place; `rollback` goes back.
    ///
    /// # Errors
    /// As [`Deployer::set_traffic`].
    pub fn promote_version(&self, name: &str, version: u64, who: &str) -> Result<Vec<LiveVersion>> {
        let _turn = self.begin(name, who)?;
        self.shared_live(name, Some(version))?;
        let lineup = self.ctx.registry.endpoint(name).and_then(|endpoint| endpoint.lineup());
        let side = lineup.as_ref().and_then(|lineup| lineup.of_version(version));
        let side = side.ok_or_else(|| {
            Error::not_ready(format!(
                "version {version} is not in memory: `mortise unload {name}` and `mortise load \
                 {name}` bring it back, or say why not"
            ))
        })?;
        let target = Target { name, stable: &side.revision, without: Some(version) };
        self.change_traffic(
            &target,
            |_| Ok(()),
            |stored| {
                let audit = audit(stored, who, "traffic_promote", Some(version));
                self.ctx.store.promote_side(stored, side.revision.number(), &audit)
            },
        )?;
        Ok(self.live_versions(name))
    }

    /// Refuses what cannot be, before anything is built.
    pub(crate) fn check_traffic(&self, request: &DeployRequest) -> Result<()> {
        let name = &request.name;
        if let Some(hook) = request.rollout.as_ref().and_then(|rollout| rollout.hook.as_ref()) {
            self.hooks.check(&hook.url)?;
        }
        match (&request.rollout, &request.beside) {
            (Some(_), Some(_)) => Err(Error::invalid(
                "a version goes beside the stable one or begins a rollout, not both",
            )),
            (Some(_), None) if self.ctx.store.traffic(name)?.is_some() => {
                Err(Error::conflict(format!(
                    "\"{name}\" has versions beside the stable one, and a rollout is between two \
                     versions alone: retire them first, with `mortise traffic retire {name} VERSION`"
                )))
            }
            (None, Some(_)) => self.live_revision(name).map(drop),
            _ => Ok(()),
        }
    }

    /// Stores a version beside the stable one and gives it its share.
    pub(crate) fn commit_beside(&self, warmed: Warmed<'_>, beside: Beside) -> Result<Deployed> {
        let subject = &warmed.subject;
        let (name, version) = (&subject.endpoint, subject.numbers.version);
        let Beside { weight, router, key, plan, _pins } = beside;
        let live = self.live_revision(name)?;
        let blobs = files(&subject.version);
        let numbers = subject.numbers;
        let new = NewRevision { endpoint: name, numbers, version: &subject.version, blobs: &blobs };
        let variant =
            Variant::new(&Variant::name_of(version), warmed.built.revision.clone(), weight);
        let edit = |draft: &mut Draft| {
            if draft.sides.is_empty() {
                draft.plan = plan;
            }
            draft.steer(router, key);
            draft.sides.push(Member::new(variant, VariantTotals::default()));
            Ok(())
        };
        let target = Target { name, stable: &live, without: None };
        self.change_traffic(&target, edit, |stored| {
            let mut audit = audit(stored, &subject.version.who, "deploy_beside", Some(version));
            audit.digests.extend(blobs.iter().cloned());
            self.ctx.store.commit_beside(&new, stored, &audit)
        })?;
        let beside_weight_percent = Some(percent(weight));
        let TrafficStatus { router, router_follows_weights, warnings, .. } = self.traffic(name)?;
        let divided_by = (!router_follows_weights).then_some(router.plugin);
        let deployed =
            Deployed { beside_weight_percent, divided_by, warnings, ..warmed.deployed() };
        self.hold_memory(warmed);
        Ok(deployed)
    }

    /// Makes a revision the stable one; the versions beside it stay. `commit`
    /// comes before the traffic follows: once requests see the new revision, a
    /// crash must not bring the old one back.
    ///
    /// # Errors
    /// What `commit` says, or when the router refuses the new revision.
    pub(crate) fn make_stable(
        &self,
        name: &str,
        revision: &Arc<Revision>,
        commit: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let target = Target { name, stable: revision, without: None };
        self.change_traffic(&target, |_| Ok(()), |_| commit())
    }

    /// After a restart. When the versions beside the stable one cannot be
    /// brought back, that one serves alone.
    pub(crate) fn restore_traffic(&self, stable: Warmed<'_>) {
        let name = stable.endpoint();
        let revision = &stable.built.revision;
        if let Err(error) = self.make_stable(name, revision, || Ok(())) {
            tracing::error!(endpoint = name, %error, "versions beside stable are not restored");
            self.serve_alone(name, revision);
        }
        self.hold_memory(stable);
    }

    pub(crate) fn serve_alone(&self, name: &str, revision: &Arc<Revision>) {
        let lineup = Lineup::single(revision.clone());
        self.let_go(name, self.ctx.registry.publish_lineup(name, lineup));
    }

    pub(crate) fn traffic_of(&self, name: &str) -> Option<Arc<Mutex<Traffic>>> {
        self.traffic.lock().get(name).cloned()
    }

    /// Why versions of an endpoint cannot answer now: another server that is gone, a
    /// plugin in quarantine.
    pub(crate) fn obstacles(&self, name: &str) -> Vec<String> {
        let Some(endpoint) = self.ctx.registry.endpoint(name) else { return Vec::new() };
        let obstacle = |revision: Arc<Revision>| {
            let reason = endpoint.readiness_of(&revision).obstacle()?;
            Some(format!("version {}: {reason}", revision.version()))
        };
        endpoint.revisions().into_iter().filter_map(obstacle).collect()
    }

    /// Everything that answers, the stable version first.
    pub(crate) fn live_versions(&self, name: &str) -> Vec<LiveVersion> {
        let lineup = self.ctx.registry.endpoint(name).and_then(|endpoint| endpoint.lineup());
        let variants = lineup.iter().flat_map(|lineup| lineup.variants());
        let version = |variant: &Variant| LiveVersion {
            version: variant.revision.version(),
            revision: variant.revision.number(),
            variant: variant.name.to_string(),
            weight_percent: percent(variant.weight),
            memory_bytes: self.loaded.bytes_of(name, variant.revision.number()),
        };
        variants.map(version).collect()
    }

    /// Stores what is new about the traffic of each endpoint, now and then.
    pub(crate) fn save_traffic_due(&self) {
        let all: Vec<Arc<Mutex<Traffic>>> = self.traffic.lock().values().cloned().collect();
        let now = Instant::now();
        for shared in all {
            let mut traffic = shared.lock();
            if now >= traffic.next_save {
                traffic.next_save = now + SAVE_EVERY;
                self.save(&mut traffic);
                self.watch(&mut traffic);
            }
        }
    }

    pub(crate) fn save(&self, traffic: &mut Traffic) {
        traffic.catch_up();
        if !traffic.is_unsaved {
            return;
        }
        match self.ctx.store.save_traffic_progress(&traffic.draft.stored()) {
            Ok(()) => traffic.is_unsaved = false,
            Err(error) => {
                let endpoint = &traffic.draft.endpoint;
                tracing::error!(endpoint, %error, "counts of versions could not be stored");
            }
        }
    }

    /// Tells operators that the router fails and the stable version answers in its
    /// place.
    fn watch(&self, traffic: &mut Traffic) {
        let failure = traffic.router_failure();
        let Some(failure) = traffic.alert.news(failure, Instant::now()) else { return };
        let endpoint = &traffic.draft.endpoint;
        tracing::error!(endpoint, failure, "a router fails; the stable version answers");
        let audit = audit(&traffic.draft.stored(), ROUTER, "traffic_router", None);
        let audit = AuditRecord { ok: false, detail: failure, ..audit };
        if let Err(error) = self.ctx.store.append_audit(&audit) {
            tracing::error!(endpoint, %error, "the audit log could not be written");
        }
    }

    /// The one way in which the versions of an endpoint change outside of
    /// rollouts: the router agrees, `commit` stores, and then traffic follows.
    fn change_traffic(
        &self,
        target: &Target<'_>,
        edit: impl FnOnce(&mut Draft) -> Result<()>,
        commit: impl FnOnce(&StoredTraffic) -> Result<()>,
    ) -> Result<()> {
        let Target { name, stable, .. } = *target;
        let shared = self.traffic_of(name);
        // Held to the end, so that nothing is learned or counted in between.
        let mut held = shared.as_ref().map(|shared| shared.lock());
        let Rebuilt { mut draft, reservations } = match &held {
            Some(traffic) => in_memory(&traffic.draft, target),
            None => self.rebuild_sides(target)?,
        };
        edit(&mut draft)?;
        let stored = draft.stored();
        let next = draft.ready(&self.ctx)?;
        let lineup = match &next {
            Some(traffic) => traffic.lineup()?,
            None => Lineup::single(stable.clone()),
        };
        commit(&stored)?;
        let drains = self.ctx.registry.publish_lineup(name, lineup);
        for (number, reservation) in reservations {
            self.loaded.insert(name, number, reservation);
        }
        match (&mut held, next) {
            (Some(held), Some(next)) => **held = next,
            (None, Some(next)) => {
                self.traffic.lock().insert(name.to_string(), Arc::new(Mutex::new(next)));
            }
            (_, None) => drop(self.traffic.lock().remove(name)),
        }
        self.let_go(name, drains);
        Ok(())
    }

    /// Builds the versions beside the stable one anew: after a restart, or when
    /// the endpoint was unloaded.
    fn rebuild_sides(&self, target: &Target<'_>) -> Result<Rebuilt> {
        let Target { name, stable, without } = *target;
        let stored = self.ctx.store.traffic(name)?;
        let plan = stored.as_ref().map(|stored| stored.plan.clone());
        let totals = |version| {
            let known = stored.as_ref().and_then(|stored| stored.totals.get(&version));
            known.cloned().unwrap_or_default()
        };
        let variant = Variant::new(Variant::STABLE, stable.clone(), Variant::WHOLE);
        let mut draft = Draft {
            endpoint: name.to_string(),
            plan: plan.unwrap_or_else(no_plan),
            router_state: stored.as_ref().and_then(|stored| stored.router_state.clone()),
            counts: Arc::default(),
            stable: Member::new(variant, totals(stable.version())),
            sides: Vec::new(),
        };
        let mut reservations = Vec::new();
        let sides = stored.iter().flat_map(|stored| &stored.sides);
        for side in sides.filter(|side| without != Some(side.version)) {
            let revision = self.ctx.store.revision(name, side.revision)?;
            let revision = revision.ok_or_else(|| Error::internal("a version is not stored"))?;
            let built = self.build_stored(name, &revision)?.built;
            let name = Variant::name_of(side.version);
            let variant = Variant::new(&name, built.revision, side.weight);
            draft.sides.push(Member::new(variant, totals(side.version)));
            reservations.push((side.revision, built.reservation));
        }
        Ok(Rebuilt { draft, reservations })
    }

    /// The stable revision.
    fn live_revision(&self, name: &str) -> Result<Arc<Revision>> {
        let live = self.ctx.registry.endpoint(name).and_then(|endpoint| endpoint.live());
        live.ok_or_else(|| {
            Error::invalid(format!(
                "\"{name}\" serves nothing that a version could stand beside: deploy it once \
                 without --beside, or bring it back with `mortise load {name}`"
            ))
        })
    }

    /// The stable revision of an endpoint with several versions, `version` among
    /// those beside it.
    fn shared_live(&self, name: &str, version: Option<u64>) -> Result<Arc<Revision>> {
        self.ctx.store.endpoint(name)?;
        let stored = self.ctx.store.traffic(name)?.ok_or_else(|| not_shared(name))?;
        match version.filter(|wanted| stored.sides.iter().all(|side| side.version != *wanted)) {
            None => self.live_revision(name),
            Some(version) => Err(not_beside(name, version)),
        }
    }
}

/// The versions as they are, with the stable one and without the one that goes.
fn in_memory(draft: &Draft, target: &Target<'_>) -> Rebuilt {
    let mut draft = draft.clone().with_stable(target.stable);
    draft.sides.retain(|side| target.without != Some(side.version()));
    Rebuilt { draft, reservations: Vec::new() }
}

/// Until the first version goes beside the stable one.
fn no_plan() -> TrafficPlan {
    let router = PartInfo {
        plugin: String::new(),
        plugin_digest: String::new(),
        assets: Vec::new(),
        config: Map::new(),
    };
    TrafficPlan { router, key: None }
}

fn audit(
    stored: &StoredTraffic,
    who: &str,
    action: &'static str,
    version: Option<u64>,
) -> AuditRecord {
    let shares = stored
        .sides
        .iter()
        .map(|side| format!("version {} gets {} %", side.version, percent(side.weight)));
    let shares: Vec<String> = shares.collect();
    let detail = match shares.is_empty() {
        true => "one version gets all traffic".to_string(),
        false => format!("{} by {}", shares.join(", "), stored.plan.router.plugin),
    };
    AuditRecord {
        who: who.to_string(),
        action,
        endpoint: Some(stored.endpoint.clone()),
        version,
        revision: None,
        digests: stored.plan.digests(),
        ok: true,
        detail,
    }
}

pub(super) fn not_beside(name: &str, version: u64) -> Error {
    Error::not_found(format!(
        "\"{name}\" has no version {version} beside the stable one; `mortise traffic status {name}` \
         lists them"
    ))
}

fn not_shared(name: &str) -> Error {
    Error::not_found(format!(
        "\"{name}\" has no versions beside the stable one; `mortise deploy {name} MODEL --beside \
         20%` adds one"
    ))
}
