//! HTTP/1.1 as a client needs it here: requests as bytes, responses parsed from
//! bytes, and one blocking keep-alive connection. Small on purpose, so that the
//! load generator costs little and the tests can send malformed requests.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// A parsed response.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// # Errors
    /// The body is not JSON; the error shows its beginning.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("status {}, body {:?}", self.status, self.text()))
    }

    /// The body as text, shortened.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body[..self.body.len().min(2_000)]).into_owned()
    }

    /// The whole body as text.
    pub fn text_whole(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// # Errors
    /// The status is not 2xx; the error carries the body.
    pub fn ok(self) -> Result<Self> {
        ensure!((200..300).contains(&self.status), "status {}: {}", self.status, self.text());
        Ok(self)
    }
}

/// The bytes of one request with a `content-length`.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    if !body.is_empty() || method == "POST" {
        bytes.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

/// Where a response in a buffer ends, and what it says. The body is
/// `buffer[head_bytes..total_bytes]`.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    pub status: u16,
    pub head_bytes: usize,
    pub total_bytes: usize,
}

/// Finds the first response in `buffer`; `None` while it is incomplete.
///
/// # Errors
/// Not HTTP, or framed otherwise than by `content-length`.
pub fn frame(buffer: &[u8]) -> Result<Option<Frame>> {
    let Some(head) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&buffer[..head]).context("the head is not UTF-8")?;
    let status = status_of(text)?;
    let head_bytes = head + 4;
    let total_bytes = head_bytes + content_length(text)?;
    Ok((buffer.len() >= total_bytes).then_some(Frame { status, head_bytes, total_bytes }))
}

fn status_of(head: &str) -> Result<u16> {
    head.strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .with_context(|| format!("not an HTTP/1.1 status line: {head:.60}"))
}

fn content_length(head: &str) -> Result<usize> {
    for line in head.lines().skip(1) {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            return value.trim().parse().context("content-length is not a number");
        }
    }
    bail!("a response without content-length: {head}")
}

fn headers(head: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(head);
    let lines = text.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect()
}

/// A blocking client that keeps one connection and opens a new one when the
/// server closed it.
pub struct Client {
    address: SocketAddr,
    timeout: Duration,
    headers: Vec<(String, String)>,
    stream: Option<TcpStream>,
}

impl Client {
    /// A client that waits at most 60 s for each answer.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, timeout: Duration::from_secs(60), headers: Vec::new(), stream: None }
    }

    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sends this header with every request.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// # Errors
    /// The server cannot be reached or closes the connection.
    pub fn get(&mut self, path: &str) -> Result<Response> {
        self.send("GET", path, &[], b"")
    }

    /// # Errors
    /// As [`Client::get`].
    pub fn post(&mut self, path: &str, body: &[u8]) -> Result<Response> {
        self.send("POST", path, &[], body)
    }

    /// # Errors
    /// As [`Client::get`].
    pub fn post_json(&mut self, path: &str, body: &Value) -> Result<Response> {
        let body = serde_json::to_vec(body)?;
        self.send("POST", path, &[("content-type", "application/json")], &body)
    }

    /// # Errors
    /// As [`Client::get`].
    pub fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response> {
        let own = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let all: Vec<_> = own.chain(headers.iter().copied()).collect();
        let bytes = request(method, path, &all, body);
        self.exchange(&bytes).with_context(|| format!("{method} {path}"))
    }

    /// Posts JSON and shows `on_line` each line of the answer as it arrives.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post_for_lines(
        &mut self,
        path: &str,
        body: &Value,
        on_line: &mut dyn FnMut(&str),
    ) -> Result<Response> {
        let own = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let bytes = request("POST", path, &own.collect::<Vec<_>>(), &serde_json::to_vec(body)?);
        let mut shown = 0;
        let response = self.exchange_streaming(&bytes, &mut |body| {
            while let Some(end) = body[shown..].iter().position(|byte| *byte == b'\n') {
                on_line(&String::from_utf8_lossy(&body[shown..shown + end]));
                shown += end + 1;
            }
        });
        response.with_context(|| format!("POST {path}"))
    }

    /// Opens the connection if there is none. Requests do so themselves.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub fn connect(&mut self) -> Result<()> {
        if self.stream.is_none() {
            let stream = TcpStream::connect_timeout(&self.address, self.timeout)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(self.timeout))?;
            stream.set_write_timeout(Some(self.timeout))?;
            self.stream = Some(stream);
        }
        Ok(())
    }

    /// Sends bytes as they are and reads one response.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn exchange(&mut self, bytes: &[u8]) -> Result<Response> {
        self.exchange_streaming(bytes, &mut |_| {})
    }

    /// As [`Client::exchange`]; `on_body` sees a chunked body grow.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn exchange_streaming(
        &mut self,
        bytes: &[u8],
        on_body: &mut dyn FnMut(&[u8]),
    ) -> Result<Response> {
        self.connect()?;
        let stream = self.stream.as_mut().context("a stream was just opened")?;
        // A server may answer, and stop reading, before it has the whole body.
        let written = stream.write_all(bytes);
        let result = read_response(stream, on_body);
        match &result {
            Ok(response) if written.is_ok() && response.header("connection") != Some("close") => {}
            _ => self.stream = None,
        }
        result.or_else(|error| written.map_err(Into::into).and(Err(error)))
    }
}

fn read_response(stream: &mut TcpStream, on_body: &mut dyn FnMut(&[u8])) -> Result<Response> {
    let mut buffer = Vec::new();
    let mut chunk = [0; 64 * 1024];
    loop {
        if let Some(response) = complete(&buffer, on_body)? {
            return Ok(response);
        }
        let count = stream.read(&mut chunk).context("reading the response")?;
        ensure!(count > 0, "the server closed the connection after {} bytes", buffer.len());
        buffer.extend_from_slice(&chunk[..count]);
    }
}

/// The response in the buffer, once it is whole. A chunked body is shown to
/// `on_body` each time, as far as it is there.
fn complete(buffer: &[u8], on_body: &mut dyn FnMut(&[u8])) -> Result<Option<Response>> {
    let Some(head) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let headers = headers(&buffer[..head]);
    let chunked =
        headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    if chunked {
        let (body, whole) = dechunk(&buffer[head + 4..])?;
        on_body(&body);
        let status = status_of(&String::from_utf8_lossy(&buffer[..head]))?;
        return Ok(whole.then_some(Response { status, headers, body }));
    }
    Ok(frame(buffer)?.map(|frame| Response {
        status: frame.status,
        headers,
        body: buffer[frame.head_bytes..frame.total_bytes].to_vec(),
    }))
}

/// The chunks that are there, joined, and whether the last one is among them.
fn dechunk(mut raw: &[u8]) -> Result<(Vec<u8>, bool)> {
    let mut body = Vec::new();
    loop {
        let Some(line) = raw.windows(2).position(|window| window == b"\r\n") else {
            return Ok((body, false));
        };
        let size = std::str::from_utf8(&raw[..line]).context("a chunk size is not UTF-8")?;
        let size = usize::from_str_radix(size.trim(), 16).context("a chunk size is not hex")?;
        let Some(rest) = raw.get(line + 2..).filter(|rest| rest.len() >= size + 2) else {
            return Ok((body, false));
        };
        if size == 0 {
            return Ok((body, true));
        }
        body.extend_from_slice(&rest[..size]);
        raw = &rest[size + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_frame(bytes: &[u8], expected: Option<(u16, usize)>) {
        let found = frame(bytes).unwrap().map(|frame| (frame.status, frame.total_bytes));
        assert_eq!(found, expected, "{:?}", String::from_utf8_lossy(bytes));
    }

    #[test]
    fn responses_are_framed() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        let whole_bytes = whole.len();
        check_frame(whole, Some((200, whole_bytes)));
        check_frame(&whole[..whole_bytes - 1], None);
        check_frame(&whole[..20], None);
        let empty = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\nHTTP";
        check_frame(empty, Some((404, empty.len() - 4)));
        assert!(frame(b"SSH-2.0\r\n\r\n").is_err());
    }

    #[test]
    fn chunks_are_joined() {
        let cases: [(&[u8], &str, bool); 4] = [
            (b"", "", false),
            (b"2\r\nhi\r\n", "hi", false),
            (b"2\r\nhi\r\n3\r\n th", "hi", false),
            (b"2\r\nhi\r\nA\r\n there you\r\n0\r\n\r\n", "hi there you", true),
        ];
        for (raw, text, whole) in cases {
            assert_eq!(dechunk(raw).unwrap(), (text.as_bytes().to_vec(), whole), "{text:?}");
        }
    }
}
