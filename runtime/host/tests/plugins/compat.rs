//! Components of released worlds, kept as text in `tests/compat`: a host that
//! no longer runs one breaks plugins that exist. `MORTISE_BLESS=1` writes the
//! text of a new world; a released one is never written again.

use crate::common::{guests, host, limits, load_on, within};
use crate::{LONG, assert_refused, values};
use mortise_types::{Bytes, ErrorKind, Tensor};
use std::fs;
use std::path::PathBuf;

/// Version, world, and the function that answers a batch.
const RELEASED: [(&str, &str, &str); 2] =
    [("0.1.0", "model", "predict"), ("0.1.0", "transform", "apply")];

fn path(version: &str, world: &str) -> PathBuf {
    guests::root().join(format!("tests/compat/{version}/{world}.wat"))
}

fn text(version: &str, world: &str, call: &str) -> String {
    let path = path(version, world);
    if !path.exists() && std::env::var_os("MORTISE_BLESS").is_some() {
        let component = guests::answering_component(world, call);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, wasmprinter::print_bytes(component).unwrap()).unwrap();
    }
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn components_of_every_released_world_run() {
    for (version, world, call) in RELEASED {
        let component = wat::parse_str(text(version, world, call)).unwrap();
        let verified = host().verify(Bytes::from(component)).unwrap();
        assert_eq!(verified.world().to_string(), world);
        let compiled = host().compile(&verified).unwrap();
        let plugin = load_on(host(), &compiled, "{}", limits()).unwrap();
        for _ in 0..3 {
            let x = Tensor::from_vec(&[1], vec![1.0f32]).unwrap();
            let outputs = plugin.call(vec![x], &within(LONG)).unwrap();
            assert_eq!(values(&outputs), [42.0], "{version} {world}");
        }
    }
}

#[test]
fn another_version_is_refused_with_both_named() {
    for (version, world, call) in RELEASED {
        let other = text(version, world, call).replace(&format!("@{version}"), "@0.9.9");
        let component = Bytes::from(wat::parse_str(other).unwrap());
        let want = "built for mortise:plugin@0.9.9; this runtime serves mortise:plugin@0.1.0";
        assert_refused(world, host().verify(component), ErrorKind::InvalidInput, want);
    }
}
