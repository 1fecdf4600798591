//! The exported cases.

use crate::compare::Tolerance;
use anyhow::{Context, Result};
use mortise_types::{Bytes, DType, Error, StringsBuilder, Tensor};
use serde::Deserialize;
use std::fs;
use std::path::Path;

/// All cases, and the bytes that they lie in.
pub(crate) struct Cases {
    pub(crate) list: Vec<Case>,
    data: Bytes,
}

/// One set of data of a test.
#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) test: String,
    pub(crate) operator: String,
    rtol: f64,
    atol: f64,
    pub(crate) model: Place,
    pub(crate) inputs: Vec<Entry>,
    pub(crate) outputs: Vec<Entry>,
}

/// Where something lies in the file of bytes.
#[derive(Clone, Copy, Deserialize)]
pub(crate) struct Place {
    offset: usize,
    length: usize,
}

/// One tensor.
#[derive(Deserialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// Of `TensorProto.DataType`.
    dtype: i32,
    pub(crate) shape: Vec<usize>,
    #[serde(default)]
    strings: bool,
    /// The model gives this input no shape.
    #[serde(default)]
    pub(crate) undeclared: bool,
    #[serde(flatten)]
    place: Place,
}

impl Case {
    pub(crate) fn tolerance(&self) -> Tolerance {
        Tolerance { relative: self.rtol, absolute: self.atol }
    }
}

impl Cases {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).with_context(|| format!("read {}", path.display()))
        };
        let index = String::from_utf8(read("index.jsonl")?)?;
        let list = index.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok(Self { list, data: read("data.bin")?.into() })
    }

    pub(crate) fn keep(&mut self, text: &str) {
        self.list.retain(|case| case.test.contains(text));
    }

    pub(crate) fn bytes(&self, place: Place) -> mortise_types::Result<Bytes> {
        let end = place.offset.saturating_add(place.length);
        if end > self.data.len() {
            return Err(Error::internal("the index points outside of data.bin"));
        }
        Ok(self.data.slice(place.offset..end))
    }

    pub(crate) fn inputs(&self, case: &Case) -> mortise_types::Result<Vec<Tensor>> {
        case.inputs.iter().map(|entry| self.tensor(entry)).collect()
    }

    pub(crate) fn tensor(&self, entry: &Entry) -> mortise_types::Result<Tensor> {
        let dtype = DType::from_onnx(entry.dtype)
            .ok_or_else(|| Error::unsupported(format!("tensors of type {}", entry.dtype)))?;
        let bytes = self.bytes(entry.place)?;
        match (entry.strings, dtype) {
            (true, _) => strings(&entry.shape, &bytes),
            (_, DType::Bool) => Tensor::from_bools(&entry.shape, bytes.to_vec()),
            _ => Tensor::from_bytes(dtype, &entry.shape, bytes),
        }
    }
}

/// Texts, each after its length in four bytes.
fn strings(shape: &[usize], mut bytes: &[u8]) -> mortise_types::Result<Tensor> {
    let mut strings = StringsBuilder::default();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let split = rest.split_at_checked(u32::from_le_bytes(*length) as usize);
        let (text, rest) = split.ok_or_else(|| Error::internal("a text is cut off"))?;
        strings.push(text);
        bytes = rest;
    }
    Tensor::from_strings(shape, strings.finish())
}
