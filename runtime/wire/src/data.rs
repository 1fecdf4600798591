//! The `data` of an input: numbers, booleans or strings, flat or nested, read
//! straight into the tensor's own vector.

use crate::limits::WireLimits;
use crate::number::{FromNumber, Misfit, Number};
use crate::reader::{Kind, Reader};
use mortise_types::{DType, Element, Error, Result, Strings, StringsBuilder, Tensor};

/// The elements of a `data` array, before its shape is known for certain.
pub(crate) struct Data {
    elements: Elements,
    /// Length of the arrays at each level of nesting, outermost first.
    lengths: Vec<usize>,
}

enum Elements {
    Bools(Vec<u8>),
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
    U64(Vec<u64>),
    I8(Vec<i8>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Strings(Strings),
}

impl Data {
    /// Reads a `data` array of `dtype`. `count` is the number of elements
    /// expected, when the shape is known already.
    ///
    /// # Errors
    /// Malformed JSON, elements that are not of `dtype`, arrays of one level
    /// that differ in length, or too many elements. Messages do not name the
    /// input: the caller does.
    pub(crate) fn read(
        reader: &mut Reader<'_>,
        dtype: DType,
        count: Option<usize>,
        limits: &WireLimits,
    ) -> Result<Self> {
        // Every element takes at least two bytes of text, so a shape that lies
        // reserves no more than the body justifies.
        let capacity = count.unwrap_or(0).min(reader.remaining() / 2 + 1);
        macro_rules! numbers {
            ($variant:ident) => {{
                let (sink, lengths) = walk(reader, Vec::with_capacity(capacity), dtype, limits)?;
                (Elements::$variant(sink), lengths)
            }};
        }
        let (elements, lengths) = match dtype {
            DType::Bool => {
                let sink = Bools(Vec::with_capacity(capacity));
                let (sink, lengths) = walk(reader, sink, dtype, limits)?;
                (Elements::Bools(sink.0), lengths)
            }
            DType::U8 => numbers!(U8),
            DType::U16 => numbers!(U16),
            DType::U32 => numbers!(U32),
            DType::U64 => numbers!(U64),
            DType::I8 => numbers!(I8),
            DType::I16 => numbers!(I16),
            DType::I32 => numbers!(I32),
            DType::I64 => numbers!(I64),
            DType::F32 => numbers!(F32),
            DType::F64 => numbers!(F64),
            DType::String => {
                let (sink, lengths) = walk(reader, StringsBuilder::default(), dtype, limits)?;
                (Elements::Strings(sink.finish()), lengths)
            }
            _ => {
                return Err(Error::invalid(format!(
                    "{dtype} cannot be sent as JSON; send it as binary data (binary_data_size)"
                )));
            }
        };
        Ok(Self { elements, lengths })
    }

    /// The tensor of `shape`.
    ///
    /// # Errors
    /// When the number of elements, or the nesting where it is as deep as the
    /// shape, differs from `shape`.
    pub(crate) fn into_tensor(self, shape: &[usize]) -> Result<Tensor> {
        if self.lengths.len() > 1 && self.lengths.len() == shape.len() && self.lengths != shape {
            return Err(Error::invalid(format!(
                "shape {shape:?} does not fit data nested as {:?}",
                self.lengths
            )));
        }
        match self.elements {
            Elements::Bools(values) => Tensor::from_bools(shape, values),
            Elements::U8(values) => numeric(shape, values),
            Elements::U16(values) => numeric(shape, values),
            Elements::U32(values) => numeric(shape, values),
            Elements::U64(values) => numeric(shape, values),
            Elements::I8(values) => numeric(shape, values),
            Elements::I16(values) => numeric(shape, values),
            Elements::I32(values) => numeric(shape, values),
            Elements::I64(values) => numeric(shape, values),
            Elements::F32(values) => numeric(shape, values),
            Elements::F64(values) => numeric(shape, values),
            Elements::Strings(strings) => Tensor::from_strings(shape, strings),
        }
    }
}

fn numeric<T: Element>(shape: &[usize], values: Vec<T>) -> Result<Tensor> {
    Tensor::from_vec(shape, values)
}

/// Takes elements one after the other.
trait Sink {
    /// Reads one element.
    fn take(&mut self, reader: &mut Reader<'_>) -> Result<(), Refusal>;
}

enum Refusal {
    Json(Error),
    Kind(Kind),
    Number(String, Misfit),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Json(error)
    }
}

impl<T: FromNumber> Sink for Vec<T> {
    #[inline]
    fn take(&mut self, reader: &mut Reader<'_>) -> Result<(), Refusal> {
        let kind = reader.kind()?;
        if kind != Kind::Number {
            return Err(Refusal::Kind(kind));
        }
        let number = reader.number()?;
        match T::from_number(number) {
            Ok(value) => self.push(value),
            Err(misfit) => return Err(Refusal::Number(shown(number), misfit)),
        }
        Ok(())
    }
}

struct Bools(Vec<u8>);

impl Sink for Bools {
    fn take(&mut self, reader: &mut Reader<'_>) -> Result<(), Refusal> {
        match reader.kind()? {
            Kind::Bool => self.0.push(reader.bool()?.into()),
            kind => return Err(Refusal::Kind(kind)),
        }
        Ok(())
    }
}

impl Sink for StringsBuilder {
    fn take(&mut self, reader: &mut Reader<'_>) -> Result<(), Refusal> {
        match reader.kind()? {
            Kind::String => self.push(reader.string()?.as_bytes()),
            kind => return Err(Refusal::Kind(kind)),
        }
        Ok(())
    }
}

/// The number's text, cut to what a message can bear.
fn shown(number: Number<'_>) -> String {
    match number {
        Number::Decimal(decimal) if decimal.text.len() > 40 => {
            format!("{}…", decimal.text.get(..40).unwrap_or_default())
        }
        Number::Decimal(decimal) => decimal.text.to_owned(),
        Number::Special(value) => value.to_string(),
    }
}

fn walk<S: Sink>(
    reader: &mut Reader<'_>,
    sink: S,
    dtype: DType,
    limits: &WireLimits,
) -> Result<(S, Vec<usize>)> {
    let mut walk = Walk { sink, dtype, limits, taken: 0, lengths: Vec::new(), leaf: None };
    if reader.kind()? != Kind::Array {
        return Err(Error::invalid(format!(
            "data must be an array, got {}",
            reader.kind()?.name()
        )));
    }
    walk.level(reader, 0)?;
    let lengths = walk.lengths.into_iter().map(|length| length.unwrap_or(0)).collect();
    Ok((walk.sink, lengths))
}

struct Walk<'l, S> {
    sink: S,
    dtype: DType,
    limits: &'l WireLimits,
    taken: usize,
    /// Length of the arrays at each level; `None` until one is complete.
    lengths: Vec<Option<usize>>,
    /// The level whose arrays hold elements, once one was seen.
    leaf: Option<usize>,
}

impl<S: Sink> Walk<'_, S> {
    /// Reads one array at nesting `level`. Recursion ends at `max_rank`.
    fn level(&mut self, reader: &mut Reader<'_>, level: usize) -> Result<()> {
        if level >= self.limits.max_rank {
            return Err(Error::invalid(format!(
                "data is nested deeper than {} levels",
                self.limits.max_rank
            )));
        }
        if self.lengths.len() == level {
            self.lengths.push(None);
        }
        reader.expect(b'[', "an array")?;
        let mut length = 0;
        if !reader.take(b']') {
            loop {
                match reader.peek() {
                    Some(b'[') => self.nested(reader, level)?,
                    _ => self.element(reader, level)?,
                }
                length += 1;
                if !reader.take(b',') {
                    break;
                }
            }
            reader.expect(b']', "',' or ']'")?;
        }
        self.close(level, length)
    }

    fn nested(&mut self, reader: &mut Reader<'_>, level: usize) -> Result<()> {
        match self.leaf {
            Some(leaf) if leaf <= level => Err(self.mixed()),
            _ => self.level(reader, level + 1),
        }
    }

    #[inline]
    fn element(&mut self, reader: &mut Reader<'_>, level: usize) -> Result<()> {
        if self.leaf != Some(level) {
            if self.leaf.is_some() || self.lengths.len() > level + 1 {
                return Err(self.mixed());
            }
            self.leaf = Some(level);
        }
        if self.taken == self.limits.max_elements {
            return Err(Error::invalid(format!(
                "a tensor may have at most {} elements",
                self.limits.max_elements
            )));
        }
        self.sink.take(reader).map_err(|refusal| self.refused(refusal))?;
        self.taken += 1;
        Ok(())
    }

    fn close(&mut self, level: usize, length: usize) -> Result<()> {
        match self.lengths.get_mut(level) {
            Some(Some(first)) if *first != length => Err(Error::invalid(format!(
                "data is ragged: arrays at level {} have {first} and {length} members",
                level + 1
            ))),
            Some(known) => {
                *known = Some(length);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn mixed(&self) -> Error {
        Error::invalid(format!(
            "data mixes arrays and elements at one level, at element {}",
            self.taken
        ))
    }

    #[cold]
    fn refused(&self, refusal: Refusal) -> Error {
        let (index, dtype) = (self.taken, self.dtype);
        let takes = match dtype {
            DType::Bool => "true or false",
            DType::String => "strings",
            dtype if dtype.is_int() => "whole numbers",
            _ => "numbers",
        };
        Error::invalid(match refusal {
            Refusal::Json(error) => return error,
            Refusal::Kind(kind) => {
                format!("element {index} is {}, but {dtype} takes {takes}", kind.name())
            }
            Refusal::Number(text, Misfit::NotWhole) => {
                format!("element {index} is {text}, but {dtype} takes {takes}")
            }
            Refusal::Number(text, Misfit::OutOfRange) => {
                format!("element {index} is {text}, which is out of range for {dtype}")
            }
        })
    }
}
