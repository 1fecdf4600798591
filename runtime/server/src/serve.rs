//! Starting and stopping the server.

use crate::admin::{Admin, StageFeed, Token, write_private};
use crate::app::{App, Shutdown};
use crate::cli::client::ADMIN_FILE;
use crate::config::Resolved;
use crate::control;
use crate::grpc::{self, GrpcServer};
use crate::hooks::WebHooks;
use crate::metrics::Metrics;
use crate::net::Workers;
use crate::plane::Plane;
use crate::plane::logging::LogControl;
use crate::upstream;
use crate::{device, embedded, http, reload};
use anyhow::{Context, Result};
use mortise_deploy::{DeployConfig, Deployer, lower_priority, only_when_idle};
use mortise_host::{Host, HostConfig, WorkerCommand};
use mortise_serve::{Registry, ServeConfig};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// Name of the hidden command that compiles one component.
pub(crate) const COMPILE_COMMAND: &str = "__compile-plugin";

/// Threads for all but the requests of the data plane: accepting, the admin API,
/// metrics.
const CONTROL_THREADS: usize = 2;

/// How long the last traces may take when the server ends.
const TRACE_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a running server is reached.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) http: SocketAddr,
    pub(crate) grpc: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) token: String,
    pub(crate) store: PathBuf,
}

/// Serves until the process is told to stop. `on_ready` runs beside the server
/// once it listens.
///
/// # Errors
/// When the store is in use, a port is taken, or a directory cannot be used.
pub(crate) fn run<F>(
    config: Resolved,
    logging: LogControl,
    on_ready: impl FnOnce(Running) -> F,
) -> Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    one_rayon_thread()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("mortise-control")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let shutdown_timeout = config.shutdown_timeout;
    let outcome = runtime.block_on(serve(config, logging, on_ready));
    // What still runs past its time must not keep the process.
    runtime.shutdown_timeout(shutdown_timeout.min(Duration::from_secs(1)));
    outcome
}

/// Matrix products run on the thread that asks for them: the compute pool
/// decides what runs where, not rayon's global pool.
fn one_rayon_thread() -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build_global()
        .context("cannot set up rayon's global pool")
}

async fn serve<F>(
    config: Resolved,
    logging: LogControl,
    on_ready: impl FnOnce(Running) -> F,
) -> Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut stop = stop_signals()?;
    let stages = Arc::new(StageFeed::default());
    let app = open(&config, stages.clone()).await?;
    let token = Token::load_or_create(&config.store_dir)?;
    let workers = Workers::start(config.worker_threads)
        .context("cannot start the threads that serve connections")?;
    let listeners = Listeners::bind(&config).await?;
    let running = listeners.running(&config.store_dir, &token)?;
    let admin = Admin::new(app.clone(), token, stages, running.addresses());
    let admin_file = AdminFileGuard::write(&running)?;

    let (trigger, shutdown) = Shutdown::new();
    let mut tasks = JoinSet::new();
    let plane = Arc::new(Plane::new(app.clone(), Arc::new(logging)));
    tasks.spawn(http::serve_http(
        listeners.http,
        workers.clone(),
        app.clone(),
        plane.clone(),
        shutdown.clone(),
    ));
    let grpc_server = GrpcServer::new(plane, config.grpc.clone(), shutdown.clone())?;
    tasks.spawn(grpc::serve_grpc(
        listeners.grpc,
        workers.clone(),
        app.tls.clone(),
        Arc::new(grpc_server),
        shutdown.clone(),
    ));
    tasks.spawn(control::serve(listeners.admin, admin, shutdown.clone()));
    let metrics = Metrics::new(app.clone());
    tasks.spawn(control::serve(listeners.metrics, metrics, shutdown));
    let reloading = tokio::spawn(reload::watch(app.tls.clone(), app.keys.clone()));

    println!("{}", running.ready_line());
    let beside = tokio::spawn(on_ready(running));
    stop.recv().await;
    beside.abort();
    reloading.abort();
    tracing::info!("stopping: no new requests; those under way may finish");
    app.start_draining();
    trigger.stop();
    let finish = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(app.config.shutdown_timeout, finish).await.is_err() {
        tracing::warn!("requests were still under way at the end of server.shutdown_timeout_ms");
    }
    drop(admin_file);
    let flush = move || app.tracer.finish(TRACE_FLUSH_TIMEOUT);
    tokio::task::spawn_blocking(flush).await.context("exporting the last traces broke down")
}

/// Opens the store and restores what is deployed, off the serving threads.
async fn open(config: &Resolved, stages: Arc<StageFeed>) -> Result<Arc<App>> {
    let config = config.clone();
    let open = move || -> Result<Arc<App>> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&config.store_dir)
            .with_context(|| format!("cannot make the store {}", config.store_dir.display()))?;
        let threads = config.serving.compute_threads;
        let device = device::open(config.device, threads, Some(&config.store_dir))?;
        let serving = ServeConfig {
            on_background_thread: lower_priority,
            on_idle_thread: only_when_idle,
            device: Some(device),
            ..config.serving.clone()
        };
        let registry = Registry::new(serving)?;
        let deployer = Deployer::open(DeployConfig {
            limits: config.deploy.clone(),
            plugin_limits: config.plugins.clone(),
            limits_by_plugin: config.limits_by_plugin.clone(),
            builtins: embedded::plugins(),
            observer: stages,
            hooks: Arc::new(WebHooks),
            upstreams: Arc::new(upstream::Servers::new(Handle::current())),
            ..DeployConfig::new(config.store_dir.clone(), host(&config)?, registry.clone())
        })?;
        Ok(Arc::new(App::new(registry, deployer, config)?))
    };
    tokio::task::spawn_blocking(open).await.context("opening the store broke down")?
}

fn host(config: &Resolved) -> Result<Arc<Host>> {
    let worker = WorkerCommand {
        program: std::env::current_exe().context("cannot find this program's own file")?,
        args: vec![COMPILE_COMMAND.to_string()],
    };
    let settings = HostConfig {
        compile: config.compile.limits,
        max_cache_bytes: config.compile.max_cache_bytes,
        ..HostConfig::new(config.store_dir.join("cache"), worker)
    };
    Ok(Host::new(settings)?)
}

/// The sockets of the planes.
struct Listeners {
    http: TcpListener,
    grpc: TcpListener,
    metrics: TcpListener,
    admin: TcpListener,
}

impl Listeners {
    async fn bind(config: &Resolved) -> Result<Self> {
        Ok(Self {
            http: bind("http.address", config.http.address).await?,
            grpc: bind("grpc.address", config.grpc.address).await?,
            metrics: bind("metrics.address", config.metrics_address).await?,
            admin: bind("admin.address", config.admin.address).await?,
        })
    }

    fn running(&self, store: &Path, token: &Token) -> Result<Running> {
        Ok(Running {
            http: self.http.local_addr()?,
            grpc: self.grpc.local_addr()?,
            metrics: self.metrics.local_addr()?,
            admin: self.admin.local_addr()?,
            token: token.as_str().to_string(),
            store: store.to_path_buf(),
        })
    }
}

async fn bind(key: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} ({key}); another port, or 0 for a free one, helps")
    })
}

impl Running {
    /// One line for programs that start the server.
    fn ready_line(&self) -> Value {
        let mut line = self.addresses();
        line["event"] = json!("ready");
        line["store"] = json!(self.store);
        line
    }

    fn addresses(&self) -> Value {
        json!({
            "http": self.http.to_string(),
            "grpc": self.grpc.to_string(),
            "metrics": self.metrics.to_string(),
            "admin": self.admin.to_string(),
        })
    }
}

/// The file by which clients of the same user find the server; removed when
/// the server stops.
struct AdminFileGuard(PathBuf);

impl AdminFileGuard {
    fn write(running: &Running) -> Result<Self> {
        let path = running.store.join(ADMIN_FILE);
        let contents = json!({
            "admin": format!("http://{}", running.admin),
            "http": format!("http://{}", running.http),
            "grpc": running.grpc.to_string(),
            "metrics": format!("http://{}", running.metrics),
            "token": running.token,
            "pid": std::process::id(),
        });
        write_private(&path, contents.to_string().as_bytes())?;
        Ok(Self(path))
    }
}

impl Drop for AdminFileGuard {
    fn drop(&mut self) {
        // A file left behind names a server that is not there: clients say so.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// SIGTERM and SIGINT, as one.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

fn stop_signals() -> Result<Stop> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    Ok(Stop {
        terminate: listen(SignalKind::terminate())?,
        interrupt: listen(SignalKind::interrupt())?,
    })
}

impl Stop {
    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
