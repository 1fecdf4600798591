//! Where mutation starts: valid inputs of every shape.

use anyhow::Result;
use mortise_tests::onnx::Message;
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

/// `ModelInferRequest`s: raw and typed contents of several types, parameters of
/// every kind, requested outputs, and a slice of shared memory.
pub(crate) fn grpc() -> Vec<Vec<u8>> {
    let message = Message::default;
    let request = || message().text(1, "m").text(2, "3").text(3, "id");
    let input = |name: &str, dtype: &str, shape: &[u64]| {
        let dims = shape.iter().fold(message(), |dims, &dim| dims.int(3, dim));
        message().text(1, name).text(2, dtype).append(&dims)
    };
    let parameter = |name: &str, value: &Message| message().text(1, name).message(2, value);
    let floats: Vec<u8> = [1.0f32, -2.5].iter().flat_map(|value| value.to_le_bytes()).collect();
    let raw = request()
        .message(5, &input("x", "FP32", &[1, 2]))
        .message(5, &input("n", "INT64", &[1]))
        .bytes(7, &floats)
        .bytes(7, &[0; 8]);
    let typed = request()
        .message(5, &input("x", "FP32", &[2]).message(5, &message().bytes(6, &floats)))
        .message(5, &input("i", "INT32", &[2]).message(5, &message().int(2, 5).int(2, u64::MAX)))
        .message(5, &input("b", "BOOL", &[2]).message(5, &message().bytes(1, &[1, 0])))
        .message(5, &input("s", "BYTES", &[2]).message(5, &message().text(8, "a").text(8, "ü")));
    let asking = raw
        .clone()
        .message(4, &parameter("sequence_id", &message().int(2, 7)))
        .message(4, &parameter("sequence_start", &message().int(1, 1)))
        .message(4, &parameter("timeout", &message().text(3, "5")))
        .message(
            6,
            &message().text(1, "y").message(2, &parameter("classification", &message().int(2, 3))),
        );
    let region = |name: &str| parameter(name, &message().text(3, "region"));
    let shared = request().message(
        5,
        &input("x", "FP32", &[2])
            .message(4, &region("shared_memory_region"))
            .message(4, &parameter("shared_memory_byte_size", &message().int(2, 8))),
    );
    [raw, typed, asking, shared].map(|request| request.as_bytes().to_vec()).into()
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
