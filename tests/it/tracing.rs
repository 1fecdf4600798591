//! Traces: spans at a collector, across two servers, as clients and settings
//! say.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mortise_tests::admin::Part;
use mortise_tests::collector::{Collector, Span};
use mortise_tests::onnx::Message;
use mortise_tests::{Client, Deployment, Options, Response, Server, grpc, infer, onnx, wait};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(30);

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";

fn server(collector: &Collector, service: &str) -> Result<Server> {
    let config = format!("{}[http]\nsettings_control = true\n", collector.config(service));
    Server::start_with(Options { config, ..Options::default() })
}

fn ask(server: &Server, model: &str, headers: &[(&str, &str)]) -> Result<Response> {
    let body = infer::json_fp32("x", 1, &[1.0]);
    server.client().send("POST", &infer::path(model), headers, &body)
}

fn sampled(flags: &str) -> String {
    format!("00-{TRACE}-{CLIENT_SPAN}-{flags}")
}

/// Waits for spans of these names.
fn spans(collector: &Collector, names: &[&str]) -> Result<Vec<Span>> {
    wait::until("the spans", LIMIT, || {
        let spans = collector.spans();
        Ok(names.iter().all(|name| spans.iter().any(|span| span.name == *name)))
    })
    .with_context(|| format!("got {:?}", collector.spans()))?;
    Ok(collector.spans())
}

fn find<'a>(spans: &'a [Span], service: &str, name: &str) -> Result<&'a Span> {
    let found = spans.iter().find(|span| span.service == service && span.name == name);
    found.with_context(|| format!("no {name} of {service} in {spans:?}"))
}

/// Without those of the self-tests of deployments.
fn of_client(spans: &[Span]) -> Vec<Span> {
    spans.iter().filter(|span| span.trace_id == TRACE).cloned().collect()
}

#[test]
fn a_request_is_traced_through_its_stages_and_another_server() -> Result<()> {
    let collector = Collector::start()?;
    let other = server(&collector, "there")?;
    other.admin()?.deploy("sum", &Deployment::onnx(onnx::tagged_sum(5.0)))?;
    for (model, upstream) in
        [("http", Part::upstream(other.http)), ("grpc", Part::upstream_over("grpc", other.grpc))]
    {
        let here = server(&collector, model)?;
        here.admin()?.deploy("sum", &Deployment::of(upstream))?;
        let before = collector.spans().len();
        let headers = [("traceparent", &*sampled("01")), ("tracestate", "vendor=x")];
        let reply = ask(&here, "sum", &headers)?.ok()?;
        wait::until("the spans of both", LIMIT, || {
            let spans = of_client(&collector.spans()[before..]);
            Ok(["there", model].iter().all(|service| find(&spans, service, "infer sum").is_ok()))
        })?;
        let spans = of_client(&collector.spans()[before..]);

        let first = find(&spans, model, "infer sum")?;
        assert_eq!((first.parent_id.as_str(), first.status), (CLIENT_SPAN, 1));
        assert_eq!(first.attribute("mortise.version"), Some("1"));
        assert_eq!(first.attribute("network.protocol.name"), Some("http"));
        let told = format!("00-{TRACE}-{}-01", first.span_id);
        assert_eq!(reply.header("traceresponse"), Some(told.as_str()));
        let compute = find(&spans, model, "compute")?;
        for name in ["decode", "compute", "encode"] {
            let part = find(&spans, model, name)?;
            assert_eq!(part.parent_id, first.span_id, "{name}");
            ensure!(first.start_ns <= part.start_ns && part.start_ns <= part.end_ns, "{part:?}");
            // Clocks of different kinds are read one after the other.
            ensure!(part.end_ns <= first.end_ns + 1_000_000, "{part:?} {first:?}");
        }
        let second = find(&spans, "there", "infer sum")?;
        assert_eq!(second.parent_id, compute.span_id);
        assert_eq!(second.attribute("network.protocol.name"), Some(model));
    }
    Ok(())
}

#[test]
fn transforms_queues_streams_and_failures_have_their_spans() -> Result<()> {
    let collector = Collector::start()?;
    let server = server(&collector, "one")?;
    server.admin()?.deploy("sum", &Deployment::onnx(onnx::tagged_sum(1.0)))?;
    let input = json!({"name": "x", "datatype": "FP32", "shape": [-1, 1]});
    // Long enough that it does not run where its request arrives.
    let faults = Part::builtin("faults").set("input", input).set("work", 20_000_000);
    let slow = Deployment::onnx(onnx::tagged_sum(1.0)).transform(faults);
    server.admin()?.deploy("slow", &slow)?;
    ask(&server, "slow", &[])?.ok()?;
    let slow = spans(&collector, &["infer slow", "encode"])?;
    for name in ["queue", "transform", "compute"] {
        find(&slow, "one", name)?;
    }
    let root = find(&slow, "one", "infer slow")?;
    ensure!(root.parent_id.is_empty() && root.trace_id.len() == 32, "{root:?}");

    assert_eq!(ask(&server, "none", &[])?.status, 404);
    let failed = spans(&collector, &["infer none"])?;
    let failed = find(&failed, "one", "infer none")?;
    ensure!(failed.status == 2 && failed.message.contains("unknown model"), "{failed:?}");

    let shape = Message::default().int(3, 1).int(3, 1);
    let input = Message::default().text(1, "x").text(2, "FP32").append(&shape);
    let request =
        Message::default().text(1, "sum").message(5, &input).bytes(7, &1.0f32.to_le_bytes());
    let call = "/inference.GRPCInferenceService/ModelInfer";
    grpc::call(server.grpc, call, &grpc::frame(request.as_bytes()))?;
    let over_grpc = spans(&collector, &["infer sum"])?;
    let over_grpc = find(&over_grpc, "one", "infer sum")?;
    assert_eq!(over_grpc.attribute("network.protocol.name"), Some("grpc"));
    Ok(())
}

#[test]
fn the_models_of_an_ensemble_have_spans_of_their_own() -> Result<()> {
    let collector = Collector::start()?;
    let server = server(&collector, "one")?;
    let mut admin = server.admin()?;
    admin.deploy("first", &Deployment::onnx(onnx::tagged_sum(1.0)))?;
    admin.deploy("second", &Deployment::onnx(onnx::tagged_sum(10.0)))?;
    let steps = "
        [[step]]
        model = \"first\"
        outputs = { y = \"middle\" }
        [[step]]
        model = \"second\"
        inputs = { x = \"middle\" }
    ";
    let ensemble = Deployment::of(Part::uploaded("ensemble", steps.into()));
    admin.deploy("both", &ensemble)?;
    ask(&server, "both", &[("traceparent", &sampled("01"))])?.ok()?;
    spans(&collector, &["step first", "step second"])?;
    let spans = of_client(&collector.spans());
    let compute = find(&spans, "one", "compute")?;
    for model in ["first", "second"] {
        let step = find(&spans, "one", &format!("step {model}"))?;
        assert_eq!(step.parent_id, compute.span_id, "{step:?}");
        assert_eq!(step.attribute("mortise.endpoint"), Some(model));
    }

    let before = collector.spans().len();
    let input = json!({"name": "x", "datatype": "FP32", "shape": [-1, 1]});
    let faults = Part::builtin("faults").set("input", input).set("error_rate", 1.0);
    admin.deploy("second", &Deployment::onnx(onnx::tagged_sum(10.0)).transform(faults))?;
    ensure!(ask(&server, "both", &[("traceparent", &sampled("01"))])?.status >= 400);
    wait::until("the spans of the failure", LIMIT, || {
        Ok(collector.spans()[before..].iter().any(|span| span.name == "step second"))
    })?;
    let spans = of_client(&collector.spans()[before..]);
    let compute = find(&spans, "one", "compute")?;
    assert_eq!(compute.parent_id, find(&spans, "one", "infer both")?.span_id);
    for (model, status) in [("first", 0), ("second", 2)] {
        let step = find(&spans, "one", &format!("step {model}"))?;
        assert_eq!((step.parent_id.as_str(), step.status), (&*compute.span_id, status), "{step:?}");
        assert_eq!(step.message.is_empty(), status == 0, "{step:?}");
    }
    Ok(())
}

#[test]
fn clients_and_settings_decide_what_is_traced() -> Result<()> {
    let collector = Collector::start()?;
    let server = server(&collector, "one")?;
    server.admin()?.deploy("sum", &Deployment::onnx(onnx::tagged_sum(1.0)))?;
    let mut client = server.client();
    let mut set = |name: &str, value: &str| -> Result<Response> {
        client.post_json("/v2/trace/setting", &json!({ name: value }))
    };
    let is_traced = |flags: Option<&str>| -> Result<bool> {
        let context = flags.map(sampled);
        let headers: Vec<_> = context.iter().map(|text| ("traceparent", text.as_str())).collect();
        let reply = ask(&server, "sum", &headers)?.ok()?;
        Ok(reply.header("traceresponse").is_some())
    };
    ensure!(is_traced(None)? && is_traced(Some("01"))? && !is_traced(Some("00"))?);
    let settings = server.client().get("/v2/trace/setting")?.ok()?.json()?;
    assert_eq!(settings["trace_level"], json!(["TIMESTAMPS"]));
    assert_eq!(
        (&settings["trace_mode"], &settings["trace_rate"]),
        (&json!("opentelemetry"), &json!("1"))
    );
    set("trace_rate", "1000000")?.ok()?;
    ensure!(!is_traced(None)? && is_traced(Some("01"))?);
    let told = set("trace_level", "OFF")?.ok()?.json()?;
    assert_eq!(told["trace_level"], json!(["OFF"]));
    ensure!(!is_traced(Some("01"))?);
    set("trace_level", "TIMESTAMPS")?.ok()?;
    ensure!(is_traced(Some("01"))?);
    // What waits goes out when the server ends, however soon that is.
    let mut server = server;
    server.terminate()?;
    wait::until("the end", LIMIT, || Ok(!server.is_running()?))?;
    assert_eq!(collector.spans().iter().filter(|span| span.name == "infer sum").count(), 4);
    Ok(())
}

#[test]
fn a_collector_that_is_away_harms_nobody_and_is_counted() -> Result<()> {
    let config = "[tracing]\nendpoint = \"http://127.0.0.1:1/v1/traces\"\nsample_every = 1\n";
    let server = Server::start_with(Options { config: config.to_owned(), ..Options::default() })?;
    server.admin()?.deploy("sum", &Deployment::onnx(onnx::tagged_sum(1.0)))?;
    ask(&server, "sum", &[])?.ok()?;
    wait::until("the failure to be counted", LIMIT, || {
        let page = Client::new(server.metrics).get("/metrics")?.text_whole();
        let failed =
            page.lines().find_map(|line| line.strip_prefix("mortise_trace_spans_failed_total "));
        Ok(failed.is_some_and(|count| count != "0"))
    })?;
    ensure!(server.log().contains("traces cannot be exported"), "{}", server.log());
    ask(&server, "sum", &[])?.ok()?;
    Ok(())
}
