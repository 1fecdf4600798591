//! `inference.GRPCInferenceService`.

use super::stream::Answers;
use super::{Service, settings, statistics};
use crate::plane::models::{
    SERVER_NAME, SERVER_VERSION, check_repository_parameters, config_parameters, platform,
};
use crate::plane::regions::RegionStatus;
use crate::status::grpc_status;
use mortise_grpc_proto::inference as pb;
use mortise_grpc_proto::{ModelInferRequest, ModelInferResponse, encode_config};
use mortise_types::{Error, TensorSpec};
use mortise_wire::ModelConfig;
use pb::grpc_inference_service_server::GrpcInferenceService;
use pb::model_metadata_response::TensorMetadata;
use std::collections::BTreeMap;
use tonic::{Request, Response, Status, Streaming};

type Reply<T> = Result<Response<T>, Status>;

/// Empty means that the request does not say.
fn given(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn status(error: Error) -> Status {
    grpc_status(&error)
}

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    async fn server_live(
        &self,
        _: Request<pb::ServerLiveRequest>,
    ) -> Reply<pb::ServerLiveResponse> {
        Ok(Response::new(pb::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<pb::ServerReadyRequest>,
    ) -> Reply<pb::ServerReadyResponse> {
        Ok(Response::new(pb::ServerReadyResponse { ready: self.plane.control.is_ready() }))
    }

    /// A model that is not there is not ready.
    async fn model_ready(
        &self,
        request: Request<pb::ModelReadyRequest>,
    ) -> Reply<pb::ModelReadyResponse> {
        let asked = request.into_inner();
        let not_ready = self.plane.not_ready(&asked.name, given(&asked.version));
        Ok(Response::new(pb::ModelReadyResponse { ready: matches!(not_ready, Ok(None)) }))
    }

    async fn server_metadata(
        &self,
        _: Request<pb::ServerMetadataRequest>,
    ) -> Reply<pb::ServerMetadataResponse> {
        let extensions = self.plane.extensions().into_iter().map(str::to_owned).collect();
        Ok(Response::new(pb::ServerMetadataResponse {
            name: SERVER_NAME.to_owned(),
            version: SERVER_VERSION.to_owned(),
            extensions,
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<pb::ModelMetadataRequest>,
    ) -> Reply<pb::ModelMetadataResponse> {
        let asked = request.into_inner();
        let live = self.plane.live(&asked.name, given(&asked.version)).map_err(status)?;
        let signature = live.signature();
        let versions = match given(&asked.version) {
            Some(_) => vec![live.version()],
            None => self.plane.versions(&asked.name),
        };
        Ok(Response::new(pb::ModelMetadataResponse {
            name: asked.name,
            versions: versions.iter().map(u64::to_string).collect(),
            platform: platform(&live).to_owned(),
            inputs: signature.inputs.iter().map(tensor_metadata).collect(),
            outputs: signature.outputs.iter().map(tensor_metadata).collect(),
        }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Reply<ModelInferResponse> {
        let (metadata, extensions, message) = request.into_parts();
        let caller = self.caller(metadata, &extensions);
        self.infer(message, &caller).await.map_err(status)
    }

    type ModelStreamInferStream = Answers;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Reply<Answers> {
        let (metadata, extensions, requests) = request.into_parts();
        let caller = self.caller(metadata, &extensions);
        Ok(Response::new(Answers::of(self.clone(), caller, requests)))
    }

    async fn model_config(
        &self,
        request: Request<pb::ModelConfigRequest>,
    ) -> Reply<pb::ModelConfigResponse> {
        let asked = request.into_inner();
        let live = self.plane.live(&asked.name, given(&asked.version)).map_err(status)?;
        let config = encode_config(&ModelConfig {
            name: &asked.name,
            version: live.version(),
            platform: platform(&live),
            signature: live.signature(),
            parameters: &config_parameters(&live),
        });
        Ok(Response::new(pb::ModelConfigResponse { config: Some(config) }))
    }

    async fn model_statistics(
        &self,
        request: Request<pb::ModelStatisticsRequest>,
    ) -> Reply<pb::ModelStatisticsResponse> {
        let asked = request.into_inner();
        let all = self.plane.statistics(given(&asked.name), given(&asked.version));
        let model_stats = all.map_err(status)?.iter().map(statistics::message).collect();
        Ok(Response::new(pb::ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(
        &self,
        request: Request<pb::RepositoryIndexRequest>,
    ) -> Reply<pb::RepositoryIndexResponse> {
        let entries = self.plane.index(request.into_inner().ready);
        let models = entries.into_iter().map(|entry| pb::repository_index_response::ModelIndex {
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
    ) -> Reply<pb::RepositoryModelLoadResponse> {
        let asked = request.into_inner();
        check_parameters(&asked.parameters)?;
        let loaded =
            self.plane.repository(&asked.model_name, |control, name| control.load(name)).await;
        loaded.map_err(status)?;
        Ok(Response::new(pb::RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<pb::RepositoryModelUnloadRequest>,
    ) -> Reply<pb::RepositoryModelUnloadResponse> {
        let asked = request.into_inner();
        check_parameters(&asked.parameters)?;
        let unloaded =
            self.plane.repository(&asked.model_name, |control, name| control.unload(name)).await;
        unloaded.map_err(status)?;
        Ok(Response::new(pb::RepositoryModelUnloadResponse {}))
    }

    async fn system_shared_memory_status(
        &self,
        request: Request<pb::SystemSharedMemoryStatusRequest>,
    ) -> Reply<pb::SystemSharedMemoryStatusResponse> {
        let name = request.into_inner().name;
        let regions = self.plane.regions.status(given(&name)).map_err(status)?;
        let regions =
            regions.into_iter().map(|region| (region.name.clone(), region_status(region)));
        Ok(Response::new(pb::SystemSharedMemoryStatusResponse { regions: regions.collect() }))
    }

    async fn system_shared_memory_register(
        &self,
        request: Request<pb::SystemSharedMemoryRegisterRequest>,
    ) -> Reply<pb::SystemSharedMemoryRegisterResponse> {
        let pb::SystemSharedMemoryRegisterRequest { name, key, offset, byte_size } =
            request.into_inner();
        let region = RegionStatus { name, key, offset, byte_size };
        self.plane.regions.register(region).map_err(status)?;
        Ok(Response::new(pb::SystemSharedMemoryRegisterResponse {}))
    }

    async fn system_shared_memory_unregister(
        &self,
        request: Request<pb::SystemSharedMemoryUnregisterRequest>,
    ) -> Reply<pb::SystemSharedMemoryUnregisterResponse> {
        let name = request.into_inner().name;
        self.plane.regions.unregister(given(&name)).map_err(status)?;
        Ok(Response::new(pb::SystemSharedMemoryUnregisterResponse {}))
    }

    async fn cuda_shared_memory_status(
        &self,
        _: Request<pb::CudaSharedMemoryStatusRequest>,
    ) -> Reply<pb::CudaSharedMemoryStatusResponse> {
        Err(status(no_cuda()))
    }

    async fn cuda_shared_memory_register(
        &self,
        _: Request<pb::CudaSharedMemoryRegisterRequest>,
    ) -> Reply<pb::CudaSharedMemoryRegisterResponse> {
        Err(status(no_cuda()))
    }

    async fn cuda_shared_memory_unregister(
        &self,
        _: Request<pb::CudaSharedMemoryUnregisterRequest>,
    ) -> Reply<pb::CudaSharedMemoryUnregisterResponse> {
        Err(status(no_cuda()))
    }

    async fn trace_setting(
        &self,
        request: Request<pb::TraceSettingRequest>,
    ) -> Reply<pb::TraceSettingResponse> {
        let asked = request.into_inner();
        if let Some(model) = given(&asked.model_name) {
            self.plane.endpoint(model).map_err(status)?;
        }
        if !asked.settings.is_empty() {
            self.plane.permit_settings().map_err(status)?;
        }
        for (name, setting) in &asked.settings {
            let model = given(&asked.model_name);
            self.plane.tracer.update(model, name, &setting.value).map_err(status)?;
        }
        Ok(Response::new(settings::trace_response(self.plane.tracer.settings())))
    }

    async fn log_settings(
        &self,
        request: Request<pb::LogSettingsRequest>,
    ) -> Reply<pb::LogSettingsResponse> {
        let changes = settings::log_changes(request.into_inner()).map_err(status)?;
        if !changes.is_empty() {
            self.plane.permit_settings().map_err(status)?;
        }
        let now = self.plane.logging.update(changes).map_err(status)?;
        Ok(Response::new(settings::log_response(now)))
    }
}

fn tensor_metadata(spec: &TensorSpec) -> TensorMetadata {
    TensorMetadata {
        name: spec.name.clone(),
        datatype: spec.dtype.wire_name().unwrap_or("INVALID").to_owned(),
        shape: spec.shape.to_vec(),
    }
}

fn region_status(region: RegionStatus) -> pb::system_shared_memory_status_response::RegionStatus {
    pb::system_shared_memory_status_response::RegionStatus {
        name: region.name,
        key: region.key,
        offset: region.offset,
        byte_size: region.byte_size,
    }
}

fn no_cuda() -> Error {
    Error::unsupported("CUDA shared memory is not served; use system shared memory")
}

fn check_parameters(
    parameters: &BTreeMap<String, pb::ModelRepositoryParameter>,
) -> Result<(), Status> {
    use pb::model_repository_parameter::ParameterChoice::BoolParam;
    let parameters = parameters
        .iter()
        .map(|(name, value)| (name.as_str(), value.parameter_choice == Some(BoolParam(false))));
    check_repository_parameters(parameters).map_err(status)
}
