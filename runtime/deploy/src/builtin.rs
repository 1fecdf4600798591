//! First-party plugins, by name.

use mortise_host::World;
use mortise_types::{Bytes, Error};

/// A first-party plugin and the digest of its bytes.
pub(crate) struct Builtin {
    pub(crate) digest: String,
    pub(crate) component: Bytes,
}

/// Least similarity (Jaro-Winkler) at which a name is suggested.
const SIMILAR: f64 = 0.8;

/// Says that no first-party plugin of the wanted kinds has this name, and which
/// of the `known` ones are of them.
pub fn unknown_plugin<'a>(
    name: &str,
    wanted: &[World],
    known: impl Iterator<Item = (&'a str, World)>,
) -> Error {
    let known = known.filter(|(_, world)| wanted.contains(world));
    let mut names: Vec<&str> = known.map(|(name, _)| name).collect();
    names.sort_unstable();
    let near = nearest(name, names.iter().copied()).map(|near| format!("; did you mean {near}?"));
    names.push("or your own as a .wasm file");
    let kinds: Vec<String> = wanted.iter().map(World::to_string).collect();
    Error::invalid(format!(
        "there is no {} \"{name}\", only {}{}",
        kinds.join(" or "),
        names.join(", "),
        near.unwrap_or_default()
    ))
}

/// The known name that was likely meant, if any.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |other: &'a str| (strsim::jaro_winkler(name, other), other);
    let nearest = known.map(likeness).max_by(|a, b| a.0.total_cmp(&b.0));
    nearest.filter(|(likeness, _)| *likeness >= SIMILAR).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_plugins_are_answered_with_those_of_their_kind() {
        let known = [
            ("onnx", World::Model),
            ("weighted", World::Router),
            ("manual", World::Strategy),
            ("blue-green", World::Strategy),
        ];
        for (name, wanted, want) in [
            (
                "blue",
                &[World::Strategy][..],
                "there is no strategy \"blue\", only blue-green, manual, or your own as a .wasm \
                 file; did you mean blue-green?",
            ),
            (
                "onxx",
                &[World::Model],
                "there is no model \"onxx\", only onnx, or your own as a .wasm file; did you mean \
                 onnx?",
            ),
            (
                "q",
                &[World::Router, World::Strategy],
                "there is no router or strategy \"q\", only blue-green, manual, weighted, or your \
                 own as a .wasm file",
            ),
        ] {
            assert_eq!(unknown_plugin(name, wanted, known.into_iter()).message(), want);
        }
    }
}
