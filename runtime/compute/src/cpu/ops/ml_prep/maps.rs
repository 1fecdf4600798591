//! Operators on maps.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{StringsOut, by_dtype, dim, doubles, rows_and_columns};
use mortise_types::{DType, Error, MapKeys, NodeDef, Result, Tensor, Value};
use smallvec::smallvec;
use std::sync::Arc;

/// Most maps or cells that one of these operators makes.
const MAX_CELLS: usize = 1 << 24;

/// Rows of scores as a sequence of maps from class to score.
pub(super) struct ZipMap(MapKeys);

impl ZipMap {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(vocabulary(
            &Attributes(node),
            "classlabels_int64s",
            "classlabels_strings",
        )?)))
    }
}

fn vocabulary(attributes: &Attributes<'_>, ints: &str, strings: &str) -> Result<MapKeys> {
    if let Some(list) = attributes.texts(strings)?.filter(|list| !list.is_empty()) {
        return Ok(MapKeys::Strings(list.to_vec()));
    }
    match attributes.ints(ints)? {
        Some(list) if !list.is_empty() => Ok(MapKeys::Ints(list.to_vec())),
        _ => Err(Error::invalid(format!("one of {ints} and {strings} must have values"))),
    }
}

fn key_count(keys: &MapKeys) -> usize {
    match keys {
        MapKeys::Ints(list) => list.len(),
        MapKeys::Strings(list) => list.len(),
    }
}

impl Operator for ZipMap {
    fn run(&self, _ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let (rows, columns) = rows_and_columns(input)?;
        let values = input.as_slice::<f32>()?;
        if columns != key_count(&self.0) || values.len() > MAX_CELLS {
            return Err(Error::invalid(format!(
                "{rows} rows of {columns} scores for {} classes",
                key_count(&self.0)
            )));
        }
        let maps: Result<Vec<Value>> = values
            .chunks_exact(columns)
            .map(|row| {
                let scores = Tensor::from_vec(&[columns], row.to_vec())?;
                Ok(Value::Map(Arc::new((self.0.clone(), scores))))
            })
            .collect();
        Ok(smallvec![Value::Sequence(Arc::new(maps?))])
    }
}

fn map_input<'a>(inputs: &'a Inputs<'_>) -> Result<&'a (MapKeys, Tensor)> {
    match inputs.value(0)? {
        Value::Map(map) => Ok(map),
        other => Err(Error::invalid(format!("expected a map, got {}", other.kind_name()))),
    }
}

/// A map's values in the order of a vocabulary, zeros for absent keys.
pub(super) struct DictVectorizer(MapKeys);

impl DictVectorizer {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Self(vocabulary(&Attributes(node), "int64_vocabulary", "string_vocabulary")?)))
    }

    /// For every word of the vocabulary, its place in the map.
    fn places(&self, keys: &MapKeys) -> Result<Vec<Option<usize>>> {
        match (&self.0, keys) {
            (MapKeys::Ints(words), MapKeys::Ints(keys)) => {
                Ok(words.iter().map(|word| keys.iter().position(|key| key == word)).collect())
            }
            (MapKeys::Strings(words), MapKeys::Strings(keys)) => {
                Ok(words.iter().map(|word| keys.iter().position(|key| key == word)).collect())
            }
            _ => Err(Error::invalid("the map's keys are not of the vocabulary's type")),
        }
    }
}

impl Operator for DictVectorizer {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (keys, values) = map_input(&inputs)?;
        let places = self.places(keys)?;
        if values.dtype() == DType::String {
            let items = values.strings()?;
            let mut output = StringsOut::new(places.len())?;
            for place in &places {
                output.push(place.map_or(b"", |at| items.get(at)))?;
            }
            return Ok(smallvec![output.finish(&[1, places.len()])?.into()]);
        }
        let mut output = ctx.allocate(values.dtype(), &[1, places.len()])?;
        by_dtype!(values.dtype(), [F32: f32, F64: f64, I64: i64], T => {
            let values = values.as_slice::<T>()?;
            for (cell, place) in output.as_mut_slice::<T>()?.iter_mut().zip(&places) {
                *cell = place.and_then(|at| values.get(at).copied()).unwrap_or_default();
            }
            Ok(())
        })?;
        Ok(smallvec![output.into()])
    }
}

/// A map from integers as a row: its values in key order, or by key.
pub(super) struct CastMap {
    to: DType,
    /// The width of a row in which a key is a column.
    sparse: Option<usize>,
}

impl CastMap {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let to = match attributes.text("cast_to")?.unwrap_or("TO_FLOAT") {
            "TO_FLOAT" => DType::F32,
            "TO_STRING" => DType::String,
            "TO_INT64" => DType::I64,
            other => return Err(Error::unsupported(format!("cast_to \"{other}\""))),
        };
        let sparse = match attributes.text("map_form")?.unwrap_or("DENSE") {
            "DENSE" => None,
            "SPARSE" => Some(dim(attributes.int_or("max_map", 1)?)?),
            other => return Err(Error::unsupported(format!("map_form \"{other}\""))),
        };
        if sparse.is_some_and(|width| width > MAX_CELLS) {
            return Err(Error::limit(format!("max_map may be at most {MAX_CELLS}")));
        }
        Ok(Box::new(Self { to, sparse }))
    }

    /// For every column, the place of its value in the map.
    fn places(&self, keys: &[i64]) -> Vec<Option<usize>> {
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by_key(|&place| keys[place]);
        let Some(width) = self.sparse else {
            return order.into_iter().map(Some).collect();
        };
        let mut places = vec![None; width];
        for place in order {
            let column = usize::try_from(keys[place]).ok();
            if let Some(cell) = column.and_then(|column| places.get_mut(column)) {
                *cell = Some(place);
            }
        }
        places
    }
}

impl Operator for CastMap {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (keys, values) = map_input(&inputs)?;
        let MapKeys::Ints(keys) = keys else {
            return Err(Error::invalid("CastMap takes a map with integer keys"));
        };
        let places = self.places(keys);
        let shape = [1, places.len()];
        if self.to == DType::String {
            let texts = texts(values)?;
            let mut output = StringsOut::new(places.len())?;
            for place in places {
                output.push(place.and_then(|at| texts.get(at)).map_or(b"", Vec::as_slice))?;
            }
            return Ok(smallvec![output.finish(&shape)?.into()]);
        }
        let numbers = numbers(values)?;
        let pick = |place: &Option<usize>| place.and_then(|at| numbers.get(at)).copied();
        let mut output = ctx.allocate(self.to, &shape)?;
        by_dtype!(self.to, [F32: f32, I64: i64], T => {
            for (cell, place) in output.as_mut_slice::<T>()?.iter_mut().zip(&places) {
                *cell = pick(place).unwrap_or(0.0) as T;
            }
            Ok(())
        })?;
        Ok(smallvec![output.into()])
    }
}

fn texts(values: &Tensor) -> Result<Vec<Vec<u8>>> {
    match values.dtype() {
        DType::String => Ok(values.strings()?.iter().map(<[u8]>::to_vec).collect()),
        _ => Ok(doubles(values)?.iter().map(|value| value.to_string().into_bytes()).collect()),
    }
}

fn numbers(values: &Tensor) -> Result<Vec<f64>> {
    if values.dtype() != DType::String {
        return Ok(doubles(values)?.into_owned());
    }
    values
        .strings()?
        .iter()
        .map(|item| {
            let text = String::from_utf8_lossy(item);
            text.trim()
                .parse()
                .map_err(|_| Error::invalid(format!("\"{text}\" cannot be read as a number")))
        })
        .collect()
}
