//! Inference requests as JSON and as binary tensors.

use serde_json::{Value, json};

/// A JSON request with one FP32 input of shape `[rows, columns]`.
pub fn json_fp32(input: &str, columns: usize, values: &[f32]) -> Vec<u8> {
    let shape = [values.len() / columns.max(1), columns];
    let tensor = json!({"name": input, "datatype": "FP32", "shape": shape, "data": values});
    json!({"inputs": [tensor]}).to_string().into_bytes()
}

/// The same with binary data both ways: the body, and the length of its JSON
/// part for `Inference-Header-Content-Length`.
pub fn binary_fp32(input: &str, columns: usize, values: &[f32]) -> (Vec<u8>, usize) {
    let shape = [values.len() / columns.max(1), columns];
    let header = json!({
        "inputs": [{
            "name": input, "datatype": "FP32", "shape": shape,
            "parameters": {"binary_data_size": values.len() * 4},
        }],
        "parameters": {"binary_data_output": true},
    });
    let mut body = header.to_string().into_bytes();
    let header_bytes = body.len();
    values.iter().for_each(|value| body.extend_from_slice(&value.to_le_bytes()));
    (body, header_bytes)
}

/// The path of inference on an endpoint.
pub fn path(endpoint: &str) -> String {
    format!("/v2/models/{endpoint}/infer")
}

/// The data of an output of a JSON answer.
pub fn output<'a>(answer: &'a Value, name: &str) -> Option<&'a Vec<Value>> {
    let outputs = answer["outputs"].as_array()?;
    outputs.iter().find(|output| output["name"] == name)?["data"].as_array()
}
