//! The model repository under MLServer's name for it.

use super::Service;
use crate::status::grpc_status;
use mortise_grpc_proto::inference::model_repository as pb;
use pb::model_repository_service_server::ModelRepositoryService;
use pb::repository_index_response::ModelIndex;
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl ModelRepositoryService for Service {
    async fn repository_index(
        &self,
        request: Request<pb::RepositoryIndexRequest>,
    ) -> Result<Response<pb::RepositoryIndexResponse>, Status> {
        let entries = self.plane.index(request.into_inner().ready);
        let models = entries.into_iter().map(|entry| ModelIndex {
            name: entry.name,
            version: entry.version,
            state: entry.state.to_owned(),
            reason: entry.reason,
        });
        Ok(Response::new(pb::RepositoryIndexResponse { models: models.collect() }))
    }

    async fn repository_model_load(
        &self,
        request: Request<pb::RepositoryModelLoadRequest>,
    ) -> Result<Response<pb::RepositoryModelLoadResponse>, Status> {
        let name = request.into_inner().model_name;
        let loaded = self.plane.repository(&name, |control, name| control.load(name)).await;
        loaded.map_err(|error| grpc_status(&error))?;
        Ok(Response::new(pb::RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<pb::RepositoryModelUnloadRequest>,
    ) -> Result<Response<pb::RepositoryModelUnloadResponse>, Status> {
        let name = request.into_inner().model_name;
        let unloaded = self.plane.repository(&name, |control, name| control.unload(name)).await;
        unloaded.map_err(|error| grpc_status(&error))?;
        Ok(Response::new(pb::RepositoryModelUnloadResponse {}))
    }
}
