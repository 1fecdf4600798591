//! What the binary carries: first-party plugins and the demo's files.

use bytes::Bytes;
use mortise_deploy::BuiltinPlugin;

/// One embedded file.
pub(crate) struct File {
    pub(crate) name: &'static str,
    pub(crate) bytes: &'static [u8],
}

/// The files of one demo endpoint.
pub(crate) struct Demo {
    pub(crate) name: &'static str,
    pub(crate) files: &'static [File],
}

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

pub(crate) fn plugins() -> Vec<BuiltinPlugin> {
    let builtin = |file: &File| BuiltinPlugin {
        name: file.name.to_string(),
        component: Bytes::from_static(file.bytes),
    };
    PLUGINS.iter().map(builtin).collect()
}
