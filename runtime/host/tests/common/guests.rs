//! Components of `tests/guests`, built when they are first asked for, and ones
//! that are generated because they would be large or cannot be written in Rust.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

/// The component made from the guest crate `name`.
pub(crate) fn component(name: &str) -> Vec<u8> {
    let path = modules().join(format!("{name}.wasm"));
    let module = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    encode(&module)
}

/// A model whose code takes long to compile: many functions, each a long chain
/// of values that all stay alive.
pub(crate) fn compile_bomb(functions: usize) -> Vec<u8> {
    let locals = 300;
    let mut body = String::new();
    for step in 0..3000 {
        let (a, b, c) = (step % locals, (step * 7 + 3) % locals, (step * 13 + 5) % locals);
        body.push_str(&format!(
            "(if (i64.lt_u (local.get {a}) (local.get {b})) (then (local.set {c} (i64.mul \
             (local.get {a}) (i64.rotl (local.get {b}) (local.get {c}))))))\n"
        ));
    }
    let function = format!("(func (local {}) {body})\n", "i64 ".repeat(locals));
    model_of(&function.repeat(functions))
}

/// A model with the given further definitions, in WebAssembly text.
fn model_of(text: &str) -> Vec<u8> {
    const API: &str = "mortise:plugin/model-api@0.1.0";
    let module = format!(
        r#"(module
            (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
            (func (export "{API}#load") (param i32 i32) (result i32) unreachable)
            (func (export "{API}#predict") (param i32 i32) (result i32) unreachable)
            {text})"#
    );
    component_of("model", &module)
}

/// What toolchains add to the contract: the part of WASI that [`wasi_model`]
/// imports, and a world that has both.
const WITH_WASI: &str = "
    package guest:wasi;
    world model-with-wasi {
        include mortise:plugin/model@0.1.0;
        import wasi:cli/environment@0.2.3;
        import wasi:cli/stderr@0.2.3;
        import wasi:clocks/monotonic-clock@0.2.3;
    }
    package wasi:io@0.2.3 {
        interface error { resource error; }
        interface streams {
            use error.{error};
            variant stream-error { last-operation-failed(error), closed }
            resource output-stream {
                blocking-write-and-flush: func(contents: list<u8>) -> result<_, stream-error>;
            }
        }
    }
    package wasi:cli@0.2.3 {
        interface environment { get-environment: func() -> list<tuple<string, string>>; }
        interface stderr {
            use wasi:io/streams@0.2.3.{output-stream};
            get-stderr: func() -> output-stream;
        }
    }
    package wasi:clocks@0.2.3 {
        interface monotonic-clock { type instant = u64; now: func() -> instant; }
    }";

/// A model that finds an empty environment in `load`, and answers 42. Told to
/// by a first input of no elements or of more than one, it writes to standard
/// error and asks for the time.
pub(crate) fn wasi_model() -> Vec<u8> {
    let imports = r#"
        (import "wasi:cli/environment@0.2.3" "get-environment" (func $environment (param i32)))
        (import "wasi:cli/stderr@0.2.3" "get-stderr" (func $stderr (result i32)))
        (import "wasi:io/streams@0.2.3" "[method]output-stream.blocking-write-and-flush"
            (func $write (param i32 i32 i32 i32)))
        (import "wasi:clocks/monotonic-clock@0.2.3" "now" (func $now (result i64)))
        (import "mortise:plugin/tensor@0.1.0" "[method]tensor.length"
            (func $length (param i32) (result i64)))"#;
    let on_load = "
        (call $environment (i32.const 1300))
        (if (i32.load (i32.const 1304)) (then unreachable))";
    let on_call = "
        (if (i64.ne (call $length (i32.load (local.get 0))) (i64.const 1)) (then
            (call $write (call $stderr) (i32.const 1400) (i32.const 10) (i32.const 1420))
            (drop (call $now))))";
    let data = r#"(data (i32.const 1400) "last words")"#;
    let module = answering("model-api", "predict", imports, on_load, on_call, data);
    component_of("model-with-wasi", &module)
}

/// A small component of a world that is called once per batch: it takes `x`
/// and answers `y`, which is 42.
pub(crate) fn answering_component(world: &str, call: &str) -> Vec<u8> {
    let module = answering(&format!("{world}-api"), call, "", "", "", "");
    component_of(world, &module)
}

/// The core module of [`answering_component`], with more in it. Everything
/// lies at fixed places: the signature from 1024, results from 1100.
fn answering(
    api: &str,
    call: &str,
    imports: &str,
    on_load: &str,
    on_call: &str,
    data: &str,
) -> String {
    format!(
        r#"(module
            (import "mortise:plugin/tensor@0.1.0" "[static]tensor.from-f32"
                (func $from-f32 (param i32 i32 i32 i32 i32)))
            (import "mortise:plugin/tensor@0.1.0" "[resource-drop]tensor"
                (func $drop (param i32)))
            {imports}
            (memory (export "memory") 1)
            (data (i32.const 1024) "xy")
            (data (i32.const 1032) "\ff\ff\ff\ff\ff\ff\ff\ff")
            (data (i32.const 1040) "\00\04\00\00\01\00\00\00\0b\00\00\00\08\04\00\00\01\00\00\00")
            (data (i32.const 1060) "\01\04\00\00\01\00\00\00\0b\00\00\00\08\04\00\00\01\00\00\00")
            (data (i32.const 1100) "\00\00\00\00\01\00\00\00")
            (data (i32.const 1108) "\10\04\00\00\01\00\00\00\24\04\00\00\01\00\00\00")
            (data (i32.const 1248) "\01\00\00\00\00\00\00\00\00\00\28\42")
            {data}
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 4096)
            (func (export "mortise:plugin/{api}@0.1.0#load") (param i32 i32) (result i32)
                {on_load}
                i32.const 1100)
            (func (export "mortise:plugin/{api}@0.1.0#{call}") (param i32 i32) (result i32)
                {on_call}
                (call $drop (i32.load (local.get 0)))
                (call $from-f32 (i32.const 1248) (i32.const 1)
                    (i32.const 1256) (i32.const 1) (i32.const 1200))
                (i32.store (i32.const 1240) (i32.load (i32.const 1204)))
                (i32.store (i32.const 1224) (i32.const 1240))
                (i32.store (i32.const 1228) (i32.const 1))
                i32.const 1220))"#
    )
}

/// A core module in text, as a component of a world of the contract or of
/// [`WITH_WASI`].
fn component_of(world: &str, module: &str) -> Vec<u8> {
    let mut module = wat::parse_str(module).unwrap();
    let mut resolve = wit_parser::Resolve::default();
    let (mut package, _) = resolve.push_dir(root().join("wit/v1")).unwrap();
    if world.ends_with("-with-wasi") {
        package = resolve.push_str("wasi.wit", WITH_WASI).unwrap();
    }
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    encode(&module)
}

fn encode(module: &[u8]) -> Vec<u8> {
    ComponentEncoder::default().validate(true).module(module).unwrap().encode().unwrap()
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Builds all guests and returns the folder of their core modules.
fn modules() -> &'static Path {
    static MODULES: OnceLock<PathBuf> = OnceLock::new();
    MODULES.get_or_init(|| {
        // Beside the other targets: the flags differ from the host's.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../plugin-build");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--release", "--workspace"])
            .args(["--target", "wasm32-unknown-unknown", "--target-dir"])
            .arg(&target)
            .current_dir(root().join("tests/guests"))
            .env("RUSTFLAGS", "-C target-feature=+simd128")
            .status()
            .unwrap();
        assert!(status.success(), "the guests do not build");
        target.join("wasm32-unknown-unknown/release")
    })
}
