//! The layers that a safetensors header describes, checked against each other.

use mortise_plugin_sdk::{ByteRange, DType, Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The header of a safetensors file.
pub(crate) struct Header {
    pub(crate) json: Vec<u8>,
    /// Size of the whole file.
    pub(crate) file_bytes: u64,
}

/// One linear layer.
#[derive(Debug, PartialEq)]
pub(crate) struct Layer {
    pub(crate) inputs: u64,
    /// `[out, in]`.
    pub(crate) weight: Slice,
    /// `[out]`.
    pub(crate) bias: Option<Slice>,
}

/// A tensor inside the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Slice {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    pub(crate) range: ByteRange,
}

/// A tensor as the header describes it; `data_offsets` count from the end of
/// the header.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The layers in order; at least one.
///
/// # Errors
/// When the header is malformed, a tensor is missing, or shapes do not fit.
pub(crate) fn read(header: &Header) -> Result<Vec<Layer>> {
    let entries = entries(&header.json)?;
    let mut layers: Vec<Layer> = Vec::new();
    while let Some(weight) = entries.get(&format!("layers.{}.weight", layers.len())) {
        let index = layers.len();
        let bias = entries.get(&format!("layers.{index}.bias"));
        let layer =
            layer(header, weight, bias).map_err(|error| error.context(format!("layer {index}")))?;
        if let Some(before) = layers.last()
            && before.weight.shape[0] != layer.inputs
        {
            return Err(Error::invalid(format!(
                "layer {index} takes {} inputs, but layer {} gives {}",
                layer.inputs,
                index - 1,
                before.weight.shape[0]
            )));
        }
        layers.push(layer);
    }
    if layers.is_empty() {
        let names: Vec<&str> = entries.keys().map(String::as_str).take(10).collect();
        return Err(Error::invalid(format!(
            "there is no tensor \"layers.0.weight\"; the file has {names:?}"
        )));
    }
    Ok(layers)
}

fn entries(json: &[u8]) -> Result<BTreeMap<String, Entry>> {
    let not_valid = |error| Error::invalid(format!("the safetensors header is not valid: {error}"));
    let mut values: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(json).map_err(not_valid)?;
    values.remove("__metadata__");
    let entry = |(name, value)| Ok((name, serde_json::from_value(value).map_err(not_valid)?));
    values.into_iter().map(entry).collect()
}

fn layer(header: &Header, weight: &Entry, bias: Option<&Entry>) -> Result<Layer> {
    let weight = slice(header, weight)?;
    let [outputs, inputs] = weight.shape[..] else {
        return Err(Error::invalid(format!(
            "the weight has shape {:?}, not [out, in]",
            weight.shape
        )));
    };
    let bias = bias.map(|bias| slice(header, bias)).transpose()?;
    match &bias {
        Some(bias) if bias.shape != [outputs] => Err(Error::invalid(format!(
            "the bias has shape {:?}, expected [{outputs}]",
            bias.shape
        ))),
        _ => Ok(Layer { inputs, weight, bias }),
    }
}

fn slice(header: &Header, entry: &Entry) -> Result<Slice> {
    if entry.dtype != "F32" {
        return Err(Error::unsupported(format!(
            "weights of type {} are not supported; save them as F32",
            entry.dtype
        )));
    }
    let [start, end] = entry.data_offsets;
    let data_start = 8 + header.json.len() as u64;
    let count = entry.shape.iter().try_fold(1u64, |count, &dim| count.checked_mul(dim));
    let want = count.and_then(|count| DType::F32.byte_len(count));
    let fits = end.checked_add(data_start).is_some_and(|end| end <= header.file_bytes);
    if !fits || end.checked_sub(start) != want {
        return Err(Error::invalid(format!(
            "shape {:?} does not fit the bytes {start} to {end} of the data",
            entry.shape
        )));
    }
    let range = ByteRange { offset: data_start + start, length: end - start };
    Ok(Slice { dtype: DType::F32, shape: entry.shape.clone(), range })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(json: &str) -> Header {
        Header { json: json.into(), file_bytes: 8 + json.len() as u64 + 44 }
    }

    const GOOD: &str = r#"{"__metadata__": {"format": "pt"},
        "layers.0.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "layers.0.bias": {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]},
        "layers.1.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [32, 40]}}"#;

    #[test]
    fn offsets_count_from_the_start_of_the_file() {
        let header = header(GOOD);
        let layers = read(&header).unwrap();
        let start = 8 + GOOD.len() as u64;
        assert_eq!(layers.len(), 2);
        assert_eq!(layers[0].inputs, 3);
        let bias = layers[0].bias.as_ref().unwrap();
        assert_eq!(bias.range, ByteRange { offset: start + 24, length: 8 });
        assert_eq!(layers[1].bias, None);
    }

    #[test]
    fn malformed_headers_are_errors() {
        let cases = [
            ("[]", "the safetensors header is not valid"),
            ("{}", "there is no tensor \"layers.0.weight\""),
            (
                &GOOD.replace("[1, 2]", "[1, 5]"),
                "layer 1: shape [1, 5] does not fit the bytes 32 to 40",
            ),
            (&GOOD.replace("[32, 40]", "[132, 140]"), "does not fit the bytes 132 to 140"),
            (&GOOD.replace("[32, 40]", "[40, 32]"), "does not fit the bytes 40 to 32"),
            (&GOOD.replace("[1, 2]", "[2, 1]"), "layer 1 takes 1 inputs, but layer 0 gives 2"),
            (&GOOD.replacen("\"F32\"", "\"BF16\"", 1), "weights of type BF16 are not supported"),
            (
                &GOOD.replace("\"shape\": [2]", "\"shape\": [2, 1]"),
                "the bias has shape [2, 1], expected [2]",
            ),
            (&GOOD.replace("[2, 3]", "[18446744073709551615, 3]"), "does not fit"),
        ];
        for (json, want) in cases {
            let error = read(&header(json)).unwrap_err();
            assert!(error.message().contains(want), "{error}");
        }
    }
}
