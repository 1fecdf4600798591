//! A collector of OpenTelemetry in a test: takes OTLP over HTTP and decodes the
//! spans, without a line of what encoded them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};

/// A running collector. It ends with the process.
pub struct Collector {
    pub address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
}

/// A span, as far as tests look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// `service.name` of the resource.
    pub service: String,
    /// In hexadecimal, as in headers.
    pub trace_id: String,
    pub span_id: String,
    /// Empty for the first of a trace.
    pub parent_id: String,
    pub name: String,
    /// Nanoseconds since 1970.
    pub start_ns: u64,
    pub end_ns: u64,
    /// Names and values; numbers as text.
    pub attributes: Vec<(String, String)>,
    /// 1 for success, 2 for an error.
    pub status: u64,
    pub message: String,
}

impl Span {
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Collector {
    /// # Errors
    /// When no port is free.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let spans: Arc<Mutex<Vec<Span>>> = Arc::default();
        let sink = spans.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let sink = sink.clone();
                std::thread::spawn(move || serve(stream, &sink));
            }
        });
        Ok(Self { address, spans })
    }

    /// Lines of `mortise.toml` that send every trace here.
    pub fn config(&self, service: &str) -> String {
        let address = self.address;
        format!(
            "[tracing]\nendpoint = \"http://{address}/v1/traces\"\nsample_every = 1\n\
             service_name = \"{service}\"\n"
        )
    }

    /// What has come so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Answers one connection until it breaks; what is no export ends it, so that
/// its spans are missing in the test.
fn serve(mut stream: TcpStream, spans: &Mutex<Vec<Span>>) -> Result<()> {
    loop {
        let body = read_request(&mut stream)?;
        let decoded = export(&body)?;
        spans.lock().unwrap_or_else(PoisonError::into_inner).extend(decoded);
        stream.write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n",
        )?;
    }
}

fn read_request(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head)?.to_ascii_lowercase();
    if !head.starts_with("post /v1/traces ") || !head.contains("application/x-protobuf") {
        bail!("no export: {head}");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.context("no length")?.trim().parse()?];
    stream.read_exact(&mut body)?;
    Ok(body)
}

/// `ExportTraceServiceRequest`
fn export(message: &[u8]) -> Result<Vec<Span>> {
    let mut spans = Vec::new();
    for resource in submessages(message, 1)? {
        let mut service = String::new();
        for about in submessages(resource, 1)? {
            let found = attributes(about, 1)?.into_iter().find(|(name, _)| name == "service.name");
            service = found.map(|(_, value)| value).unwrap_or_default();
        }
        for scope in submessages(resource, 2)? {
            for span in submessages(scope, 2)? {
                spans.push(Span { service: service.clone(), ..read_span(span)? });
            }
        }
    }
    Ok(spans)
}

fn read_span(message: &[u8]) -> Result<Span> {
    let mut span = Span { attributes: attributes(message, 9)?, ..Span::default() };
    for (field, value) in fields(message)? {
        match (field, value) {
            (1, Value::Bytes(id)) => span.trace_id = hex(id),
            (2, Value::Bytes(id)) => span.span_id = hex(id),
            (4, Value::Bytes(id)) => span.parent_id = hex(id),
            (5, Value::Bytes(name)) => span.name = String::from_utf8(name.to_vec())?,
            (7, Value::Number(time)) => span.start_ns = time,
            (8, Value::Number(time)) => span.end_ns = time,
            (15, Value::Bytes(status)) => {
                for (field, value) in fields(status)? {
                    match (field, value) {
                        (2, Value::Bytes(text)) => {
                            span.message = String::from_utf8(text.to_vec())?;
                        }
                        (3, Value::Number(code)) => span.status = code,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(span)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `KeyValue`s whose values are texts or numbers.
fn attributes(message: &[u8], field: u64) -> Result<Vec<(String, String)>> {
    let mut attributes = Vec::new();
    for pair in submessages(message, field)? {
        let (mut name, mut text) = (String::new(), String::new());
        for (field, value) in fields(pair)? {
            match (field, value) {
                (1, Value::Bytes(key)) => name = String::from_utf8(key.to_vec())?,
                (2, Value::Bytes(any)) => match fields(any)?.first() {
                    Some((1, Value::Bytes(value))) => text = String::from_utf8(value.to_vec())?,
                    Some((_, Value::Number(value))) => text = value.to_string(),
                    _ => {}
                },
                _ => {}
            }
        }
        attributes.push((name, text));
    }
    Ok(attributes)
}

fn submessages(message: &[u8], wanted: u64) -> Result<Vec<&[u8]>> {
    let found = fields(message)?.into_iter().filter_map(|(field, value)| match value {
        Value::Bytes(bytes) if field == wanted => Some(bytes),
        _ => None,
    });
    Ok(found.collect())
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a protobuf message with their numbers.
fn fields(mut message: &[u8]) -> Result<Vec<(u64, Value<'_>)>> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut message)?),
            1 => Value::Number(u64::from_le_bytes(take(&mut message, 8)?.try_into()?)),
            2 => {
                let length = usize::try_from(varint(&mut message)?)?;
                Value::Bytes(take(&mut message, length)?)
            }
            5 => Value::Number(u32::from_le_bytes(take(&mut message, 4)?.try_into()?).into()),
            other => bail!("wire type {other}"),
        };
        fields.push((key >> 3, value));
    }
    Ok(fields)
}

fn varint(message: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(message, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a number is too long")
}

fn take<'a>(message: &mut &'a [u8], bytes: usize) -> Result<&'a [u8]> {
    let (taken, rest) = message.split_at_checked(bytes).context("a message ends early")?;
    *message = rest;
    Ok(taken)
}
