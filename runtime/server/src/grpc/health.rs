//! `grpc.health.v1`: the server, its services, and each model under its name.

use super::{INFERENCE, REPOSITORY, Service};
use crate::app::Shutdown;
use crate::auth::{Client, Denied};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// How often a watched service is looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

impl Service {
    /// Anybody may ask for the server's health; which models there are is for
    /// clients.
    fn permit(&self, request: &Request<HealthCheckRequest>) -> Result<(), Status> {
        let is_client = request.extensions().get::<Client>().is_some();
        match request.get_ref().service.as_str() {
            "" | INFERENCE | REPOSITORY => Ok(()),
            _ if is_client || self.plane.keys.is_none() => Ok(()),
            _ => Err(Status::unauthenticated(Denied::NoKey.message())),
        }
    }

    /// `None` for an unknown service.
    fn health(&self, name: &str) -> Option<ServingStatus> {
        let is_serving = match name {
            "" | INFERENCE | REPOSITORY => self.plane.control.is_ready(),
            model => {
                self.plane.control.is_ready() && self.plane.not_ready(model, None).ok()?.is_none()
            }
        };
        Some(if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing })
    }
}

#[tonic::async_trait]
impl Health for Service {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.permit(&request)?;
        let name = request.into_inner().service;
        let status =
            self.health(&name).ok_or_else(|| Status::not_found("no such service or model"))?;
        Ok(Response::new(reply(Some(status))))
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.permit(&request)?;
        let (sender, receiver) = mpsc::channel(1);
        let watch = watch(self.clone(), request.into_inner().service, sender);
        tokio::spawn(until_stopped(watch, self.stopping.clone()));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Sends the status now and whenever it is another one.
async fn watch(
    service: Service,
    name: String,
    sender: mpsc::Sender<Result<HealthCheckResponse, Status>>,
) {
    let mut last = None;
    loop {
        let status = service.health(&name);
        if last != Some(status) {
            last = Some(status);
            if sender.send(Ok(reply(status))).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
            () = sender.closed() => return,
        }
    }
}

async fn until_stopped(watch: impl Future<Output = ()>, mut stopping: Shutdown) {
    tokio::select! {
        () = watch => {}
        () = stopping.requested() => {}
    }
}

/// The protocol's number for a status; an unknown service has its own.
fn reply(status: Option<ServingStatus>) -> HealthCheckResponse {
    const SERVICE_UNKNOWN: i32 = 3;
    HealthCheckResponse { status: status.map_or(SERVICE_UNKNOWN, |status| status as i32) }
}
