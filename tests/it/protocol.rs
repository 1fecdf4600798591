//! What a well-behaved client of the Open Inference Protocol sees.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use mortise_tests::{Deployment, Server, infer, onnx};
use serde_json::{Value, json};

/// `sum` answers `x + 7`, of shape `[N, 1]`.
fn server() -> Result<Server> {
    let server = Server::start()?;
    server.admin()?.deploy("sum", &Deployment::onnx(onnx::tagged_sum(7.0)))?;
    Ok(server)
}

fn tensor(shape: &[usize], data: Value) -> Value {
    json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "data": data}]})
}

#[test]
fn fixed_answers() -> Result<()> {
    let server = server()?;
    let mut client = server.client();
    let cases =
        [("/v2/health/live", json!({"live": true})), ("/v2/health/ready", json!({"ready": true}))];
    for (path, expected) in cases {
        assert_eq!(client.get(path)?.ok()?.json()?, expected, "{path}");
    }
    assert_eq!(client.get("/v2/models/sum/ready")?.status, 200);
    assert_eq!(client.get("/v2/models/sum/versions/1/ready")?.status, 200);
    assert_eq!(client.get("/v2/models/sum/config")?.status, 200);
    let metadata = client.get("/v2/models/sum")?.ok()?.json()?;
    assert_eq!(metadata["name"], "sum");
    assert_eq!(metadata["versions"], json!(["1"]));
    assert_eq!(metadata["inputs"], json!([{"name": "x", "datatype": "FP32", "shape": [-1, 1]}]));
    assert_eq!(metadata["outputs"], json!([{"name": "y", "datatype": "FP32", "shape": [-1, 1]}]));
    Ok(())
}

#[test]
fn every_listed_extension_is_served() -> Result<()> {
    let server = server()?;
    let mut client = server.client();
    let about = client.get("/v2")?.ok()?.json()?;
    ensure!(about["name"].is_string() && about["version"].is_string(), "{about}");
    let listed: Vec<_> =
        about["extensions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    // Those without a path of their own have tests of their own.
    let all = [
        ("binary_tensor_data", None),
        ("classification", None),
        ("generate", None),
        ("logging", Some("/v2/logging")),
        ("model_configuration", Some("/v2/models/sum/config")),
        ("model_repository", None),
        ("parameters", None),
        ("schedule_policy", None),
        ("sequence", None),
        ("statistics", Some("/v2/models/stats")),
        ("trace", Some("/v2/models/sum/trace/setting")),
    ];
    assert_eq!(listed, all.map(|(extension, _)| extension));
    for path in all.iter().filter_map(|(_, path)| *path) {
        client.get(path)?.ok().context(path)?;
    }
    let generated = client.post_json("/v2/models/sum/generate", &json!({"x": [[2.5]]}))?;
    assert_eq!(generated.ok()?.json()?["y"], 9.5);
    let mut request = tensor(&[1, 1], json!([1.0]));
    request["parameters"] = json!({"priority": 1, "timeout": 10_000_000, "told": "nobody"});
    client.post_json(&infer::path("sum"), &request)?.ok()?;
    let index = client.post_json("/v2/repository/index", &json!({}))?.ok()?.json()?;
    assert_eq!(index[0]["name"], "sum");
    assert_eq!(index[0]["state"], "READY");
    Ok(())
}

#[test]
fn json_requests() -> Result<()> {
    let server = server()?;
    let mut client = server.client();
    let path = infer::path("sum");
    let cases = [
        ("flat", tensor(&[2, 1], json!([1.0, 2.5])), json!([8.0, 9.5])),
        ("nested", tensor(&[2, 1], json!([[1.0], [2.5]])), json!([8.0, 9.5])),
        ("integers as floats", tensor(&[1, 1], json!([3])), json!([10.0])),
        ("no rows", tensor(&[0, 1], json!([])), json!([])),
    ];
    for (name, request, expected) in cases {
        let answer = client.post_json(&path, &request)?.ok().context(name)?.json()?;
        assert_eq!(answer["outputs"][0]["data"], expected, "{name}");
        assert_eq!(answer["model_name"], "sum", "{name}");
        assert_eq!(answer["model_version"], "1", "{name}");
    }
    let mut request = tensor(&[1, 1], json!([1.0]));
    request["id"] = "abc-1".into();
    request["outputs"] = json!([{"name": "y"}]);
    let answer = client.post_json("/v2/models/sum/versions/1/infer", &request)?.ok()?.json()?;
    assert_eq!(answer["id"], "abc-1");
    Ok(())
}

#[test]
fn binary_requests() -> Result<()> {
    let server = server()?;
    let mut client = server.client();
    let path = infer::path("sum");
    let (body, header_bytes) = infer::binary_fp32("x", 1, &[1.0, 2.5]);
    let length = header_bytes.to_string();
    let headers = [("Inference-Header-Content-Length", length.as_str())];
    let answer = client.send("POST", &path, &headers, &body)?.ok()?;
    let split = answer.header("inference-header-content-length").context("no header length")?;
    let data = &answer.body[split.parse::<usize>()?..];
    assert_eq!(data, [8.0_f32.to_le_bytes(), 9.5_f32.to_le_bytes()].concat());

    // A raw request: no JSON at all, one input, every byte is its data.
    let raw: Vec<u8> = [1.0_f32, 2.5].iter().flat_map(|value| value.to_le_bytes()).collect();
    let answer =
        client.send("POST", &path, &[("Inference-Header-Content-Length", "0")], &raw)?.ok()?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    ensure!(text.contains("\"y\""), "{text}");
    Ok(())
}

#[test]
fn compressed_bodies() -> Result<()> {
    let server = server()?;
    let mut client = server.client();
    let body = tensor(&[1, 1], json!([1.0])).to_string();
    let level = flate2::Compression::default();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), level);
    gzip.write_all(body.as_bytes())?;
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), level);
    zlib.write_all(body.as_bytes())?;
    for (coding, bytes) in [("gzip", gzip.finish()?), ("deflate", zlib.finish()?)] {
        let headers = [("content-encoding", coding)];
        let answer = client.send("POST", &infer::path("sum"), &headers, &bytes)?;
        assert_eq!(answer.ok().context(coding)?.json()?["outputs"][0]["data"], json!([8.0]));
    }
    Ok(())
}

#[test]
fn http2_with_prior_knowledge() -> Result<()> {
    let server = server()?;
    let body = tensor(&[1, 1], json!([1.0])).to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(server.http).await?;
        let (sender, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(connection);
        let mut sender = sender.ready().await?;
        let request = hyper::Request::post(format!("http://localhost{}", infer::path("sum")));
        let (response, mut sink) = sender.send_request(request.body(())?, false)?;
        sink.send_data(body.into(), true)?;
        let mut body = response.await?.into_body();
        let mut bytes = Vec::new();
        while let Some(chunk) = body.data().await {
            bytes.extend_from_slice(&chunk?);
        }
        anyhow::Ok(serde_json::from_slice::<Value>(&bytes)?)
    })?;
    assert_eq!(answer["outputs"][0]["data"], json!([8.0]));
    Ok(())
}

#[test]
fn metrics_are_served() -> Result<()> {
    let server = server()?;
    let text = mortise_tests::Client::new(server.metrics).get("/metrics")?.ok()?.text();
    ensure!(text.contains("mortise_"), "no metric of ours in {text}");
    Ok(())
}
