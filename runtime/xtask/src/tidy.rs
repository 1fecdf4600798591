//! The house rules, as checks. Each returns what is wrong, one line each.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use crate::sh::Command;
use crate::suite::Counts;
use crate::workspace::{Package, Workspace};

/// Which crates of the workspace each layer may use.
const EDGES: &[(&str, &[&str])] = &[
    ("mortise-types", &[]),
    ("mortise-wire", &["mortise-types"]),
    ("mortise-grpc-proto", &["mortise-wire", "mortise-types"]),
    ("mortise-graph", &["mortise-types"]),
    ("mortise-observe", &["mortise-types"]),
    ("mortise-host", &["mortise-types"]),
    ("mortise-compute", &["mortise-graph", "mortise-types"]),
    ("mortise-gpu", &["mortise-compute", "mortise-graph", "mortise-types"]),
    (
        "mortise-serve",
        &["mortise-host", "mortise-graph", "mortise-compute", "mortise-observe", "mortise-types"],
    ),
    (
        "mortise-deploy",
        &[
            "mortise-serve",
            "mortise-host",
            "mortise-graph",
            "mortise-compute",
            "mortise-observe",
            "mortise-types",
        ],
    ),
    (
        "mortise-server",
        &[
            "mortise-deploy",
            "mortise-serve",
            "mortise-host",
            "mortise-graph",
            "mortise-compute",
            "mortise-gpu",
            "mortise-observe",
            "mortise-wire",
            "mortise-grpc-proto",
            "mortise-types",
        ],
    ),
    ("mortise-plugin-sdk", &[]),
    // What the fuzzer calls in its own process; the rest drives the binary.
    // And what the benchmark of models runs beside onnxruntime.
    (
        "mortise-tests",
        &[
            "mortise-wire",
            "mortise-grpc-proto",
            "mortise-compute",
            "mortise-graph",
            "mortise-types",
            "mortise-plugin-sdk",
            "plugin-onnx",
        ],
    ),
    // The plugin host and the device in one process, without a server.
    (
        "mortise-conformance",
        &["mortise-serve", "mortise-host", "mortise-graph", "mortise-compute", "mortise-types"],
    ),
    ("xtask", &[]),
];

/// Heavy dependencies, and the only crates that may name them.
const OWNERS: &[(&str, &[&str])] = &[
    ("wasmtime", &["mortise-host"]),
    ("wasmparser", &["mortise-host"]),
    ("wit-component", &["mortise-host", "xtask"]),
    ("wit-bindgen", &["mortise-plugin-sdk"]),
    ("wgpu", &["mortise-gpu"]),
    ("naga", &["mortise-gpu"]),
    ("rten-gemm", &["mortise-compute"]),
    ("rten-simd", &["mortise-compute"]),
    ("rten-vecmath", &["mortise-compute"]),
    ("prost", &["mortise-grpc-proto"]),
    ("protox", &["mortise-grpc-proto"]),
    ("opentelemetry", &["mortise-server"]),
    ("opentelemetry-otlp", &["mortise-server"]),
    ("opentelemetry_sdk", &["mortise-server"]),
    ("tonic", &["mortise-grpc-proto", "mortise-server"]),
    ("rusqlite", &["mortise-deploy"]),
    ("hyper", &["mortise-server", "mortise-tests"]),
    ("hyper-util", &["mortise-server", "mortise-tests"]),
];

/// What a plugin may use: the SDK, and crates that only shape data.
const PLUGIN_DEPENDENCIES: &[&str] =
    &["mortise-plugin-sdk", "serde", "serde_json", "safetensors", "bytemuck", "half"];

const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".ci",
    ".gitattributes",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "clippy.toml",
    "deny.toml",
    "plugin-sdk",
    "plugins",
    "runtime",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "shaders",
    "tests",
    "wit",
];

const MAX_FILE_BYTES: u64 = 400_000;

/// Texts that no source file may contain. They are written in two halves so
/// that this table does not find itself.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("to", "do!(", "finish it or leave it out"),
    ("unimple", "mented!(", "finish it or leave it out"),
    ("db", "g!(", "use tracing"),
    ("#[igno", "re", "a test that does not run is not a test"),
    ("allow(dead", "_code)", "remove what is not used"),
    ("FIX", "ME", "mend it or leave it out"),
    ("/ro", "ot/", "a path of one machine"),
    ("/ho", "me/", "a path of one machine"),
    ("/wo", "rk/", "a path of one machine"),
];

type Check = fn(&Workspace, &[String]) -> Result<Vec<String>>;

const CHECKS: &[(&str, Check)] = &[
    ("layering", layering),
    ("dependency owners", owners),
    ("plugins use the SDK only", plugin_dependencies),
    ("one set of features", features),
    ("workspace lints", workspace_lints),
    ("top-level names", top_level),
    ("file sizes", file_sizes),
    ("forbidden texts", forbidden_texts),
    ("README commands", readme_commands),
    ("formatting", formatting),
];

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    match check(workspace)? {
        Counts { failed: 0, .. } => Ok(()),
        Counts { failed, .. } => bail!("{failed} of {} tidy checks failed", CHECKS.len()),
    }
}

/// Runs every check and prints what each found.
pub(crate) fn check(workspace: &Workspace) -> Result<Counts> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(&workspace.root)
        .output()?;
    let files: Vec<String> =
        listed.lines().filter(|file| workspace.path(file).is_file()).map(str::to_owned).collect();
    let mut failed = 0;
    for (name, check) in CHECKS {
        let findings = check(workspace, &files)?;
        println!("tidy: {name}: {}", if findings.is_empty() { "ok" } else { "FAILED" });
        for finding in &findings {
            println!("    {finding}");
        }
        failed += usize::from(!findings.is_empty());
    }
    Ok(Counts { passed: CHECKS.len() - failed, failed })
}

fn layering(workspace: &Workspace, _: &[String]) -> Result<Vec<String>> {
    let internal = |name: &str| workspace.packages.iter().any(|package| package.name == name);
    let mut findings = Vec::new();
    for Package { name, dependencies, .. } in not_plugins(workspace) {
        let Some((_, allowed)) = EDGES.iter().find(|(from, _)| from == name) else {
            findings.push(format!("{name} has no place in the layers: add it to EDGES"));
            continue;
        };
        let wrong = |used: &&String| internal(used) && !allowed.contains(&used.as_str());
        let wrong = dependencies.iter().filter(wrong);
        findings.extend(wrong.map(|used| format!("{name} must not depend on {used}")));
    }
    Ok(findings)
}

fn owners(workspace: &Workspace, _: &[String]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for Package { name, dependencies, .. } in &workspace.packages {
        for used in dependencies {
            let owner = OWNERS.iter().find(|(heavy, _)| heavy == used);
            if let Some((_, allowed)) = owner
                && !allowed.contains(&name.as_str())
            {
                findings
                    .push(format!("{name} uses {used}, which only {} may", allowed.join(" and ")));
            }
        }
    }
    Ok(findings)
}

fn is_plugin(workspace: &Workspace, package: &Package) -> bool {
    package.manifest.starts_with(workspace.path("plugins"))
}

fn not_plugins(workspace: &Workspace) -> impl Iterator<Item = &Package> {
    workspace.packages.iter().filter(|package| !is_plugin(workspace, package))
}

fn plugin_dependencies(workspace: &Workspace, _: &[String]) -> Result<Vec<String>> {
    let plugins = workspace.packages.iter().filter(|package| is_plugin(workspace, package));
    let mut findings = Vec::new();
    for Package { name, dependencies, .. } in plugins {
        let wrong = |used: &&String| !PLUGIN_DEPENDENCIES.contains(&used.as_str());
        let wrong = dependencies.iter().filter(wrong);
        findings.extend(wrong.map(|used| format!("{name} depends on {used}")));
    }
    Ok(findings)
}

/// What only tests depend on must not ask others for more features: tests would
/// compile all that uses those, often wasmtime, a second time.
fn features(workspace: &Workspace, _: &[String]) -> Result<Vec<String>> {
    let listed = |edges: &str| -> Result<BTreeSet<String>> {
        let format = ["--prefix", "none", "--format", "{p} with {f}"];
        let tree = ["tree", "--workspace", "--edges", edges];
        let text = workspace.cargo(&tree).args(format).output()?;
        Ok(text.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect())
    };
    let built = listed("normal,build")?;
    let name = |line: &str| line.split(" with ").next().unwrap_or_default().to_owned();
    let names: BTreeSet<String> = built.iter().map(|line| name(line)).collect();
    let of_tests = listed("normal,build,dev")?;
    let findings = of_tests.difference(&built).filter(|line| names.contains(&name(line)));
    Ok(findings.map(|line| format!("only tests use {line}: ask for that in every build")).collect())
}

fn workspace_lints(workspace: &Workspace, _: &[String]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for Package { name, manifest, .. } in &workspace.packages {
        if !fs::read_to_string(manifest)?.contains("[lints]\nworkspace = true") {
            findings.push(format!("{name}: add [lints] workspace = true"));
        }
    }
    Ok(findings)
}

fn top_level(_: &Workspace, files: &[String]) -> Result<Vec<String>> {
    let mut names: Vec<_> = files.iter().filter_map(|file| file.split('/').next()).collect();
    names.dedup();
    names.retain(|name| !TOP_LEVEL.contains(name));
    Ok(names.into_iter().map(|name| format!("{name} is not an agreed top-level name")).collect())
}

fn file_sizes(workspace: &Workspace, files: &[String]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for file in files {
        let bytes = fs::metadata(workspace.path(file))?.len();
        if bytes > MAX_FILE_BYTES {
            findings.push(format!("{file}: {bytes} bytes, limit {MAX_FILE_BYTES}"));
        }
    }
    Ok(findings)
}

fn forbidden_texts(workspace: &Workspace, files: &[String]) -> Result<Vec<String>> {
    const TEXT: &[&str] = &["rs", "py", "md", "toml", "wit", "wgsl", "sh", "json"];
    let mut findings = Vec::new();
    for file in files {
        let extension = Path::new(file).extension().and_then(|extension| extension.to_str());
        if !extension.is_some_and(|extension| TEXT.contains(&extension)) {
            continue;
        }
        let text = fs::read_to_string(workspace.path(file))?;
        for (number, line) in text.lines().enumerate() {
            for (head, tail, advice) in FORBIDDEN {
                let needle = [*head, *tail].concat();
                if line.contains(&needle) {
                    findings.push(format!("{file}:{}: `{needle}`: {advice}", number + 1));
                }
            }
        }
    }
    Ok(findings)
}

fn readme_commands(workspace: &Workspace, _: &[String]) -> Result<Vec<String>> {
    let text = fs::read_to_string(workspace.path("README.md")).unwrap_or_default();
    let commands = ["cargo xtask serve", "cargo xtask test"];
    let missing = commands.iter().filter(|command| !text.contains(**command));
    Ok(missing.map(|command| format!("README.md does not mention `{command}`")).collect())
}

fn formatting(workspace: &Workspace, _: &[String]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for manifest in ["Cargo.toml", "tests/guests/Cargo.toml"] {
        let path = workspace.path(manifest);
        if !path.exists() {
            continue;
        }
        let check = Command::new("cargo").args(["fmt", "--all", "--check", "--manifest-path"]);
        let clean = check.args([&path]).stream(|line| {
            if line.starts_with("Diff in ") {
                findings.push(line.to_owned());
            }
        })?;
        if !clean && findings.is_empty() {
            findings.push(format!("cargo fmt --check fails for {manifest}"));
        }
    }
    Ok(findings)
}
