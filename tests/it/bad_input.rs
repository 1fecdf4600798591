//! Bad input, each with its status and a message that says what is wrong.

use anyhow::Result;
use mortise_tests::{Deployment, Options, Server, http1, infer, onnx};
use serde_json::{Value, json};

struct Case {
    name: &'static str,
    path: &'static str,
    body: Vec<u8>,
    header_length: Option<String>,
    status: u16,
    /// Must occur in the message.
    says: &'static str,
}

fn case(name: &'static str, body: impl Into<Vec<u8>>, status: u16, says: &'static str) -> Case {
    Case {
        name,
        path: "/v2/models/sum/infer",
        body: body.into(),
        header_length: None,
        status,
        says,
    }
}

fn input(value: Value) -> String {
    json!({"inputs": [value]}).to_string()
}

fn x(shape: Value, data: Value) -> String {
    input(json!({"name": "x", "datatype": "FP32", "shape": shape, "data": data}))
}

fn json_cases() -> Vec<Case> {
    let typed = |datatype: &str| {
        input(json!({"name": "x", "datatype": datatype, "shape": [1, 1], "data": [1]}))
    };
    let x1 = json!({"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]});
    vec![
        case("empty body", "", 400, ""),
        case("not JSON", "hello", 400, ""),
        case("cut off", "{\"inputs\": [", 400, ""),
        case("not an object", "[]", 400, ""),
        case("no inputs", "{}", 400, "inputs"),
        case("empty inputs", "{\"inputs\": []}", 400, "x"),
        case("unknown input", typed("FP32").replace("\"x\"", "\"z\""), 400, "z"),
        case("wrong dtype", typed("INT32"), 400, "FP32"),
        case("unknown dtype", typed("FP31"), 400, "FP31"),
        case("fp16 in JSON", typed("FP16"), 400, "FP16"),
        case("input twice", json!({"inputs": [x1, x1]}).to_string(), 400, "x"),
        case("too few values", x(json!([2, 1]), json!([1.0])), 400, "x"),
        case("too many values", x(json!([1, 1]), json!([1.0, 2.0])), 400, "x"),
        case("wrong width", x(json!([1, 2]), json!([1.0, 2.0])), 400, "x"),
        case("wrong rank", x(json!([1]), json!([1.0])), 400, "x"),
        case("negative dimension", x(json!([-1, 1]), json!([1.0])), 400, "shape"),
        case("a shape that overflows", x(json!([1_u64 << 40, 1_u64 << 40]), json!([1.0])), 400, ""),
        case("text for a number", x(json!([1, 1]), json!(["a"])), 400, "x"),
        case("null for a number", x(json!([1, 1]), json!([null])), 400, "x"),
        case("ragged", x(json!([2, 1]), json!([[1.0], [2.0, 3.0]])), 400, "x"),
        case("deep nesting", format!("{}1", "[".repeat(100_000)), 400, ""),
        case(
            "unknown output",
            json!({"inputs": [x1], "outputs": [{"name": "nope"}]}).to_string(),
            400,
            "nope",
        ),
    ]
}

fn binary_cases() -> Vec<Case> {
    let header = |bytes: u64| {
        json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1],
               "parameters": {"binary_data_size": bytes}}]})
        .to_string()
    };
    // The header is equally long for all sizes of one digit.
    let whole = header(4).len().to_string();
    let framed = |name, bytes: u64, tail: &[u8], length: &str, says| Case {
        header_length: Some(length.to_owned()),
        ..case(name, [header(bytes).as_bytes(), tail].concat(), 400, says)
    };
    vec![
        framed("data too short", 4, &[0; 3], &whole, ""),
        framed("data too long", 4, &[0; 5], &whole, ""),
        framed("size not of the shape", 8, &[0; 8], &whole, "x"),
        framed("header beyond the body", 4, &[0; 4], "9999", ""),
        framed("header length not a number", 4, &[0; 4], "abc", ""),
        framed("header length negative", 4, &[0; 4], "-1", ""),
        framed("header cut off", 4, &[0; 4], "50", ""),
        Case { header_length: Some("0".to_owned()), ..case("raw, odd bytes", vec![0; 5], 400, "") },
    ]
}

fn path_cases() -> Vec<Case> {
    let good = || x(json!([1, 1]), json!([1.0])).into_bytes();
    let at = |name, path, status, says| Case { path, ..case(name, good(), status, says) };
    vec![
        at("unknown model", "/v2/models/nope/infer", 404, "nope"),
        at("unknown version", "/v2/models/sum/versions/99/infer", 404, "99"),
        at("version not a number", "/v2/models/sum/versions/abc/infer", 404, "abc"),
        at("unknown path", "/v2/nowhere", 404, ""),
        at("load is off", "/v2/repository/models/sum/load", 403, "repository_control"),
        at("unload is off", "/v2/repository/models/sum/unload", 403, "repository_control"),
        at("wrong method", "/v2/health/live", 405, ""),
        Case {
            path: "/v2/models/sum/infer",
            ..case("body over the limit", vec![b' '; 200_000], 413, "max_body_bytes")
        },
    ]
}

#[test]
fn each_bad_request_has_its_status_and_message() -> Result<()> {
    let config = "[http]\nmax_body_bytes = 150000\n".to_owned();
    let server = Server::start_with(Options { config, ..Options::default() })?;
    server.admin()?.deploy("sum", &Deployment::onnx(onnx::tagged_sum(7.0)))?;
    let mut findings = Vec::new();
    for case in [json_cases(), binary_cases(), path_cases()].into_iter().flatten() {
        let length = case.header_length.as_deref();
        let headers: Vec<_> =
            length.map(|length| ("inference-header-content-length", length)).into_iter().collect();
        let response = server.client().send("POST", case.path, &headers, &case.body)?;
        let error = response.json().ok().and_then(|body| body["error"].as_str().map(str::to_owned));
        let message = error.clone().unwrap_or_default();
        if response.status != case.status || message.is_empty() || !message.contains(case.says) {
            findings.push(format!(
                "{}: expected {} with {:?}, got {} with {}",
                case.name,
                case.status,
                case.says,
                response.status,
                response.text()
            ));
        }
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    let good =
        server.client().post(&infer::path("sum"), x(json!([1, 1]), json!([1.0])).as_bytes())?;
    assert_eq!(good.status, 200, "{}", good.text());
    Ok(())
}

#[test]
fn malformed_http_does_not_disturb_the_server() -> Result<()> {
    let server = Server::start()?;
    let cases: [&[u8]; 5] = [
        b"GARBAGE\r\n\r\n",
        b"POST /v2/models/sum/infer HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nbad header\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
    ];
    for bytes in cases {
        // The connection may be closed without an answer; only then may it fail.
        if let Ok(response) = server.client().exchange(bytes) {
            assert!((400..500).contains(&response.status), "{bytes:?}: {}", response.status);
        }
        let live = http1::request("GET", "/v2/health/live", &[], b"");
        assert_eq!(server.client().exchange(&live)?.status, 200, "after {bytes:?}");
    }
    Ok(())
}
