//! The data plane over real sockets, with models that compute nothing much.

use super::*;
use crate::plane::{Permits, testing};
use std::io::{Read, Write};
use std::time::Duration;
use tokio::sync::oneshot;

/// A running data plane; stops when dropped.
struct Server {
    address: std::net::SocketAddr,
    plane: Arc<DataPlane>,
    _stop: oneshot::Sender<()>,
    _runtime: tokio::runtime::Runtime,
}

fn serve(change: impl FnOnce(&mut HttpSettings)) -> Server {
    serve_with(change, Permits::default())
}

fn serve_with(change: impl FnOnce(&mut HttpSettings), permits: Permits) -> Server {
    let mut settings = HttpSettings {
        address: ([127, 0, 0, 1], 0).into(),
        max_body_bytes: 4096,
        request_timeout: Duration::from_secs(20),
        header_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(60),
        max_header_bytes: 32 << 10,
        max_connections: 64,
        drain_delay: Duration::ZERO,
    };
    change(&mut settings);
    let plane = Arc::new(DataPlane { settings, plane: testing::plane(permits) });
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let workers = Workers::start(2).unwrap();
    let serving =
        listen::serve(listener, workers, None, plane.clone(), async move { drop(stopped.await) });
    runtime.spawn(serving);
    Server { address, plane, _stop: stop, _runtime: runtime }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Server {
    /// Sends a request and reads the answer until the server closes.
    fn send(&self, line: &str, headers: &str, body: &[u8]) -> Answer {
        let mut stream = std::net::TcpStream::connect(self.address).unwrap();
        let head = format!(
            "{line} HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        read_answer(stream)
    }

    fn infer(&self, model: &str, body: &str) -> Answer {
        self.send(&format!("POST /v2/models/{model}/infer"), "", body.as_bytes())
    }
}

fn read_answer(mut stream: std::net::TcpStream) -> Answer {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head, body: bytes[end + 4..].to_vec() }
}

const ROW: &str =
    r#"{"id":"a","inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[1,2.5]}]}"#;

#[test]
fn every_path_answers_with_its_status() {
    let server = serve(|_| {});
    for (line, status, body) in [
        ("GET /v2/health/live", 200, r#"{"live":true}"#),
        ("GET /v2/health/ready", 200, r#"{"ready":true}"#),
        ("GET /v2/models/m/ready", 200, r#"{"name":"m","ready":true}"#),
        ("GET /v2/models/m/versions/3/ready", 200, r#"{"name":"m","ready":true}"#),
        (
            "GET /v2/models/m",
            200,
            r#"{"name":"m","versions":["3"],"platform":"doubler","inputs":[{"name":"x","datatype":"FP32","shape":[-1]}],"outputs":[{"name":"y","datatype":"FP32","shape":[-1]}]}"#,
        ),
        ("GET /v2/models/off", 503, r#"{"error":"model \"off\" is not ready: it was unloaded"}"#),
        (
            "GET /v2/models/off/ready",
            503,
            r#"{"name":"off","ready":false,"error":"model \"off\" is not ready: it was unloaded"}"#,
        ),
        ("GET /v2/models/none", 404, r#"{"error":"unknown model \"none\""}"#),
        (
            "GET /v2/models/m/versions/4",
            404,
            r#"{"error":"model \"m\" has no version \"4\"; version 3 is live"}"#,
        ),
        ("GET /v3", 404, r#"{"error":"no such path \"/v3\"; the protocol is under /v2"}"#),
        ("POST /v2/health/live", 405, r#"{"error":"this path answers GET, HEAD"}"#),
        ("GET /v2/models/m/infer", 405, r#"{"error":"this path answers POST"}"#),
        ("DELETE /v2/models/m/infer", 405, r#"{"error":"this path answers POST"}"#),
        (
            "POST /v2/repository/models/m/load",
            403,
            r#"{"error":"loading and unloading on the data port is switched off; set http.repository_control = true, or use the admin API"}"#,
        ),
    ] {
        let answer = server.send(line, "", b"");
        assert_eq!((answer.status, answer.text()), (status, body), "{line}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{line}");
    }
    let sick = server.send("GET /v2/models/sick/ready", "", b"");
    assert_eq!((sick.status, sick.header("retry-after")), (503, Some("1")));
    assert!(sick.text().contains("in quarantine: it trapped"), "{}", sick.text());
    let refused = server.send("PUT /v2", "", b"");
    assert_eq!(refused.header("allow"), Some("GET, HEAD"));
    let page = server.plane.observer.render();
    assert!(page.contains("mortise_http_responses_total{status=\"405\"} 4"), "{page}");
}

#[test]
fn the_server_lists_what_it_serves() {
    let server = serve(|_| {});
    let answer = server.send("GET /v2", "", b"");
    let want = r#""extensions":["binary_tensor_data","classification","generate","logging","model_configuration","model_repository","parameters","schedule_policy","sequence","statistics","system_shared_memory","trace"]"#;
    assert!(answer.text().contains(want), "{}", answer.text());
    let head = server.send("HEAD /v2", "", b"");
    let length = answer.body.len().to_string();
    assert_eq!((head.body.len(), head.header("content-length")), (0, Some(length.as_str())));
}

#[test]
fn inference_in_json_and_binary() {
    let server = serve(|_| {});
    let answer = server.infer("m", ROW);
    let want = r#"{"id":"a","model_name":"m","model_version":"3","parameters":{"version":3,"variant":"stable"},"outputs":[{"name":"y","datatype":"FP32","shape":[2],"data":[2.0,5.0]}]}"#;
    assert_eq!((answer.status, answer.text()), (200, want));
    assert_eq!(server.infer("m/versions/3", ROW).text(), want);

    let raw: Vec<u8> = [1.0f32, -4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let header = "inference-header-content-length: 0\r\n";
    let answer = server.send("POST /v2/models/m/infer", header, &raw);
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
    let json: usize = answer.header("inference-header-content-length").unwrap().parse().unwrap();
    let (json, data) = answer.body.split_at(json);
    assert!(json.ends_with(br#""shape":[2],"parameters":{"binary_data_size":8}}]}"#));
    assert_eq!(data, [2.0f32, -8.0].map(f32::to_le_bytes).as_flattened());
}

#[test]
fn refusals_name_their_reason() {
    let server = serve(|_| {});
    let unknown_input = ROW.replace("\"x\"", "\"z\"");
    let wrong_type = ROW.replace("FP32", "FP64");
    let late = ROW.replace("{\"id\":\"a\",", "{\"parameters\":{\"timeout\":1000},");
    for (model, body, status, part) in [
        ("none", ROW, 404, "unknown model"),
        ("none", "{", 404, "unknown model"),
        ("m/versions/9", ROW, 404, "no version"),
        ("off", ROW, 503, "it was unloaded"),
        ("sick", ROW, 503, "quarantine"),
        ("slow", late.as_str(), 504, "deadline"),
        ("m", "{", 400, "not valid JSON"),
        ("m", "", 400, "no body"),
        ("m", unknown_input.as_str(), 400, "z"),
        ("m", wrong_type.as_str(), 400, "FP64"),
    ] {
        let answer = server.infer(model, body);
        assert_eq!(answer.status, status, "{model} {body}: {}", answer.text());
        assert!(answer.text().starts_with("{\"error\":\""), "{}", answer.text());
        assert!(answer.text().contains(part), "{model} {body}: {}", answer.text());
    }
    let length = "inference-header-content-length: many\r\n";
    let answer = server.send("POST /v2/models/m/infer", length, ROW.as_bytes());
    let want = r#"{"error":"Inference-Header-Content-Length must be a byte count, got \"many\""}"#;
    assert_eq!((answer.status, answer.text()), (400, want));
}

#[test]
fn bodies_are_bounded() {
    let server = serve(|settings| settings.max_body_bytes = 1000);
    let want = r#"{"error":"the request's body is larger than max_body_bytes = 1000; send fewer rows at a time, or raise http.max_body_bytes"}"#;
    let told = server.send("POST /v2/models/m/infer", "", &[b' '; 1001]);
    assert_eq!((told.status, told.text()), (413, want));

    let mut stream = std::net::TcpStream::connect(server.address).unwrap();
    let head = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: t\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head).unwrap();
    for _ in 0..3 {
        stream.write_all(b"190\r\n").unwrap();
        stream.write_all(&[b' '; 400]).unwrap();
        stream.write_all(b"\r\n").unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let streamed = read_answer(stream);
    assert_eq!((streamed.status, streamed.text()), (413, want));

    let bomb = encoding::compress(encoding::Coding::Gzip, Bytes::from(vec![b' '; 100_000]).into());
    let gzip = "content-encoding: gzip\r\n";
    let packed = server.send("POST /v2/models/m/infer", gzip, &bomb.unwrap());
    assert_eq!(packed.status, 413, "{}", packed.text());
    let other = server.send("POST /v2/models/m/infer", "content-encoding: br\r\n", b"x");
    let want = r#"{"error":"Content-Encoding \"br\" is not served; send gzip, deflate or none"}"#;
    assert_eq!((other.status, other.text()), (400, want));
}

#[test]
fn compression_both_ways() {
    let server = serve(|settings| settings.max_body_bytes = 1 << 20);
    let values = vec!["1.5"; 2000].join(",");
    let body = format!(
        "{{\"inputs\":[{{\"name\":\"x\",\"shape\":[2000],\"datatype\":\"FP32\",\"data\":[{values}]}}]}}"
    );
    let plain = server.infer("m", &body);
    for (name, coding) in [("gzip", encoding::Coding::Gzip), ("deflate", encoding::Coding::Deflate)]
    {
        let packed = encoding::compress(coding, Bytes::from(body.clone()).into()).unwrap();
        let headers = format!("content-encoding: {name}\r\naccept-encoding: {name}\r\n");
        let answer = server.send("POST /v2/models/m/infer", &headers, &packed);
        assert_eq!((answer.status, answer.header("content-encoding")), (200, Some(name)));
        let unpacked = encoding::decompress(coding, &answer.body, 1 << 20).unwrap();
        assert_eq!(unpacked, plain.body);
    }
    let small = server.send("POST /v2/models/m/infer", "accept-encoding: gzip\r\n", ROW.as_bytes());
    assert_eq!(small.header("content-encoding"), None);
}

#[test]
fn the_repository_when_it_may_be_controlled() {
    let permits = Permits { repository_control: true, ..Permits::default() };
    let server = serve_with(|_| {}, permits);
    let post = |path: &str, body: &str| server.send(&format!("POST {path}"), "", body.as_bytes());
    assert_eq!(post("/v2/repository/models/m/load", "{}").status, 200);
    let unload = r#"{"parameters":{"unload_dependents":false}}"#;
    assert_eq!(post("/v2/repository/models/m/unload", unload).status, 200);
    let dependents = unload.replace("false", "true");
    assert_eq!(post("/v2/repository/models/m/unload", &dependents).status, 400);
    assert_eq!(post("/v2/repository/models/none/load", "").status, 404);
    let configured = post("/v2/repository/models/m/load", r#"{"parameters":{"config":"{}"}}"#);
    assert_eq!(configured.status, 400);

    let index = post("/v2/repository/index", "{\"ready\":true}");
    let want = r#"[{"name":"m","version":"3","state":"READY","reason":""},{"name":"slow","version":"3","state":"READY","reason":""}]"#;
    assert_eq!(index.text(), want);
    let all: serde_json::Value =
        serde_json::from_slice(&post("/v2/repository/index", "").body).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 4);
    assert_eq!(all[1]["state"], "UNAVAILABLE");
}

#[test]
fn connections_are_kept_bounded_and_timed() {
    let server = serve(|settings| settings.header_timeout = Duration::from_millis(100));
    // Kept: two requests on one connection.
    let mut stream = std::net::TcpStream::connect(server.address).unwrap();
    let live = b"GET /v2/health/live HTTP/1.1\r\nhost: t\r\n\r\n";
    stream.write_all(live).unwrap();
    let mut first = [0; 512];
    assert!(stream.read(&mut first).unwrap() > 0);
    stream.write_all(live).unwrap();
    assert!(stream.read(&mut first).unwrap() > 0);
    // Timed: the server closes connections that send no request, or half of one.
    for begin in [b"".as_slice(), b"PR", b"GET /v2 HT"] {
        let mut stream = std::net::TcpStream::connect(server.address).unwrap();
        stream.write_all(begin).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // Closed, or reset when it had sent something; not left open.
        if let Err(error) = stream.read_to_end(&mut Vec::new()) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    }
    // Bounded: with one slot, the second connection waits for the first.
    let server = serve(|settings| settings.max_connections = 1);
    let mut holder = std::net::TcpStream::connect(server.address).unwrap();
    holder.write_all(live).unwrap();
    assert!(holder.read(&mut first).unwrap() > 0);
    let mut waiting = std::net::TcpStream::connect(server.address).unwrap();
    waiting
        .write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n")
        .unwrap();
    // The holder does nothing, and loses its place after a second.
    assert_eq!(read_answer(waiting).status, 200);
    assert_eq!(holder.read(&mut first).unwrap_or(0), 0);
}

#[test]
fn heads_and_bodies_have_bounds() {
    let server = serve(|_| {});
    let long = format!("x-long: {}\r\n", "a".repeat(33 << 10));
    assert_eq!(server.send("GET /v2/health/live", &long, b"").status, 431);
    let body = format!("{ROW}{}", " ".repeat(4096));
    assert_eq!(server.infer("m", &body).status, 413);
}

#[test]
fn what_is_received_at_once_has_a_bound() {
    let server = serve(|settings| settings.max_body_bytes = 8 << 20);
    let body = format!("{ROW}{}", " ".repeat(2 << 20));
    let refused = server.infer("m", &body);
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("max_buffered_body_bytes = 1048576"), "{}", refused.text());
    // What was refused is given back.
    for _ in 0..3 {
        let body = format!("{ROW}{}", " ".repeat(600 << 10));
        assert_eq!(server.infer("m", &body).status, 200);
    }
}

#[test]
fn statistics_count_what_was_answered() {
    let server = serve(|_| {});
    server.infer("m", ROW);
    server.infer("m", &ROW.replace("FP32", "FP64"));
    let read = |path: &str| -> serde_json::Value {
        serde_json::from_slice(&server.send(&format!("GET {path}"), "", b"").body).unwrap()
    };
    let all = read("/v2/models/stats");
    assert_eq!(all["model_stats"].as_array().unwrap().len(), 3);
    let stats = &read("/v2/models/m/versions/3/stats")["model_stats"][0];
    assert_eq!((stats["name"].as_str(), stats["version"].as_str()), (Some("m"), Some("3")));
    assert_eq!(stats["inference_stats"]["success"]["count"], 1);
    for part in ["success", "queue", "compute_input", "compute_infer", "compute_output"] {
        assert!(stats["inference_stats"][part]["ns"].as_u64().unwrap() > 0, "{part} in {stats}");
    }
    assert!(stats["last_inference"].as_u64().unwrap() > 1_600_000_000_000);
    assert_eq!(server.send("GET /v2/models/m/versions/9/stats", "", b"").status, 404);
    assert_eq!(server.send("GET /v2/models/none/stats", "", b"").status, 404);
}

#[test]
fn settings_are_told_and_changed_where_permitted() {
    let server = serve(|_| {});
    let told = server.send("GET /v2/logging", "", b"");
    let want = r#"{"log_error":true,"log_file":"","log_format":"default","log_info":true,"log_verbose_level":0,"log_warning":true}"#;
    assert_eq!((told.status, told.text()), (200, want));
    let trace = server.send("GET /v2/models/m/trace/setting", "", b"");
    assert!(trace.text().contains(r#""trace_level":["OFF"]"#), "{}", trace.text());
    assert_eq!(server.send("GET /v2/models/none/trace/setting", "", b"").status, 404);
    let change = br#"{"log_verbose_level":1,"log_info":false}"#;
    assert_eq!(server.send("POST /v2/logging", "", change).status, 403);
    assert_eq!(server.send("POST /v2/trace/setting", "", br#"{"trace_rate":"5"}"#).status, 403);

    let permits = Permits { settings_control: true, ..Permits::default() };
    let server = serve_with(|_| {}, permits);
    let changed = server.send("POST /v2/logging", "", change);
    assert!(changed.text().contains(r#""log_info":false,"log_verbose_level":1"#));
    assert_eq!(server.send("GET /v2/logging", "", b"").text(), changed.text());
    for (path, body, status) in [
        ("logging", r#"{"log_file":"x"}"#, 400),
        ("logging", r#"{"log_info":"yes"}"#, 400),
        ("logging", "[1]", 400),
        ("trace/setting", r#"{"trace_level":["TIMESTAMPS"]}"#, 400),
        ("trace/setting", r#"{"trace_level":["OFF"],"trace_rate":null}"#, 200),
        ("trace/setting", r#"{"trace_rate":5}"#, 400),
    ] {
        let answer = server.send(&format!("POST /v2/{path}"), "", body.as_bytes());
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
    }
}

#[test]
fn tensors_through_shared_memory() {
    let server = serve(|_| {});
    let key = format!("/mortise-http-{}", std::process::id());
    let file = std::path::PathBuf::from(format!("/dev/shm{key}"));
    std::fs::write(&file, [1.5f32, -2.0, 0.0, 0.0].map(f32::to_le_bytes).concat()).unwrap();
    let post = |path: &str, body: &str| {
        server.send(&format!("POST /v2/systemsharedmemory/{path}"), "", body.as_bytes())
    };
    let body = format!(r#"{{"key":"{key}","offset":0,"byte_size":16}}"#);
    let registered = post("region/r/register", &body);
    assert_eq!(registered.status, 200, "{}", registered.text());
    assert_eq!(post("region/r/register", &body).status, 409);
    assert_eq!(post("region/s/register", r#"{"key":"/other","byte_size":1}"#).status, 403);
    assert_eq!(post("region/s/register", r#"{"byte_size":1}"#).status, 400);
    let told = server.send("GET /v2/systemsharedmemory/region/r/status", "", b"");
    let want = format!(r#"[{{"byte_size":16,"key":"{key}","name":"r","offset":0}}]"#);
    assert_eq!(told.text(), want);
    let place = |offset: u32| {
        format!(
            r#""parameters":{{"shared_memory_region":"r","shared_memory_offset":{offset},"shared_memory_byte_size":8}}"#
        )
    };
    let answer = server.infer(
        "m",
        &format!(
            r#"{{"inputs":[{{"name":"x","shape":[2],"datatype":"FP32",{}}}],"outputs":[{{"name":"y",{}}}]}}"#,
            place(0),
            place(8)
        ),
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        &std::fs::read(&file).unwrap()[8..],
        [3f32, -4.0].map(f32::to_le_bytes).as_flattened()
    );
    std::fs::write(&file, [0; 4]).unwrap();
    let shrunk = server.infer(
        "m",
        &format!(r#"{{"inputs":[{{"name":"x","shape":[2],"datatype":"FP32",{}}}]}}"#, place(0)),
    );
    assert_eq!(shrunk.status, 400, "{}", shrunk.text());
    std::fs::remove_file(&file).unwrap();
    assert_eq!(post("unregister", "").status, 200);
    assert_eq!(server.send("GET /v2/systemsharedmemory/status", "", b"").text(), "[]");
}

#[test]
fn generated_answers() {
    let server = serve(|_| {});
    let body = br#"{"id":"7","x":[1,2.5],"temperature":0.5}"#;
    let whole = server.send("POST /v2/models/m/generate", "", body);
    let want = r#"{"id":"7","model_name":"m","model_version":"3","y":[2.0,5.0]}"#;
    assert_eq!((whole.status, whole.text()), (200, want));
    let stream = server.send("POST /v2/models/m/generate_stream", "", br#"{"x":4}"#);
    assert_eq!(stream.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let want = "data: {\"model_name\":\"m\",\"model_version\":\"3\",\"y\":8.0}\n\n";
    assert_eq!(stream.text(), want);
    for (model, body, status) in
        [("m", "{}", 400), ("m", "[]", 400), ("none", "{}", 404), ("off", "{}", 503)]
    {
        let answer = server.send(&format!("POST /v2/models/{model}/generate"), "", body.as_bytes());
        assert_eq!(answer.status, status, "{model} {body}: {}", answer.text());
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = serve(|_| {});
    let mut stream = std::net::TcpStream::connect(server.address).unwrap();
    let first = b"GET /v2/models/m/ready HTTP/1.1\r\nhost: t\r\n\r\n";
    let last = b"GET /v2/health/live HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n";
    stream.write_all(&[first.as_slice(), first, last].concat()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let bodies: Vec<usize> =
        ["\"ready\":true", "\"live\":true"].map(|b| text.find(b).unwrap()).into();
    assert_eq!(text.matches("200 OK").count(), 3);
    assert!(bodies[0] < bodies[1], "{text}");
}
