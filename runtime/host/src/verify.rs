use crate::bindings::{VERSION, call_of, export_of};
use crate::host::{Verified, World, digest_of};
use crate::wasi;
use mortise_types::{Bytes, Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use wasmparser::component_types::{ComponentEntityType, ComponentInstanceTypeId};
use wasmparser::types::TypesRef;
use wasmparser::{Encoding, Parser, Payload, Validator, WasmFeatures};
use wit_parser::decoding::DecodedWasm;
use wit_parser::{InterfaceId, PackageId, Resolve, WorldId, WorldItem, WorldKey};

/// The contract as text: what components are checked against.
const CONTRACT: [(&str, &str); 7] = [
    ("types.wit", include_str!("../../../wit/v1/types.wit")),
    ("tensor.wit", include_str!("../../../wit/v1/tensor.wit")),
    ("graph.wit", include_str!("../../../wit/v1/graph.wit")),
    ("assets.wit", include_str!("../../../wit/v1/assets.wit")),
    ("log.wit", include_str!("../../../wit/v1/log.wit")),
    ("policy.wit", include_str!("../../../wit/v1/policy.wit")),
    ("worlds.wit", include_str!("../../../wit/v1/worlds.wit")),
];

const PACKAGE: &str = "mortise:plugin/";
const IMPORTS: [&str; 5] = [
    "mortise:plugin/types@0.1.0",
    "mortise:plugin/tensor@0.1.0",
    "mortise:plugin/graph@0.1.0",
    "mortise:plugin/assets@0.1.0",
    "mortise:plugin/log@0.1.0",
];
const WORLDS: [World; 4] = [World::Model, World::Transform, World::Router, World::Strategy];

/// Checks that `component` is a component which implements a world and needs
/// nothing that the contract does not offer. Compiles nothing.
pub(crate) fn verify(
    component: Bytes,
    features: WasmFeatures,
    max_bytes: usize,
) -> Result<Verified> {
    if component.len() > max_bytes {
        return Err(Error::too_large(format!(
            "the component has {} bytes, more than max_component_bytes = {max_bytes}",
            component.len()
        )));
    }
    check_encoding(&component)?;
    let outline = shielded(|| outline(&component))?;
    check_imports(&outline.imports)?;
    let world = world_of(&outline.exports)?;
    if outline.is_async {
        return Err(Error::unsupported(format!(
            "{} is exported as an async function, which is not served; build the plugin with \
             synchronous exports (for componentize-js and componentize-py: without async)",
            call_of(world)
        )));
    }
    let imports_wasi = outline.imports.iter().any(|name| wasi::is_served(name));
    shielded(|| check_types(&component, world, imports_wasi))?;
    shielded(|| check_features(&component, features))?;
    let digest = digest_of(&component).into();
    Ok(Verified { world, digest, component })
}

/// The tools below are made for trusted input. Should one panic on a strange
/// component, then that component is refused and the process lives on.
fn shielded<T>(check: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|_| {
        Err(Error::invalid("the component is damaged: its types cannot be read"))
    })
}

fn check_encoding(bytes: &[u8]) -> Result<()> {
    if Parser::is_core_wasm(bytes) {
        return Err(Error::invalid(
            "this is a core WebAssembly module, not a component; make it one with \
             `wasm-tools component new module.wasm -o plugin.wasm`",
        ));
    }
    if Parser::is_component(bytes) {
        return Ok(());
    }
    Err(Error::invalid("this is no WebAssembly component: it does not start with its magic number"))
}

/// The outside of a component.
#[derive(Default)]
struct Outline {
    imports: Vec<String>,
    exports: Vec<String>,
    is_async: bool,
}

/// Reads and validates the whole component.
fn outline(bytes: &[u8]) -> Result<Outline> {
    let damaged = |error: wasmparser::BinaryReaderError| {
        Error::invalid(format!("the component is truncated or damaged: {error}"))
    };
    let mut outline = Outline::default();
    let mut depth = 0;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(damaged)? {
            Payload::Version { encoding: Encoding::Module | Encoding::Component, .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    outline.imports.push(import.map_err(damaged)?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    outline.exports.push(export.map_err(damaged)?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    let types =
        Validator::new_with_features(WasmFeatures::all()).validate_all(bytes).map_err(damaged)?;
    let types = types.as_ref();
    outline.is_async = outline.exports.iter().any(|name| exports_async(&types, name));
    Ok(outline)
}

fn exports_async(types: &TypesRef<'_>, name: &str) -> bool {
    match types.component_item_for_export(name).map(|item| item.ty) {
        Some(ComponentEntityType::Instance(id)) => instance_is_async(types, id),
        Some(ComponentEntityType::Func(id)) => types[id].async_,
        _ => false,
    }
}

fn instance_is_async(types: &TypesRef<'_>, id: ComponentInstanceTypeId) -> bool {
    types[id].exports.values().any(|item| match item.ty {
        ComponentEntityType::Func(id) => types[id].async_,
        _ => false,
    })
}

fn check_imports(imports: &[String]) -> Result<()> {
    let is_known = |name: &str| IMPORTS.contains(&name) || wasi::is_served(name);
    let Some(name) = imports.iter().find(|name| !is_known(name)) else {
        return Ok(());
    };
    if name.starts_with("wasi:") {
        return Err(Error::unsupported(format!(
            "the component imports \"{name}\"; of WASI, only the interfaces of 0.2 are there, \
             with nothing behind them: build it for wasm32-wasip2, or without WASI for \
             wasm32-unknown-unknown"
        )));
    }
    if let Some(theirs) = contract_version(name).filter(|&version| version != VERSION) {
        return Err(wrong_version(theirs));
    }
    Err(Error::invalid(format!(
        "the component imports \"{name}\", which no world declares; a plugin may import only {}",
        IMPORTS.join(", ")
    )))
}

fn world_of(exports: &[String]) -> Result<World> {
    let has = |world: &World| exports.iter().any(|name| name == export_of(*world));
    let mut found = WORLDS.iter().copied().filter(has);
    match (found.next(), found.next()) {
        (Some(world), None) => Ok(world),
        (Some(one), Some(other)) => Err(Error::invalid(format!(
            "the component exports both {one}-api and {other}-api; a plugin implements one world"
        ))),
        _ => Err(no_world(exports)),
    }
}

fn no_world(exports: &[String]) -> Error {
    let theirs = exports.iter().filter_map(|name| contract_version(name));
    if let Some(version) = theirs.into_iter().find(|&version| version != VERSION) {
        return wrong_version(version);
    }
    let worlds: Vec<String> =
        WORLDS.iter().map(|&world| format!("{world} (exports {})", export_of(world))).collect();
    Error::invalid(format!(
        "the component implements no world of mortise:plugin@{VERSION}: it exports {exports:?}; \
         the worlds are {}",
        worlds.join(", ")
    ))
}

fn wrong_version(theirs: &str) -> Error {
    Error::invalid(format!(
        "the component was built for mortise:plugin@{theirs}; this runtime serves \
         mortise:plugin@{VERSION}. Build it again with this runtime's SDK"
    ))
}

/// The version in the name of an interface of the contract's package.
fn contract_version(name: &str) -> Option<&str> {
    name.strip_prefix(PACKAGE)?.split_once('@').map(|(_, version)| version)
}

/// Checks every function's type against the world.
fn check_types(bytes: &[u8], world: World, imports_wasi: bool) -> Result<()> {
    let (resolve, package) = contract()?;
    let id = resolve
        .select_world(&[*package], Some(&world.to_string()))
        .map_err(|error| Error::internal(format!("the contract has no world {world}: {error}")))?;
    let fits = match imports_wasi {
        true => with_wasi(resolve, id, bytes)
            .and_then(|resolve| wit_component::targets(&resolve, id, bytes)),
        false => wit_component::targets(resolve, id, bytes),
    };
    fits.map_err(|error| {
        Error::invalid(format!(
            "the component does not fit the world {world} of mortise:plugin@{VERSION}: {}",
            error.root_cause()
        ))
    })
}

/// The contract, with what the component imports of WASI as part of the world:
/// the host defines whatever that is.
fn with_wasi(contract: &Resolve, world: WorldId, bytes: &[u8]) -> anyhow::Result<Resolve> {
    let (theirs, their_world) = match wit_parser::decoding::decode(bytes)? {
        DecodedWasm::Component(resolve, world) => (resolve, world),
        DecodedWasm::WitPackage(..) => anyhow::bail!("it is a WIT package and no component"),
    };
    let imports = theirs.worlds[their_world].imports.values();
    let wasi: Vec<(InterfaceId, WorldItem)> = imports
        .filter_map(|item| match item {
            WorldItem::Interface { id, .. } => Some((*id, item.clone())),
            _ => None,
        })
        .filter(|(id, _)| theirs.id_of(*id).is_some_and(|name| wasi::is_served(&name)))
        .collect();
    let mut joint = contract.clone();
    let remap = joint.merge(theirs)?;
    for (theirs, mut item) in wasi {
        let merged = remap.interfaces.get(theirs.index()).copied().flatten();
        let merged = merged.ok_or_else(|| anyhow::anyhow!("an interface was lost"))?;
        if let WorldItem::Interface { id, .. } = &mut item {
            *id = merged;
        }
        joint.worlds[world].imports.insert(WorldKey::Interface(merged), item);
    }
    Ok(joint)
}

fn contract() -> Result<&'static (Resolve, PackageId)> {
    static PARSED: OnceLock<std::result::Result<(Resolve, PackageId), String>> = OnceLock::new();
    PARSED
        .get_or_init(|| parse_contract().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| Error::internal(format!("the contract does not parse: {error}")))
}

fn parse_contract() -> anyhow::Result<(Resolve, PackageId)> {
    let mut sources = wit_parser::SourceMap::new();
    for (name, text) in CONTRACT {
        sources.push_str(name, text);
    }
    let mut resolve = Resolve::default();
    let group = sources.parse().map_err(|(_, error)| anyhow::anyhow!("{error}"))?;
    let package = resolve.push_group(group)?;
    Ok((resolve, package))
}

/// Names a WebAssembly feature that the engine does not run.
fn check_features(bytes: &[u8], features: WasmFeatures) -> Result<()> {
    Validator::new_with_features(features).validate_all(bytes).map(drop).map_err(|error| {
        Error::unsupported(format!("the component needs a feature that is not served: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortise_types::ErrorKind;

    fn refusal(text: &str) -> (ErrorKind, String) {
        refusal_of(wat::parse_str(text).unwrap())
    }

    fn refusal_of(bytes: Vec<u8>) -> (ErrorKind, String) {
        match verify(Bytes::from(bytes), WasmFeatures::all(), 1 << 20) {
            Ok(_) => panic!("accepted"),
            Err(error) => (error.kind(), error.message().to_owned()),
        }
    }

    #[test]
    fn what_is_no_plugin_is_told_why() {
        let cases = [
            ("(module)", "make it one with `wasm-tools component new"),
            ("(component)", "implements no world of mortise:plugin@0.1.0"),
            (
                r#"(component (import "evil:host/shell@1.0.0" (instance)))"#,
                "imports \"evil:host/shell@1.0.0\", which no world declares",
            ),
            (
                r#"(component (import "mortise:plugin/tensor@0.9.0" (instance)))"#,
                "built for mortise:plugin@0.9.0; this runtime serves mortise:plugin@0.1.0",
            ),
            (
                r#"(component (instance $i) (export "mortise:plugin/model-api@0.1.0" (instance $i)))"#,
                "does not fit the world model",
            ),
            (
                r#"(component (instance $i)
                    (export "mortise:plugin/model-api@0.1.0" (instance $i))
                    (export "mortise:plugin/transform-api@0.1.0" (instance $i)))"#,
                "a plugin implements one world",
            ),
        ];
        for (text, want) in cases {
            let (kind, message) = refusal(text);
            assert_eq!(kind, ErrorKind::InvalidInput, "{message}");
            assert!(message.contains(want), "{message}");
        }
    }

    #[test]
    fn later_wasi_and_async_are_unsupported() {
        let (kind, message) =
            refusal(r#"(component (import "wasi:filesystem/types@0.3.0" (instance)))"#);
        assert_eq!(kind, ErrorKind::Unsupported);
        assert!(message.contains("imports \"wasi:filesystem/types@0.3.0\""), "{message}");

        let (kind, message) = refusal(
            r#"(component
                (core module $m (func (export "f") (param i32 i32) (result i32) i32.const 0)
                    (func (export "cb") (param i32 i32 i32) (result i32) i32.const 0)
                    (memory (export "memory") 1)
                    (func (export "realloc") (param i32 i32 i32 i32) (result i32) i32.const 0))
                (core instance $i (instantiate $m))
                (func $f async (param "config" string)
                    (canon lift (core func $i "f") async (callback (core func $i "cb"))
                        (memory (core memory $i "memory"))
                        (realloc (core func $i "realloc"))))
                (instance $api (export "load" (func $f)))
                (export "mortise:plugin/model-api@0.1.0" (instance $api)))"#,
        );
        assert_eq!(kind, ErrorKind::Unsupported, "{message}");
        assert!(message.contains("async"), "{message}");
    }

    #[test]
    fn every_cut_and_many_flips_of_a_component_are_refused_or_accepted_quietly() {
        let whole = wat::parse_str(
            r#"(component (core module (func (export "f"))) (import "a:b/c" (instance)))"#,
        )
        .unwrap();
        for end in 0..whole.len() {
            let cut = Bytes::copy_from_slice(&whole[..end]);
            assert!(verify(cut, WasmFeatures::all(), 1 << 20).is_err());
        }
        for index in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[index] ^= 0x41;
            assert!(verify(Bytes::from(flipped), WasmFeatures::all(), 1 << 20).is_err());
        }
    }

    #[test]
    fn large_components_are_refused_unread() {
        let error = verify(Bytes::from(vec![0; 11]), WasmFeatures::all(), 10).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(error.message().contains("max_component_bytes = 10"));
    }
}
