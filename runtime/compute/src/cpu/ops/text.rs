//! Operators on strings.

mod ngrams;
mod pattern;
mod tokenizer;

use crate::cpu::op::{Attributes, Entry, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{StringsOut, dim, element_count, strides, string_tensor};
use mortise_types::{DType, Error, NodeDef, Result, Shape};
use smallvec::smallvec;
use std::borrow::Cow;
use std::collections::HashSet;

pub(crate) const ENTRIES: &[Entry] = &[
    Entry { op: "RegexFullMatch", since: 20, build: RegexFullMatch::build },
    Entry { op: "StringConcat", since: 20, build: |_| Ok(Box::new(StringConcat)) },
    Entry { op: "StringNormalizer", since: 10, build: StringNormalizer::build },
    Entry { op: "StringSplit", since: 20, build: StringSplit::build },
    Entry { op: "TfIdfVectorizer", since: 9, build: ngrams::TfIdfVectorizer::build },
];

pub(crate) const MS_ENTRIES: &[Entry] =
    &[Entry { op: "Tokenizer", since: 1, build: tokenizer::Tokenizer::build }];

/// # Errors
/// When the bytes are not UTF-8.
fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes)
        .map_err(|_| Error::invalid(format!("\"{}\" is not UTF-8", String::from_utf8_lossy(bytes))))
}

/// Changes case and drops stop words.
struct StringNormalizer {
    case: Case,
    sensitive: bool,
    stop_words: HashSet<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Lower,
    Upper,
    Keep,
}

impl Case {
    /// Letter by letter, as C's `towlower` does: a letter whose other case is
    /// several letters stays.
    fn apply(self, text: &str) -> Cow<'_, str> {
        fn only(mut letters: impl Iterator<Item = char>, letter: char) -> char {
            match (letters.next(), letters.next()) {
                (Some(other), None) => other,
                _ => letter,
            }
        }
        match self {
            Self::Keep => text.into(),
            Self::Lower => text.chars().map(|c| only(c.to_lowercase(), c)).collect(),
            Self::Upper => text.chars().map(|c| only(c.to_uppercase(), c)).collect(),
        }
    }
}

impl StringNormalizer {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let case = match attributes.text("case_change_action")?.unwrap_or("NONE") {
            "LOWER" => Case::Lower,
            "UPPER" => Case::Upper,
            "NONE" => Case::Keep,
            other => return Err(Error::unsupported(format!("case_change_action \"{other}\""))),
        };
        let sensitive = attributes.int_or("is_case_sensitive", 0)? != 0;
        let words = attributes.texts("stopwords")?.unwrap_or(&[]);
        let stop_words = words
            .iter()
            .map(|word| Ok(Self::compared(sensitive, utf8(word)?).into_owned()))
            .collect::<Result<_>>()?;
        Ok(Box::new(Self { case, sensitive, stop_words }))
    }

    fn compared(sensitive: bool, text: &str) -> Cow<'_, str> {
        if sensitive { text.into() } else { Case::Lower.apply(text) }
    }
}

impl Operator for StringNormalizer {
    fn run(&self, _ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        if !matches!(input.shape(), [_] | [1, _]) {
            return Err(Error::invalid(format!("expected [c] or [1, c], got {:?}", input.shape())));
        }
        let mut kept: Vec<Cow<'_, str>> = Vec::new();
        for item in input.strings()?.iter() {
            let text = utf8(item)?;
            if !self.stop_words.contains(&*Self::compared(self.sensitive, text)) {
                kept.push(self.case.apply(text));
            }
        }
        // Nothing left becomes one empty string.
        if kept.is_empty() {
            kept.push("".into());
        }
        let mut shape: Shape = input.shape().into();
        if let Some(last) = shape.last_mut() {
            *last = kept.len();
        }
        let items = kept.iter().map(|text| text.as_bytes());
        Ok(smallvec![string_tensor(&shape, items)?.into()])
    }
}

/// Element by element, with broadcasting.
struct StringConcat;

impl Operator for StringConcat {
    fn run(&self, _ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let (a, b) = (inputs.tensor(0)?, inputs.tensor(1)?);
        let rank = a.rank().max(b.rank());
        let size = |shape: &[usize], axis: usize| {
            (axis + shape.len()).checked_sub(rank).map_or(1, |axis| shape[axis])
        };
        let mut shape = Shape::new();
        for axis in 0..rank {
            shape.push(match (size(a.shape(), axis), size(b.shape(), axis)) {
                (left, right) if left == right || right == 1 => left,
                (1, right) => right,
                _ => return Err(Error::invalid(format!("{a:?} and {b:?} do not broadcast"))),
            });
        }
        let steps = strides(&shape);
        let place = |own: &[usize], element: usize| -> usize {
            let own_steps = strides(own);
            (0..own.len())
                .filter(|&axis| own[axis] != 1)
                .map(|axis| {
                    let outer = axis + rank - own.len();
                    element / steps[outer] % shape[outer] * own_steps[axis]
                })
                .sum()
        };
        let (left, right) = (a.strings()?, b.strings()?);
        let count = element_count(&shape)?;
        let mut output = StringsOut::new(count)?;
        let mut joined = Vec::new();
        for element in 0..count {
            joined.clear();
            joined.extend_from_slice(left.get(place(a.shape(), element)));
            joined.extend_from_slice(right.get(place(b.shape(), element)));
            output.push(&joined)?;
        }
        Ok(smallvec![output.finish(&shape)?.into()])
    }
}

/// Substrings between delimiters, and how many there are.
struct StringSplit {
    /// `None` splits at runs of white space.
    delimiter: Option<String>,
    most: Option<usize>,
}

impl StringSplit {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let delimiter = attributes.text("delimiter")?.filter(|text| !text.is_empty());
        let most = match attributes.int("maxsplit")? {
            Some(count) => Some(dim(count)?),
            None => None,
        };
        Ok(Box::new(Self { delimiter: delimiter.map(str::to_owned), most }))
    }

    fn parts<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let limit = self.most.map_or(usize::MAX, |most| most.saturating_add(1));
        match &self.delimiter {
            _ if text.is_empty() => Vec::new(),
            Some(delimiter) => text.splitn(limit, delimiter.as_str()).collect(),
            None => split_at_spaces(text, limit),
        }
    }
}

fn split_at_spaces(text: &str, limit: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if parts.len() + 1 == limit {
            parts.push(rest.trim_end());
            break;
        }
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        parts.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    parts
}

impl Operator for StringSplit {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let rows: Vec<Vec<&str>> = input
            .strings()?
            .iter()
            .map(|item| Ok(self.parts(utf8(item)?)))
            .collect::<Result<_>>()?;
        let width = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut shape: Shape = input.shape().into();
        let mut counts = ctx.allocate(DType::I64, &shape)?;
        for (cell, row) in counts.as_mut_slice::<i64>()?.iter_mut().zip(&rows) {
            *cell = row.len() as i64;
        }
        shape.push(width);
        let output = padded(&rows, width, "", &shape)?;
        Ok(smallvec![output, counts.into()])
    }
}

/// Rows of different lengths as one tensor.
fn padded<S: AsRef<str>>(
    rows: &[Vec<S>],
    width: usize,
    filler: &str,
    shape: &[usize],
) -> Result<mortise_types::Value> {
    let mut output = StringsOut::new(rows.len().saturating_mul(width))?;
    for row in rows {
        for item in row {
            output.push(item.as_ref().as_bytes())?;
        }
        for _ in row.len()..width {
            output.push(filler.as_bytes())?;
        }
    }
    Ok(output.finish(shape)?.into())
}

/// Whether all of each string fits a pattern.
struct RegexFullMatch(regex::Regex);

impl RegexFullMatch {
    fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let pattern = Attributes(node).text("pattern")?.unwrap_or("");
        Ok(Box::new(Self(pattern::compile(&format!("\\A(?:{pattern})\\z"))?)))
    }
}

impl Operator for RegexFullMatch {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let mut output = ctx.allocate(DType::Bool, input.shape())?;
        let cells = output.mut_bytes().unwrap_or_default();
        for (cell, item) in cells.iter_mut().zip(input.strings()?.iter()) {
            *cell = u8::from(self.0.is_match(utf8(item)?));
        }
        Ok(smallvec![output.into()])
    }
}
