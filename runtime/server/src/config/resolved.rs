use super::raw::{self, Raw};
use crate::device::DeviceChoice;
use crate::plane::Permits;
use crate::plane::regions::RegionSettings;
use anyhow::{Context, Result, bail};
use mortise_deploy::DeployLimits;
use mortise_host::{CompileLimits, PluginLimits};
use mortise_serve::ServeConfig;
use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The settings as the server uses them: checked once, with units in types.
#[derive(Clone)]
pub(crate) struct Resolved {
    pub(crate) store_dir: PathBuf,
    pub(crate) http: HttpSettings,
    /// What bodies and messages being received may hold together, over HTTP and
    /// gRPC.
    pub(crate) max_buffered_body_bytes: usize,
    pub(crate) tls: Option<TlsSettings>,
    /// File of the clients that may use the data plane; everybody without one.
    pub(crate) api_keys: Option<PathBuf>,
    pub(crate) grpc: GrpcSettings,
    pub(crate) shared_memory: RegionSettings,
    /// What clients may do on the data ports.
    pub(crate) permits: Permits,
    pub(crate) metrics_address: SocketAddr,
    /// `None` switches tracing off.
    pub(crate) tracing: Option<TracingSettings>,
    pub(crate) admin: AdminSettings,
    pub(crate) serving: ServeConfig,
    pub(crate) device: DeviceChoice,
    pub(crate) plugins: PluginLimits,
    /// Of plugins that have some of their own, by name.
    pub(crate) limits_by_plugin: HashMap<String, PluginLimits>,
    pub(crate) compile: CompileSettings,
    pub(crate) deploy: DeployLimits,
    pub(crate) worker_threads: usize,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) log: String,
}

/// The data plane.
#[derive(Clone, Debug)]
pub(crate) struct HttpSettings {
    pub(crate) address: SocketAddr,
    /// Largest request body, after decompression.
    pub(crate) max_body_bytes: usize,
    pub(crate) request_timeout: Duration,
    pub(crate) header_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    /// Largest head of a request.
    pub(crate) max_header_bytes: usize,
    pub(crate) max_connections: usize,
    /// How long connections are still taken when the server stops.
    pub(crate) drain_delay: Duration,
}

/// The data plane over gRPC.
#[derive(Clone, Debug)]
pub(crate) struct GrpcSettings {
    pub(crate) address: SocketAddr,
    /// Largest message, after decompression.
    pub(crate) max_message_bytes: usize,
    pub(crate) request_timeout: Duration,
    pub(crate) handshake_timeout: Duration,
    pub(crate) max_connections: usize,
    /// Calls of one connection.
    pub(crate) max_concurrent_calls: u32,
    pub(crate) keepalive_interval: Duration,
    pub(crate) keepalive_timeout: Duration,
    /// How long connections are still taken when the server stops.
    pub(crate) drain_delay: Duration,
}

/// TLS of the data plane.
#[derive(Clone, Debug)]
pub(crate) struct TlsSettings {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// Who signs the certificates of clients, when they need one.
    pub(crate) client_ca: Option<PathBuf>,
}

impl TlsSettings {
    /// # Errors
    /// When only some of the files that belong together are given.
    fn new(raw: &raw::Tls) -> Result<Option<Self>> {
        match (raw.certificate.as_str(), raw.key.as_str()) {
            ("", "") if raw.client_ca.is_empty() => Ok(None),
            ("", _) => bail!("TLS needs tls.certificate as well: the PEM file of the certificate"),
            (_, "") => bail!("TLS needs tls.key as well: the PEM file of the private key"),
            (certificate, key) => Ok(Some(Self {
                certificate: certificate.into(),
                key: key.into(),
                client_ca: path(&raw.client_ca),
            })),
        }
    }

    /// Every file that is read.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        let own = [self.certificate.as_path(), self.key.as_path()];
        own.into_iter().chain(self.client_ca.as_deref())
    }
}

/// Traces of requests.
#[derive(Clone, Debug)]
pub(crate) struct TracingSettings {
    pub(crate) endpoint: String,
    pub(crate) sample_every: u64,
    pub(crate) max_queued_requests: usize,
    pub(crate) service_name: String,
}

impl TracingSettings {
    /// # Errors
    /// When the address of the collector is none.
    fn new(raw: &raw::Tracing) -> Result<Option<Self>> {
        if raw.endpoint.is_empty() {
            return Ok(None);
        }
        let scheme = raw.endpoint.parse::<http::Uri>().ok().and_then(|uri| uri.scheme().cloned());
        let schemes = [http::uri::Scheme::HTTP, http::uri::Scheme::HTTPS];
        if !scheme.is_some_and(|scheme| schemes.contains(&scheme)) {
            bail!(
                "tracing.endpoint = \"{}\" is not an address such as \
                 http://localhost:4318/v1/traces or https://HOST/v1/traces",
                raw.endpoint
            );
        }
        Ok(Some(Self {
            endpoint: raw.endpoint.clone(),
            sample_every: raw.sample_every,
            max_queued_requests: raw.max_queued_requests as usize,
            service_name: raw.service_name.clone(),
        }))
    }
}

/// The admin API.
#[derive(Clone, Debug)]
pub(crate) struct AdminSettings {
    pub(crate) address: SocketAddr,
    pub(crate) max_pending_uploads: usize,
    pub(crate) pending_upload_timeout: Duration,
}

/// Bounds on compiling plugins.
#[derive(Clone, Debug)]
pub(crate) struct CompileSettings {
    pub(crate) limits: CompileLimits,
    /// Compiled components that are kept.
    pub(crate) max_cache_bytes: u64,
}

/// What the command line sets over the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    /// Replaces the host of all addresses.
    pub(crate) host: Option<String>,
    pub(crate) http_port: Option<u16>,
    pub(crate) grpc_port: Option<u16>,
    pub(crate) metrics_port: Option<u16>,
    pub(crate) admin_port: Option<u16>,
    pub(crate) device: Option<String>,
}

impl Overrides {
    /// Writes the overrides into the file's settings.
    pub(crate) fn apply(&self, raw: &mut Raw) {
        let changes = [
            (&mut raw.http.address, self.http_port),
            (&mut raw.grpc.address, self.grpc_port),
            (&mut raw.metrics.address, self.metrics_port),
            (&mut raw.admin.address, self.admin_port),
        ];
        for (address, port) in changes {
            let (host, old_port) = address.rsplit_once(':').unwrap_or((address.as_str(), "0"));
            let host = self.host.as_deref().unwrap_or(host);
            let port = port.map_or_else(|| old_port.to_string(), |port| port.to_string());
            *address = format!("{host}:{port}");
        }
        if let Some(device) = &self.device {
            raw.serving.device = device.clone();
        }
    }
}

impl Resolved {
    /// # Errors
    /// When an address does not resolve or a bound is 0; names the key.
    pub(crate) fn new(raw: &Raw, store_dir: PathBuf) -> Result<Self> {
        refuse_zeros(raw)?;
        Ok(Self {
            store_dir,
            http: HttpSettings {
                address: address("http.address", &raw.http.address)?,
                max_body_bytes: raw.http.max_body_bytes as usize,
                request_timeout: Duration::from_millis(raw.http.request_timeout_ms),
                header_timeout: Duration::from_millis(raw.http.header_timeout_ms),
                idle_timeout: Duration::from_millis(raw.http.idle_timeout_ms),
                max_header_bytes: raw.http.max_header_bytes as usize,
                max_connections: raw.http.max_connections as usize,
                drain_delay: Duration::from_millis(raw.server.drain_delay_ms),
            },
            max_buffered_body_bytes: raw.http.max_buffered_body_bytes as usize,
            grpc: grpc(raw)?,
            shared_memory: RegionSettings {
                prefix: raw.shared_memory.prefix.clone(),
                max_regions: raw.shared_memory.max_regions as usize,
                max_region_bytes: raw.shared_memory.max_region_bytes,
            },
            permits: Permits {
                repository_control: raw.http.repository_control,
                settings_control: raw.http.settings_control,
            },
            tls: TlsSettings::new(&raw.tls)?,
            api_keys: path(&raw.auth.api_keys),
            metrics_address: address("metrics.address", &raw.metrics.address)?,
            tracing: TracingSettings::new(&raw.tracing)?,
            admin: AdminSettings {
                address: address("admin.address", &raw.admin.address)?,
                max_pending_uploads: raw.admin.max_pending_uploads as usize,
                pending_upload_timeout: Duration::from_millis(raw.admin.pending_upload_timeout_ms),
            },
            serving: serving(raw),
            device: raw.serving.device.parse().context("serving.device")?,
            plugins: plugins(&raw.plugins),
            limits_by_plugin: limits_by_plugin(raw)?,
            compile: CompileSettings {
                limits: CompileLimits {
                    timeout: Duration::from_millis(raw.plugins.compile_timeout_ms),
                    memory_bytes: raw.plugins.compile_memory_bytes,
                },
                max_cache_bytes: raw.plugins.max_cache_bytes,
            },
            deploy: deploy(raw),
            worker_threads: or_cores(raw.server.worker_threads),
            shutdown_timeout: Duration::from_millis(raw.server.shutdown_timeout_ms),
            log: raw.server.log.clone(),
        })
    }
}

fn grpc(raw: &Raw) -> Result<GrpcSettings> {
    let drain_delay = Duration::from_millis(raw.server.drain_delay_ms);
    let raw = &raw.grpc;
    Ok(GrpcSettings {
        address: address("grpc.address", &raw.address)?,
        max_message_bytes: raw.max_message_bytes as usize,
        request_timeout: Duration::from_millis(raw.request_timeout_ms),
        handshake_timeout: Duration::from_millis(raw.handshake_timeout_ms),
        max_connections: raw.max_connections as usize,
        max_concurrent_calls: u32::try_from(raw.max_concurrent_calls).unwrap_or(u32::MAX),
        keepalive_interval: Duration::from_millis(raw.keepalive_interval_ms),
        keepalive_timeout: Duration::from_millis(raw.keepalive_timeout_ms),
        drain_delay,
    })
}

fn serving(raw: &Raw) -> ServeConfig {
    ServeConfig {
        compute_threads: or_cores(raw.serving.compute_threads),
        plugin_threads: or_cores(raw.serving.plugin_threads).max(2),
        max_endpoint_requests: raw.serving.max_endpoint_requests as usize,
        max_admitted_bytes: raw.serving.max_admitted_bytes,
        in_place_below: Duration::from_micros(raw.serving.in_place_below_us),
        default_timeout: Duration::from_millis(raw.http.request_timeout_ms),
        sequence_drain_timeout: Duration::from_millis(raw.serving.sequence_drain_timeout_ms),
        max_loop_iterations: raw.serving.max_loop_iterations,
        ..ServeConfig::default()
    }
}

fn limits_by_plugin(raw: &Raw) -> Result<HashMap<String, PluginLimits>> {
    let own = raw.by_plugin()?.into_iter().map(|(name, raw)| {
        refuse_zeros(&raw).with_context(|| format!("in [plugin.{name}]"))?;
        Ok((name, plugins(&raw.plugins)))
    });
    own.collect()
}

fn plugins(raw: &raw::Plugins) -> PluginLimits {
    PluginLimits {
        call_timeout: Duration::from_millis(raw.call_timeout_ms),
        graph_timeout: Duration::from_millis(raw.graph_timeout_ms),
        load_timeout: Duration::from_millis(raw.load_timeout_ms),
        memory_bytes: raw.memory_bytes as usize,
        table_elements: raw.max_table_elements as usize,
        max_handles: raw.max_handles as usize,
        max_host_calls_per_call: raw.max_host_calls_per_call,
        max_host_calls_per_load: raw.max_host_calls_per_load,
        max_tensor_bytes: raw.max_tensor_bytes as usize,
        max_list_bytes: raw.max_list_bytes as usize,
        instances: raw.instances as usize,
        max_waiting_calls: raw.max_waiting_calls as usize,
        log_line_bytes: raw.max_log_line_bytes as usize,
        log_lines_per_second: u32::try_from(raw.log_lines_per_second).unwrap_or(u32::MAX),
        max_graphs: raw.max_graphs as usize,
        max_graph_nodes: raw.max_graph_nodes as usize,
        max_graph_values: raw.max_graph_values as usize,
        max_graph_nesting: raw.max_graph_nesting as usize,
        max_graph_attribute_bytes: raw.max_graph_attribute_bytes as usize,
        max_graph_constant_bytes: raw.max_graph_constant_bytes as usize,
        max_graph_device_bytes: raw.max_graph_device_bytes,
        max_graph_dispatches: raw.max_graph_dispatches,
        quarantine_after: u32::try_from(raw.quarantine_after).unwrap_or(u32::MAX),
        quarantine_backoff: Duration::from_millis(raw.quarantine_backoff_ms),
        quarantine_backoff_max: Duration::from_millis(raw.max_quarantine_backoff_ms),
    }
}

fn deploy(raw: &Raw) -> DeployLimits {
    let defaults = DeployLimits::default();
    let memory = match raw.deploy.max_model_memory_bytes {
        0 => defaults.max_model_memory_bytes,
        bytes => bytes,
    };
    DeployLimits {
        max_artifact_bytes: raw.deploy.max_artifact_bytes,
        max_files: raw.deploy.max_files as usize,
        max_concurrent_deployments: raw.deploy.max_concurrent_deployments as usize,
        max_model_memory_bytes: memory,
        keep_versions: raw.deploy.keep_versions as usize,
        self_test_timeout: Duration::from_millis(raw.deploy.self_test_timeout_ms),
        drain_timeout: Duration::from_millis(raw.deploy.drain_timeout_ms),
        ..defaults
    }
}

/// A file that may be left out.
fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| text.into())
}

fn or_cores(threads: u64) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(2, usize::from),
        // More threads than this help nobody, and 2^64 of them would not start.
        count => count.min(1_024) as usize,
    }
}

fn address(key: &str, text: &str) -> Result<SocketAddr> {
    let mut found = text
        .to_socket_addrs()
        .with_context(|| format!("{key} = \"{text}\" is not an address such as 127.0.0.1:8000"))?;
    found.next().with_context(|| format!("{key} = \"{text}\" names no address"))
}

fn refuse_zeros(raw: &Raw) -> Result<()> {
    let bounds = [
        ("http.max_body_bytes", raw.http.max_body_bytes),
        ("http.request_timeout_ms", raw.http.request_timeout_ms),
        ("http.header_timeout_ms", raw.http.header_timeout_ms),
        ("http.idle_timeout_ms", raw.http.idle_timeout_ms),
        ("http.max_header_bytes", raw.http.max_header_bytes),
        ("http.max_buffered_body_bytes", raw.http.max_buffered_body_bytes),
        ("http.max_connections", raw.http.max_connections),
        ("grpc.max_message_bytes", raw.grpc.max_message_bytes),
        ("grpc.request_timeout_ms", raw.grpc.request_timeout_ms),
        ("grpc.handshake_timeout_ms", raw.grpc.handshake_timeout_ms),
        ("grpc.max_connections", raw.grpc.max_connections),
        ("grpc.max_concurrent_calls", raw.grpc.max_concurrent_calls),
        ("grpc.keepalive_interval_ms", raw.grpc.keepalive_interval_ms),
        ("grpc.keepalive_timeout_ms", raw.grpc.keepalive_timeout_ms),
        ("shared_memory.max_regions", raw.shared_memory.max_regions),
        ("shared_memory.max_region_bytes", raw.shared_memory.max_region_bytes),
        ("tracing.sample_every", raw.tracing.sample_every),
        ("tracing.max_queued_requests", raw.tracing.max_queued_requests),
        ("admin.max_pending_uploads", raw.admin.max_pending_uploads),
        ("serving.max_endpoint_requests", raw.serving.max_endpoint_requests),
        ("serving.max_admitted_bytes", raw.serving.max_admitted_bytes),
        ("plugins.call_timeout_ms", raw.plugins.call_timeout_ms),
        ("plugins.graph_timeout_ms", raw.plugins.graph_timeout_ms),
        ("plugins.load_timeout_ms", raw.plugins.load_timeout_ms),
        ("plugins.memory_bytes", raw.plugins.memory_bytes),
        ("plugins.instances", raw.plugins.instances),
        ("plugins.quarantine_after", raw.plugins.quarantine_after),
        ("plugins.compile_timeout_ms", raw.plugins.compile_timeout_ms),
        ("plugins.compile_memory_bytes", raw.plugins.compile_memory_bytes),
        ("deploy.max_artifact_bytes", raw.deploy.max_artifact_bytes),
        ("deploy.max_files", raw.deploy.max_files),
        ("deploy.max_concurrent_deployments", raw.deploy.max_concurrent_deployments),
        ("deploy.keep_versions", raw.deploy.keep_versions),
    ];
    match bounds.iter().find(|(_, value)| *value == 0) {
        None => Ok(()),
        Some((key, _)) => bail!("{key} = 0 would refuse everything; give a positive number"),
    }
}
