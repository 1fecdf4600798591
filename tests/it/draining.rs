//! `kill -TERM` under load: clients that go to a second server when told to
//! lose nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mortise_tests::{Client, Deployment, Options, Response, Server, infer, onnx, wait};

const CLIENTS: usize = 16;

fn server() -> Result<Server> {
    let config = "[server]\ndrain_delay_ms = 300\nshutdown_timeout_ms = 10000\n".to_owned();
    let server = Server::start_with(Options { config, ..Options::default() })?;
    server.admin()?.deploy("sum", &Deployment::onnx(onnx::tagged_sum(7.0)))?;
    Ok(server)
}

/// Sends requests one after the other, on one connection while it lasts. When
/// told to leave it, it tries the other address first.
struct Customer {
    addresses: [SocketAddr; 2],
    client: Option<Client>,
    answered: usize,
}

impl Customer {
    fn ask(&mut self) -> Result<()> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => self.connect()?,
        };
        let response = client.post(&infer::path("sum"), &infer::json_fp32("x", 1, &[1.0]))?;
        ensure!(response.status == 200, "status {}: {}", response.status, response.text());
        ensure!(response.text().contains("[8.0]"), "{}", response.text());
        self.answered += 1;
        if says_close(&response) {
            self.addresses.reverse();
        } else {
            self.client = Some(client);
        }
        Ok(())
    }

    fn connect(&self) -> Result<Client> {
        let open = |address: &SocketAddr| {
            let mut client = Client::new(*address);
            client.connect().is_ok().then_some(client)
        };
        self.addresses.iter().find_map(open).context("neither server takes a connection")
    }
}

fn says_close(response: &Response) -> bool {
    response.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
}

#[test]
fn sigterm_under_load_fails_no_request() -> Result<()> {
    let (mut first, second) = (server()?, server()?);
    let addresses = [first.http, second.http];
    let stop = Arc::new(AtomicBool::new(false));
    let customers: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || -> Result<usize> {
                let mut customer = Customer { addresses, client: None, answered: 0 };
                while !stop.load(Ordering::Relaxed) {
                    customer.ask()?;
                }
                Ok(customer.answered)
            })
        })
        .collect();
    wait::pass(Duration::from_millis(500));
    first.terminate()?;
    wait::until("the first server to end", Duration::from_secs(20), || Ok(!first.is_running()?))?;
    wait::pass(Duration::from_millis(300));
    stop.store(true, Ordering::Relaxed);
    let mut answered = 0;
    for customer in customers {
        answered += customer.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
    }
    assert!(answered > 100, "only {answered} requests were made");
    Ok(())
}

#[test]
fn readiness_turns_false_before_the_listener_closes() -> Result<()> {
    let config = "[server]\ndrain_delay_ms = 2000\n".to_owned();
    let mut server = Server::start_with(Options { config, ..Options::default() })?;
    let mut idle = server.client();
    assert_eq!(idle.get("/v2/health/ready")?.status, 200);
    server.terminate()?;
    let told = wait::until("readiness to turn false", Duration::from_secs(2), || {
        Ok(server.client().get("/v2/health/ready")?.status == 503)
    });
    told?;
    let live = server.client().get("/v2/health/live")?;
    assert_eq!(live.status, 200);
    assert!(says_close(&live), "{:?}", live.headers);
    // An idle connection does not hold the server beyond the delay.
    let began = Instant::now();
    wait::until("the server to end", Duration::from_secs(20), || Ok(!server.is_running()?))?;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    Ok(())
}
