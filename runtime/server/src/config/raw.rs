use super::unknown;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Declares one section of `mortise.toml`: each key with its documentation,
/// type and default, in one place for parsing, printing and reading.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:ident { $($(#[doc = $doc:literal])+ $key:ident: $ty:ty = $default:expr,)+ }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(crate) struct $name { $($(#[doc = $doc])+ pub(crate) $key: $ty,)+ }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }

        impl $name {
            /// What the section is about, and each key with its documentation.
            const DOCS: SectionDocs = SectionDocs {
                about: &[$($about),+],
                keys: &[$((stringify!($key), &[$($doc),+])),+],
            };
        }
    };
}

struct SectionDocs {
    about: &'static [&'static str],
    keys: &'static [(&'static str, &'static [&'static str])],
}

/// `mortise.toml` as it is written. Sizes are in bytes, times in the unit that
/// the key names; 0 threads means one for each core.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Raw {
    pub(crate) http: Http,
    pub(crate) grpc: Grpc,
    pub(crate) shared_memory: SharedMemory,
    pub(crate) tls: Tls,
    pub(crate) auth: Auth,
    pub(crate) metrics: Metrics,
    pub(crate) tracing: Tracing,
    pub(crate) admin: Admin,
    pub(crate) serving: Serving,
    pub(crate) plugins: Plugins,
    /// Keys of `plugins` for one plugin each, by its name.
    #[serde(skip_serializing)]
    pub(crate) plugin: toml::Table,
    pub(crate) deploy: Deploy,
    pub(crate) server: Server,
}

section! {
    /// The data plane: inference over HTTP.
    Http {
        /// Where to listen. Port 0 takes a free one.
        address: String = "127.0.0.1:8000".to_string(),
        /// Largest request body, after decompression.
        max_body_bytes: u64 = 64 << 20,
        /// Time for one request, from its first byte to the answer.
        request_timeout_ms: u64 = 30_000,
        /// Largest head of a request: its line and its headers.
        max_header_bytes: u64 = 32 << 10,
        /// Bytes that all bodies and messages being received may hold together, over
        /// HTTP and gRPC; requests beyond it are refused. What comes in one piece
        /// does not count: connections bound it.
        max_buffered_body_bytes: u64 = 512 << 20,
        /// Time to receive the headers of a request.
        header_timeout_ms: u64 = 10_000,
        /// How long a connection is kept without a request, and while a reply is
        /// not taken.
        idle_timeout_ms: u64 = 120_000,
        /// Connections open at once; more wait to be accepted, and the one that
        /// has been idle the longest, but a second at least, is closed for them.
        max_connections: u64 = 4_096,
        /// Whether clients may load and unload models on the data port.
        repository_control: bool = false,
        /// Whether clients may change log and trace settings on the data port.
        settings_control: bool = false,
    }
}

section! {
    /// The data plane over gRPC. What clients may change is set under `http`.
    Grpc {
        /// Where to listen. Port 0 takes a free one.
        address: String = "127.0.0.1:8001".to_string(),
        /// Largest message, after decompression.
        max_message_bytes: u64 = 64 << 20,
        /// Time for one request, from its headers to the answer; a client's
        /// own deadline counts when it is earlier.
        request_timeout_ms: u64 = 30_000,
        /// Time for a new connection to begin with HTTP/2, that for TLS
        /// included.
        handshake_timeout_ms: u64 = 10_000,
        /// Connections open at once; more wait to be accepted, and the one that
        /// has been idle the longest, but a second at least, is closed for them.
        max_connections: u64 = 4_096,
        /// Calls and streams that one connection may have open at once.
        max_concurrent_calls: u64 = 256,
        /// How often a silent client is asked whether it is still there.
        keepalive_interval_ms: u64 = 30_000,
        /// How long it may take to say so.
        keepalive_timeout_ms: u64 = 10_000,
    }
}

section! {
    /// System shared memory through which clients on this machine may pass
    /// tensors.
    SharedMemory {
        /// What the keys of clients must begin with, as in "/mortise-". Empty
        /// switches shared memory off.
        prefix: String = String::new(),
        /// Regions registered at once.
        max_regions: u64 = 64,
        /// Largest region.
        max_region_bytes: u64 = 1 << 30,
    }
}

section! {
    /// TLS of the data plane. Replaced files are taken within a second, without
    /// a restart.
    Tls {
        /// The certificate and those that it was signed with, PEM; with `key` it
        /// switches TLS on.
        certificate: String = String::new(),
        /// The certificate's private key, PEM.
        key: String = String::new(),
        /// Certificates of authorities, PEM: clients must then show a certificate
        /// that one of them signed.
        client_ca: String = String::new(),
    }
}

section! {
    /// Who may use the data plane.
    Auth {
        /// File of API keys, as `mortise keys add` writes it; without one, everybody
        /// may. Health checks never need a key.
        api_keys: String = String::new(),
    }
}

section! {
    /// Metrics for Prometheus, on a listener of their own.
    Metrics {
        /// Where to listen. Port 0 takes a free one.
        address: String = "127.0.0.1:8002".to_string(),
    }
}

section! {
    /// Traces of requests, for a collector of OpenTelemetry. Without it, the trace
    /// context of clients is still passed on to other servers that are asked.
    Tracing {
        /// Where spans go, as OTLP over HTTP or HTTPS: "http://localhost:4318/v1/traces".
        /// Empty switches tracing off.
        endpoint: String = String::new(),
        /// One in this many requests is traced, of those that come without a trace
        /// context; with one, the client decides.
        sample_every: u64 = 1_000,
        /// Traced requests that wait to be exported; further ones are dropped and
        /// counted.
        max_queued_requests: u64 = 1_024,
        /// What the server is called in traces.
        service_name: String = "mortise".to_string(),
    }
}

section! {
    /// The admin API: deployments. Needs the bearer token in the store.
    Admin {
        /// Where to listen. Port 0 takes a free one.
        address: String = "127.0.0.1:8003".to_string(),
        /// Finished uploads that no deployment has taken yet.
        max_pending_uploads: u64 = 256,
        /// How long such an upload is kept.
        pending_upload_timeout_ms: u64 = 3_600_000,
    }
}

section! {
    /// How requests are run.
    Serving {
        /// What runs graphs: auto, cpu, gpu, or gpu:N for the adapter of that
        /// number. With auto, an adapter that is software does not serve.
        device: String = "auto".to_string(),
        /// Threads that run large graphs; 0 for one a core.
        compute_threads: u64 = 0,
        /// Threads that run custom plugins; 0 for one a core, at least 2. One
        /// endpoint holds at most all but one.
        plugin_threads: u64 = 0,
        /// Requests that one endpoint may have running and waiting.
        max_endpoint_requests: u64 = 512,
        /// Bytes of inputs that all requests under way may hold together.
        max_admitted_bytes: u64 = 512 << 20,
        /// Graphs predicted to run shorter than this run where the request was
        /// received; a quarter of it where others of its connection wait there too.
        in_place_below_us: u64 = 200,
        /// How long a replaced revision is kept for its open sequences.
        sequence_drain_timeout_ms: u64 = 60_000,
        /// Iterations of ONNX loops in one request.
        max_loop_iterations: u64 = 1_000_000,
    }
}

section! {
    /// Bounds on each plugin. A plugin that hits one fails the request or the
    /// deployment, and the error names the bound. What one plugin needs else
    /// stands under its name: `[plugin.tabular]`, then `instances = 8`. The
    /// bounds on compiling and on the cache are for all plugins alone.
    Plugins {
        /// Time inside the plugin in one call; time of graphs that the host
        /// runs for it does not count.
        call_timeout_ms: u64 = 1_000,
        /// Time that the host spends running graphs for one call.
        graph_timeout_ms: u64 = 30_000,
        /// Time for loading one instance, building its graph included.
        load_timeout_ms: u64 = 60_000,
        /// Linear memory of one instance.
        memory_bytes: u64 = 256 << 20,
        /// Elements over all function tables of one instance.
        max_table_elements: u64 = 100_000,
        /// Tensors, graphs and builders that one instance holds.
        max_handles: u64 = 10_000,
        /// Calls into the host during one call of the plugin.
        max_host_calls_per_call: u64 = 1_000_000,
        /// Calls into the host while one instance is loaded.
        max_host_calls_per_load: u64 = 10_000_000,
        /// Tensors that one instance made or received and still holds.
        max_tensor_bytes: u64 = 1 << 30,
        /// One list that crosses the boundary.
        max_list_bytes: u64 = 64 << 20,
        /// Warm instances of each custom plugin of an endpoint.
        instances: u64 = 4,
        /// Calls that wait for an instance; further ones are refused.
        max_waiting_calls: u64 = 256,
        /// One log line; the rest is cut off.
        max_log_line_bytes: u64 = 4_096,
        /// Log lines that are kept; the rest are counted.
        log_lines_per_second: u64 = 100,
        /// Graph builders and graphs that one instance holds.
        max_graphs: u64 = 16,
        /// Nodes of one graph, subgraphs included.
        max_graph_nodes: u64 = 100_000,
        /// Values of one graph, subgraphs included.
        max_graph_values: u64 = 500_000,
        /// Depth of subgraphs inside subgraphs.
        max_graph_nesting: u64 = 16,
        /// Names and attributes, other than tensors, of one graph.
        max_graph_attribute_bytes: u64 = 64 << 20,
        /// Constants of one graph; weights in assets do not count.
        max_graph_constant_bytes: u64 = 256 << 20,
        /// Memory that one graph takes of a GPU: weights, and the values of one
        /// run.
        max_graph_device_bytes: u64 = 8 << 30,
        /// Dispatches of one run of a graph on a GPU.
        max_graph_dispatches: u64 = 100_000,
        /// Traps, timeouts or limits hit in a row that put a plugin in
        /// quarantine.
        quarantine_after: u64 = 3,
        /// Length of the first quarantine; it doubles each time in a row.
        quarantine_backoff_ms: u64 = 1_000,
        /// Longest quarantine.
        max_quarantine_backoff_ms: u64 = 60_000,
        /// Time for compiling one component, at low priority: a busy machine
        /// takes much longer than an idle one.
        compile_timeout_ms: u64 = 60_000,
        /// Address space of the process that compiles a component.
        compile_memory_bytes: u64 = 1 << 30,
        /// Compiled components that are kept in the store.
        max_cache_bytes: u64 = 1 << 30,
    }
}

section! {
    /// Bounds on deployments and on what the store keeps.
    Deploy {
        /// Largest uploaded file.
        max_artifact_bytes: u64 = 4 << 30,
        /// Files of one deployment, tests included.
        max_files: u64 = 64,
        /// Deployments and loads under way at once; one more is refused.
        max_concurrent_deployments: u64 = 2,
        /// Bytes that all loaded revisions may take together; 0 for 80 % of the
        /// machine's memory.
        max_model_memory_bytes: u64 = 0,
        /// Versions of an endpoint that `mortise gc` keeps.
        keep_versions: u64 = 5,
        /// Time for all self-tests of one deployment.
        self_test_timeout_ms: u64 = 120_000,
        /// Time for a replaced revision to finish its requests before it is
        /// reported as stuck.
        drain_timeout_ms: u64 = 60_000,
    }
}

section! {
    /// The process.
    Server {
        /// Threads that handle connections; 0 for one a core. A connection stays
        /// on one, and so do the runs that are short enough for `in_place_below_us`.
        worker_threads: u64 = 0,
        /// After the server was told to stop: how long it still takes connections,
        /// not ready any more, so that clients learn to go elsewhere.
        drain_delay_ms: u64 = 500,
        /// Time for requests under way when the server is told to stop.
        shutdown_timeout_ms: u64 = 30_000,
        /// What is logged to stderr, as in `info` or `mortise_host=debug,info`.
        log: String = "info".to_string(),
    }
}

/// Keys of [`Plugins`] that are of no plugin alone.
const FOR_ALL_PLUGINS: [&str; 3] =
    ["compile_timeout_ms", "compile_memory_bytes", "max_cache_bytes"];

impl Raw {
    /// The settings of each plugin that has some of its own: `plugins`, with
    /// what stands under the plugin's name in place of it.
    ///
    /// # Errors
    /// When a key is unknown or its value is of the wrong type; names it.
    pub(crate) fn by_plugin(&self) -> Result<Vec<(String, Self)>> {
        let common = toml::Table::try_from(&self.plugins)?;
        let mut known = common.clone();
        FOR_ALL_PLUGINS.iter().for_each(|key| drop(known.remove(*key)));
        let settings = self.plugin.iter().map(|(name, own)| {
            let place = || format!("in [plugin.{name}]");
            let own = own.as_table().with_context(|| format!("{} must be a section", place()))?;
            unknown::refuse(own, &known).with_context(place)?;
            let mut merged = common.clone();
            merged.extend(own.clone());
            let plugins = merged.try_into().with_context(place)?;
            Ok((name.clone(), Self { plugins, ..self.clone() }))
        });
        settings.collect()
    }

    /// Every key with its value.
    pub(crate) fn to_table(&self) -> toml::Table {
        // Plain structs of strings, numbers and booleans always convert.
        toml::Table::try_from(self).unwrap_or_default()
    }

    /// The configuration as a file in which every key is explained.
    pub(crate) fn to_documented_toml(&self) -> String {
        let sections = [
            ("http", Http::DOCS),
            ("grpc", Grpc::DOCS),
            ("shared_memory", SharedMemory::DOCS),
            ("tls", Tls::DOCS),
            ("auth", Auth::DOCS),
            ("metrics", Metrics::DOCS),
            ("tracing", Tracing::DOCS),
            ("admin", Admin::DOCS),
            ("serving", Serving::DOCS),
            ("plugins", Plugins::DOCS),
            ("deploy", Deploy::DOCS),
            ("server", Server::DOCS),
        ];
        let table = self.to_table();
        let mut text = String::new();
        for (name, docs) in sections {
            if let Some(toml::Value::Table(values)) = table.get(name) {
                write_section(&mut text, name, &docs, values);
            }
        }
        text
    }
}

fn write_section(text: &mut String, name: &str, docs: &SectionDocs, values: &toml::Table) {
    let gap = if text.is_empty() { "" } else { "\n" };
    text.push_str(gap);
    docs.about.iter().for_each(|line| comment(text, line));
    // Writing into a string does not fail.
    let _ = writeln!(text, "[{name}]");
    for (key, doc) in docs.keys {
        doc.iter().for_each(|line| comment(text, line));
        if let Some(value) = values.get(*key) {
            let _ = writeln!(text, "{key} = {value}");
        }
    }
}

fn comment(text: &mut String, line: &str) {
    let _ = writeln!(text, "#{line}");
}
