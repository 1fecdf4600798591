//! Weights: from references into assets to tensors over the mapped bytes.

use crate::GraphLimits;
use mortise_types::{Assets, Error, GraphDef, Result, Tensor, Value, ValueSource, WeightRef};

/// By value index: the tensor of each weight and constant. A weight shares
/// the asset's memory unless it is unaligned for its element type.
///
/// # Errors
/// `NotFound` for an unknown asset, `InvalidInput` for bytes outside of it or
/// of the wrong number, `LimitExceeded` over `max_weight_bytes`.
pub(crate) fn resolve(
    def: &GraphDef,
    assets: &Assets,
    limits: &GraphLimits,
) -> Result<Vec<Option<Value>>> {
    let mut total_bytes = 0u64;
    let mut resolved = Vec::with_capacity(def.values.len());
    for value in &def.values {
        let tensor = match &value.source {
            ValueSource::Weight(weight) => {
                Some(load(weight, assets).map_err(|e| e.context(format!("\"{}\"", value.name)))?)
            }
            ValueSource::Constant(tensor) => Some(tensor.clone()),
            ValueSource::Input | ValueSource::Node => None,
        };
        total_bytes += tensor.as_ref().map_or(0, |tensor| tensor.byte_len() as u64);
        if total_bytes > limits.max_weight_bytes {
            let limit = limits.max_weight_bytes;
            return Err(Error::limit(format!("the weights exceed max_weight_bytes = {limit}")));
        }
        resolved.push(tensor.map(Value::Tensor));
    }
    Ok(resolved)
}

fn load(weight: &WeightRef, assets: &Assets) -> Result<Tensor> {
    let bytes = &assets.get(&weight.asset)?.bytes;
    let range = usize::try_from(weight.offset)
        .ok()
        .zip(weight.offset.checked_add(weight.length).and_then(|end| usize::try_from(end).ok()))
        .filter(|(start, end)| start <= end && *end <= bytes.len());
    let Some((start, end)) = range else {
        return Err(Error::invalid(format!(
            "{} bytes at {} lie outside asset \"{}\" of {} bytes",
            weight.length,
            weight.offset,
            weight.asset,
            bytes.len()
        )));
    };
    Tensor::from_bytes(weight.dtype, &weight.shape, bytes.slice(start..end))
}
