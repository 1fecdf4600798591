use crate::limits::WireLimits;
use crate::number::{FromNumber, Number};
use crate::reader::{Kind, Reader};
use mortise_types::{Error, Result};
use std::time::Duration;

/// The `parameters` of a request, in the order they came.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters(Vec<(String, Parameter)>);

/// The value of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    Bool(bool),
    /// Any whole number that a 64-bit integer, signed or not, can hold.
    Integer(i128),
    Float(f64),
    String(String),
}

/// The sequence that a request belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    pub id: SequenceId,
    /// First request of the sequence.
    pub start: bool,
    /// Last request of the sequence.
    pub end: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SequenceId {
    Number(u64),
    Text(String),
}

impl Parameters {
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Parameter)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// # Errors
    /// When there are too many, the name is too long, or it is there already.
    pub fn insert(&mut self, name: &str, value: Parameter, limits: &WireLimits) -> Result<()> {
        if self.0.len() == limits.max_parameters {
            return Err(Error::invalid(format!(
                "a request may have at most {} parameters",
                limits.max_parameters
            )));
        }
        if self.get(name).is_some() {
            return Err(Error::invalid(format!("parameter \"{name}\" is given twice")));
        }
        self.0.push((short_text(name, "a parameter's name", limits)?, value));
        Ok(())
    }

    pub(crate) fn read(reader: &mut Reader<'_>, limits: &WireLimits) -> Result<Self> {
        let mut parameters = Self::default();
        reader.object(|reader, key| {
            let value = Parameter::read(reader, key, limits)?;
            parameters.insert(key, value, limits)
        })?;
        Ok(parameters)
    }

    /// # Errors
    /// When the parameter is there and is not a boolean; so for the others.
    pub fn bool(&self, name: &str) -> Result<Option<bool>> {
        match self.get(name) {
            None => Ok(None),
            Some(Parameter::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(wrong(name, "true or false", other)),
        }
    }

    pub(crate) fn u64(&self, name: &str) -> Result<Option<u64>> {
        let wanted = "a whole number that is not negative";
        match self.get(name) {
            None => Ok(None),
            Some(other @ Parameter::Integer(value)) => {
                u64::try_from(*value).map(Some).map_err(|_| wrong(name, wanted, other))
            }
            Some(other) => Err(wrong(name, wanted, other)),
        }
    }

    /// `timeout`, in microseconds on the wire; 0 means none.
    pub(crate) fn timeout(&self) -> Result<Option<Duration>> {
        let timeout = self.u64("timeout")?.filter(|&micros| micros > 0);
        Ok(timeout.map(Duration::from_micros))
    }

    /// The sequence, when there is a `sequence_id` that is neither 0 nor empty.
    pub(crate) fn sequence(&self) -> Result<Option<Sequence>> {
        let start = self.bool("sequence_start")?.unwrap_or(false);
        let end = self.bool("sequence_end")?.unwrap_or(false);
        let id = match self.get("sequence_id") {
            Some(Parameter::String(text)) if text.is_empty() => return Ok(None),
            Some(Parameter::String(text)) => SequenceId::Text(text.clone()),
            _ => match self.u64("sequence_id")? {
                None | Some(0) => return Ok(None),
                Some(number) => SequenceId::Number(number),
            },
        };
        Ok(Some(Sequence { id, start, end }))
    }
}

impl Parameter {
    fn read(reader: &mut Reader<'_>, name: &str, limits: &WireLimits) -> Result<Self> {
        match reader.kind()? {
            Kind::Bool => reader.bool().map(Self::Bool),
            Kind::String => {
                let text = reader.string()?;
                short_text(&text, "a parameter's text", limits).map(Self::String)
            }
            Kind::Number => {
                let number = reader.number()?;
                read_number(number)
                    .ok_or_else(|| Error::invalid(format!("parameter \"{name}\" is out of range")))
            }
            kind => Err(Error::invalid(format!(
                "parameter \"{name}\" must be a boolean, a number or a string, got {}",
                kind.name()
            ))),
        }
    }
}

fn read_number(number: Number<'_>) -> Option<Parameter> {
    if let Ok(value) = i64::from_number(number) {
        return Some(Parameter::Integer(value.into()));
    }
    if let Ok(value) = u64::from_number(number) {
        return Some(Parameter::Integer(value.into()));
    }
    f64::from_number(number).ok().map(Parameter::Float)
}

fn wrong(name: &str, wanted: &str, got: &Parameter) -> Error {
    let got = match got {
        Parameter::Bool(value) => value.to_string(),
        Parameter::Integer(value) => value.to_string(),
        Parameter::Float(value) => value.to_string(),
        Parameter::String(value) => format!("{value:?}"),
    };
    Error::invalid(format!("parameter \"{name}\" must be {wanted}, got {got}"))
}

/// # Errors
/// When `text` is longer than `max_text_bytes`; `what` begins the message.
pub fn short_text(text: &str, what: &str, limits: &WireLimits) -> Result<String> {
    if text.len() > limits.max_text_bytes {
        return Err(Error::invalid(format!(
            "{what} may have at most {} bytes, got {}",
            limits.max_text_bytes,
            text.len()
        )));
    }
    Ok(text.to_owned())
}
