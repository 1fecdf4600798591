//! The importer on files that `tests/models/export.py` wrote, and on broken
//! ones. `testdata/NAME.txt` holds what `NAME.onnx` turns into;
//! `MORTISE_BLESS=1 cargo test -p plugin-onnx` writes it again.

use crate::trace::trace;
use std::path::{Path, PathBuf};

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

/// The files of `testdata`, sorted.
fn models() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(testdata()).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "onnx"));
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

#[test]
fn models_turn_into_the_recorded_graphs() {
    for path in models() {
        let got = trace(&std::fs::read(&path).unwrap()).unwrap().join("\n") + "\n";
        let recorded = path.with_extension("txt");
        if std::env::var_os("MORTISE_BLESS").is_some() {
            std::fs::write(&recorded, &got).unwrap();
        }
        assert_eq!(got, std::fs::read_to_string(&recorded).unwrap(), "{}", path.display());
    }
}

#[test]
fn files_cut_short_never_panic() {
    for path in models() {
        let bytes = std::fs::read(&path).unwrap();
        for end in 0..bytes.len() {
            // A cut between two fields can leave a valid model.
            let _ = trace(&bytes[..end]);
        }
    }
}

#[test]
fn files_with_wrong_bytes_never_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for path in models() {
        let original = std::fs::read(&path).unwrap();
        for _ in 0..2_000 {
            let mut bytes = original.clone();
            for _ in 0..=random(3) {
                let at = random(bytes.len());
                bytes[at] = random(256) as u8;
            }
            let _ = trace(&bytes);
        }
    }
}

/// A length-delimited field.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2, content.len() as u8];
    bytes.extend(content);
    bytes
}

/// A model around the fields of a graph.
fn model(graph: &[Vec<u8>]) -> Vec<u8> {
    let opset = field(8, &[0x10, 17]);
    [field(7, &graph.concat()), opset].concat()
}

/// A node with the given inputs, outputs and type.
fn node(inputs: &[&str], outputs: &[&str], op: &str) -> Vec<u8> {
    let inputs = inputs.iter().map(|name| field(1, name.as_bytes()));
    let outputs = outputs.iter().map(|name| field(2, name.as_bytes()));
    let parts: Vec<Vec<u8>> = inputs.chain(outputs).chain([field(4, op.as_bytes())]).collect();
    field(1, &parts.concat())
}

/// An input or output called `name` of type float `[2]`, or without a shape.
fn value(number: u8, name: &str, has_shape: bool) -> Vec<u8> {
    let shape = if has_shape { field(2, &field(1, &[0x08, 2])) } else { Vec::new() };
    let tensor = field(1, &[vec![0x08, 1], shape].concat());
    field(number, &[field(1, name.as_bytes()), field(2, &tensor)].concat())
}

#[test]
fn malformed_models_say_what_and_where() {
    let sequence = field(12, &[field(1, b"y"), field(2, &field(4, &[]))].concat());
    let tensor = |dims: u8, data: &[u8]| {
        field(5, &[vec![0x08, dims, 0x10, 1], field(8, b"w"), field(9, data)].concat())
    };
    let body = field(7, &field(4, b"F"));
    let function = [field(1, b"F"), field(4, b"x"), field(5, b"y"), body].concat();
    let recursive = [
        model(&[value(11, "x", true), node(&["x"], &["y"], "F")]),
        // The tag of field 25 takes two bytes.
        vec![0xca, 0x01, function.len() as u8],
        function,
    ]
    .concat();
    let cases: [(&str, Vec<u8>, &str); 9] = [
        ("nothing", vec![], "it holds no graph"),
        ("text", b"not a model".to_vec(), "at byte"),
        (
            "unknown name",
            model(&[node(&["a"], &["y"], "Relu")]),
            "at byte 2: \"a\" is read before anything writes it",
        ),
        (
            "written twice",
            model(&[value(11, "x", true), node(&["x"], &["x"], "Relu")]),
            "\"x\" is written twice",
        ),
        ("no such output", model(&[value(12, "y", true)]), "\"y\" is read before"),
        (
            "a sequence",
            model(&[sequence]),
            "output \"y\" is a sequence; only tensors can be served",
        ),
        ("no shape", model(&[value(11, "x", false)]), "input \"x\" declares no shape; give one in"),
        (
            "short data",
            model(&[tensor(2, &[0; 4])]),
            "\"w\" (FP32 [2]) takes 8 bytes, the file has 4",
        ),
        ("recursion", recursive, "function \"F\" calls itself"),
    ];
    for (name, bytes, want) in cases {
        let error = trace(&bytes).unwrap_err();
        assert!(error.message().contains(want), "{name}: {error}");
    }
}
