//! The data plane over real sockets, with models that compute nothing much.

use super::*;
use mortise_host::{PluginHealth, PluginStats};
use mortise_serve::{CustomStage, Revision, RevisionParts, ServeConfig, Stage, StageRun};
use mortise_types::{DType, Error, RunControl, Signature, Tensor, TensorSpec};
use std::io::{Read, Write};
use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;

/// Doubles `x`; in quarantine, or slower than any deadline, when told.
#[derive(Default)]
struct Doubler {
    is_sick: bool,
    is_slow: bool,
}

impl CustomStage for Doubler {
    #[expect(clippy::while_immutable_condition, reason = "only the deadline ends it")]
    fn call(&self, inputs: Vec<Tensor>, control: &RunControl) -> Result<Vec<Tensor>> {
        while self.is_slow {
            control.check()?;
        }
        let x = inputs[0].as_slice::<f32>()?;
        Ok(vec![Tensor::from_vec(inputs[0].shape(), x.iter().map(|x| x * 2.0).collect())?])
    }

    fn health(&self) -> PluginHealth {
        match self.is_sick {
            false => PluginHealth::Ready,
            true => PluginHealth::Quarantined {
                reason: "it trapped".into(),
                retry_in: Duration::from_secs(1),
            },
        }
    }

    fn stats(&self) -> PluginStats {
        PluginStats::default()
    }
}

fn revision(name: &str, model: Doubler) -> Arc<Revision> {
    let stage = Stage {
        name: "doubler".into(),
        digest: "sha256:d".into(),
        signature: Signature {
            inputs: vec![TensorSpec::new("x", DType::F32, &[-1])],
            outputs: vec![TensorSpec::new("y", DType::F32, &[-1])],
        },
        run: StageRun::Custom(Arc::new(model)),
    };
    let parts = RevisionParts {
        endpoint: name.into(),
        number: 7,
        version: 3,
        options: mortise_serve::ServingOptions::default(),
        stages: vec![stage],
        created: SystemTime::UNIX_EPOCH,
    };
    Arc::new(Revision::new(parts).unwrap())
}

struct FakeControl;

impl Control for FakeControl {
    fn is_ready(&self) -> bool {
        true
    }

    fn load(&self, name: &str) -> Result<()> {
        match name {
            "m" => Ok(()),
            _ => Err(Error::not_found(format!("nothing was deployed as \"{name}\""))),
        }
    }

    fn unload(&self, _: &str) -> Result<()> {
        Ok(())
    }
}

/// A running data plane; stops when dropped.
struct Server {
    address: std::net::SocketAddr,
    plane: Arc<DataPlane>,
    _stop: oneshot::Sender<()>,
    _runtime: tokio::runtime::Runtime,
}

fn serve(change: impl FnOnce(&mut HttpSettings)) -> Server {
    let mut settings = HttpSettings {
        address: ([127, 0, 0, 1], 0).into(),
        max_body_bytes: 4096,
        request_timeout: Duration::from_secs(20),
        header_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(60),
        max_header_bytes: 32 << 10,
        max_buffered_body_bytes: 1 << 20,
        max_connections: 64,
        drain_delay: Duration::ZERO,
        repository_control: false,
    };
    change(&mut settings);
    let config = ServeConfig { compute_threads: 1, plugin_threads: 2, ..ServeConfig::default() };
    let registry = Registry::new(config).unwrap();
    registry.publish("m", revision("m", Doubler::default()));
    registry.publish("sick", revision("sick", Doubler { is_sick: true, ..Doubler::default() }));
    registry.publish("slow", revision("slow", Doubler { is_slow: true, ..Doubler::default() }));
    registry.withdraw("off", "it was unloaded");
    let plane = Arc::new(DataPlane {
        registry,
        settings,
        limits: WireLimits::default(),
        observer: Arc::new(Observer::new()),
        keys: None,
        body_bytes: BodyBudget::new(1 << 20),
        control: Arc::new(FakeControl),
    });
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = listen::serve(listener, None, plane.clone(), async move { drop(stopped.await) });
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
    let want = r#""extensions":["binary_tensor_data","classification","model_configuration","model_repository"]"#;
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
    let server = serve(|settings| settings.repository_control = true);
    let post = |path: &str, body: &str| server.send(&format!("POST {path}"), "", body.as_bytes());
    assert_eq!(post("/v2/repository/models/m/load", "{}").status, 200);
    let unload = r#"{"parameters":{"unload_dependents":false}}"#;
    assert_eq!(post("/v2/repository/models/m/unload", unload).status, 200);
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
