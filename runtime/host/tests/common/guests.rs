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
    let mut module = wat::parse_str(format!(
        r#"(module
            (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
            (func (export "{API}#load") (param i32 i32) (result i32) unreachable)
            (func (export "{API}#predict") (param i32 i32) (result i32) unreachable)
            {text})"#
    ))
    .unwrap();
    let mut resolve = wit_parser::Resolve::default();
    let (package, _) = resolve.push_dir(root().join("wit/v1")).unwrap();
    let world = resolve.select_world(&[package], Some("model")).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    encode(&module)
}

fn encode(module: &[u8]) -> Vec<u8> {
    ComponentEncoder::default().validate(true).module(module).unwrap().encode().unwrap()
}

fn root() -> PathBuf {
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
