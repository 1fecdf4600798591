//! One gRPC call over HTTP/2, for checks that need no generated code.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use hyper_util::rt::TokioExecutor;

/// A message with the five bytes that gRPC puts before it.
pub fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0], length.to_be_bytes().as_slice(), message].concat()
}

/// Calls `path` with one framed message; returns the framed answer.
///
/// # Errors
/// The server cannot be reached, or the call's `grpc-status` is not 0.
pub fn call(address: SocketAddr, path: &str, framed: &[u8]) -> Result<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await?;
        let (mut client, connection) = h2::client::handshake(stream).await?;
        hyper::rt::Executor::execute(&TokioExecutor::new(), async {
            // How it ends shows in the call.
            let _ = connection.await;
        });
        let request = hyper::Request::post(format!("http://{address}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let (response, mut body) = client.send_request(request, false)?;
        body.send_data(framed.to_vec().into(), true)?;
        let response = response.await?;
        ensure!(response.status() == 200, "HTTP status {}", response.status());
        let early = response.headers().get("grpc-status").cloned();
        let mut answer = response.into_body();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.data().await {
            let chunk = chunk?;
            bytes.extend_from_slice(&chunk);
            answer.flow_control().release_capacity(chunk.len())?;
        }
        let trailers = answer.trailers().await?;
        let late = trailers.and_then(|trailers| trailers.get("grpc-status").cloned());
        match early.or(late).context("no grpc-status")? {
            status if status == "0" => Ok(bytes),
            status => bail!("grpc-status {status:?}"),
        }
    })
}
