use crate::plane::models::ModelStatistics;
use mortise_grpc_proto::inference as pb;
use mortise_serve::{BatchStats, DurationCount};

/// The statistics of one version as their message.
pub(super) fn message(model: &ModelStatistics) -> pb::ModelStatistics {
    let stats = &model.stats;
    pb::ModelStatistics {
        name: model.name.clone(),
        version: stats.version.to_string(),
        last_inference: model.last_inference_ms(),
        inference_count: stats.inference_count,
        execution_count: stats.execution_count,
        inference_stats: Some(pb::InferStatistics {
            success: duration(stats.success),
            fail: duration(stats.fail),
            queue: duration(stats.queue),
            compute_input: duration(stats.compute_input),
            compute_infer: duration(stats.compute_infer),
            compute_output: duration(stats.compute_output),
            cache_hit: duration(stats.cache_hit),
            cache_miss: duration(stats.cache_miss),
        }),
        batch_stats: stats.batches.iter().map(batch).collect(),
        memory_usage: vec![pb::MemoryUsage {
            r#type: "CPU".to_owned(),
            id: 0,
            byte_size: model.memory_bytes,
        }],
    }
}

fn batch(batch: &BatchStats) -> pb::InferBatchStatistics {
    pb::InferBatchStatistics {
        batch_size: batch.batch_size,
        compute_input: duration(batch.compute_input),
        compute_infer: duration(batch.compute_infer),
        compute_output: duration(batch.compute_output),
    }
}

fn duration(measured: DurationCount) -> Option<pb::StatisticDuration> {
    Some(pb::StatisticDuration { count: measured.count, ns: measured.total_ns })
}
