//! Where mutation starts: valid inputs of every shape.

use anyhow::Result;
use mortise_tests::{infer, onnx, paths};

/// Bodies as `mortise_wire::fuzz_decode` reads them: a byte for the framing, two
/// for the header's length, then the body.
pub(crate) fn wire() -> Vec<Vec<u8>> {
    let framed = |mode: u8, header: usize, body: &[u8]| {
        let [low, high, ..] = header.to_le_bytes();
        [&[mode, low, high], body].concat()
    };
    let (binary, header) = infer::binary_fp32("x", 1, &[1.0, 2.0]);
    let texts = [
        r#"{"id":"a","inputs":[{"name":"x","datatype":"BYTES","shape":[2],"data":["a","ü\n"]}]}"#,
        r#"{"inputs":[{"name":"x","datatype":"BOOL","shape":[1,2],"data":[[true,false]]}],
            "outputs":[{"name":"y","parameters":{"binary_data":true,"classification":3}}]}"#,
        r#"{"inputs":[{"name":"x","datatype":"INT64","shape":[3],"data":[-1,0,9223372036854775807]}],
            "parameters":{"timeout":5,"binary_data_output":false}}"#,
        r#"{"inputs":[{"name":"x","datatype":"FP64","shape":[2,0],"data":[]}]}"#,
    ];
    let mut seeds: Vec<_> = texts.iter().map(|text| framed(0, 0, text.as_bytes())).collect();
    seeds.push(framed(0, 0, &infer::json_fp32("x", 2, &[1.0, -2.5e-3, 1e30, 0.0])));
    seeds.push(framed(1, header, &binary));
    seeds.push(framed(2, 0, &[0; 16]));
    seeds
}

/// ONNX files: handmade ones, and the smallest of the demo.
pub(crate) fn onnx() -> Result<Vec<Vec<u8>>> {
    let mut seeds = vec![onnx::tagged_sum(1.0), onnx::endless_loop(), onnx::slow_to_load(2, 3)];
    for demo in ["digits", "breast-cancer", "wine"] {
        let file = std::fs::read(paths::demo(&format!("{demo}/model.onnx")))?;
        if file.len() < 64 * 1024 {
            seeds.push(file);
        }
    }
    Ok(seeds)
}
