//! `GET /v2/models/stats` and the statistics of one model.

use super::DataPlane;
use super::reply::{self, Reply};
use crate::plane::models::ModelStatistics;
use bytes::Bytes;
use mortise_serve::{BatchStats, DurationCount};
use serde_json::{Value, json};

pub(super) fn statistics(plane: &DataPlane, name: Option<&str>, version: Option<&str>) -> Reply {
    match plane.statistics(name, version) {
        Ok(models) => {
            let models: Vec<Value> = models.iter().map(model).collect();
            reply::json(Bytes::from(json!({ "model_stats": models }).to_string()))
        }
        Err(error) => reply::error(&error),
    }
}

fn model(model: &ModelStatistics) -> Value {
    let stats = &model.stats;
    json!({
        "name": model.name,
        "version": stats.version.to_string(),
        "last_inference": model.last_inference_ms(),
        "inference_count": stats.inference_count,
        "execution_count": stats.execution_count,
        "inference_stats": {
            "success": duration(stats.success),
            "fail": duration(stats.fail),
            "queue": duration(stats.queue),
            "compute_input": duration(stats.compute_input),
            "compute_infer": duration(stats.compute_infer),
            "compute_output": duration(stats.compute_output),
            "cache_hit": duration(stats.cache_hit),
            "cache_miss": duration(stats.cache_miss),
        },
        "batch_stats": stats.batches.iter().map(batch).collect::<Vec<_>>(),
        "memory_usage": [{ "type": "CPU", "id": 0, "byte_size": model.memory_bytes }],
    })
}

fn batch(batch: &BatchStats) -> Value {
    json!({
        "batch_size": batch.batch_size,
        "compute_input": duration(batch.compute_input),
        "compute_infer": duration(batch.compute_infer),
        "compute_output": duration(batch.compute_output),
    })
}

fn duration(measured: DurationCount) -> Value {
    json!({ "count": measured.count, "ns": measured.total_ns })
}
