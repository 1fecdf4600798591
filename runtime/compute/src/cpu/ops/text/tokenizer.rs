//! `Tokenizer` of `com.microsoft`, which exported text vectorisers start with.

use super::{padded, pattern, utf8};
use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::dim;
use mortise_types::{Error, NodeDef, Result, Shape};
use regex::Regex;
use smallvec::smallvec;

const START_OF_TEXT: &str = "\u{2}";
const END_OF_TEXT: &str = "\u{3}";

pub(super) struct Tokenizer {
    rule: Rule,
    /// Tokens of fewer characters are dropped.
    shortest: usize,
    /// Texts start and end with a mark.
    mark: bool,
    filler: String,
}

enum Rule {
    Characters,
    /// What lies between matches of any of these, applied one after another.
    Separators(Vec<Regex>),
    /// What matches.
    Tokens(Regex),
}

impl Tokenizer {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let separators = attributes.texts("separators")?.unwrap_or(&[]);
        let rule = match (attributes.text("tokenexp")?, separators) {
            (Some(token), []) if !token.is_empty() => Rule::Tokens(pattern::compile(token)?),
            (_, [only]) if only.is_empty() => Rule::Characters,
            (_, []) => {
                return Err(Error::invalid("one of separators and tokenexp must be given"));
            }
            (_, list) => Rule::Separators(
                list.iter().map(|item| pattern::compile(utf8(item)?)).collect::<Result<_>>()?,
            ),
        };
        Ok(Box::new(Self {
            rule,
            shortest: dim(attributes.int_or("mincharnum", 1)?)?.max(1),
            mark: attributes.int_or("mark", 0)? != 0,
            filler: attributes.text("pad_value")?.unwrap_or("").to_owned(),
        }))
    }

    fn tokens<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut tokens: Vec<&str> = match &self.rule {
            Rule::Characters => {
                text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]).collect()
            }
            Rule::Tokens(regex) => regex.find_iter(text).map(|found| found.as_str()).collect(),
            Rule::Separators(list) => list.iter().fold(vec![text], |parts, regex| {
                parts.into_iter().flat_map(|part| regex.split(part)).collect()
            }),
        };
        tokens.retain(|token| token.chars().count() >= self.shortest);
        tokens
    }
}

impl Operator for Tokenizer {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let mut rows: Vec<Vec<&str>> = Vec::with_capacity(input.len());
        for item in input.strings()?.iter() {
            rows.push(self.tokens(utf8(item)?));
        }
        ctx.control.check()?;
        let mut width = rows.iter().map(Vec::len).max().unwrap_or(0);
        if self.mark && width > 0 {
            for row in &mut rows {
                row.insert(0, START_OF_TEXT);
                row.push(END_OF_TEXT);
            }
            width += 2;
        }
        let mut shape: Shape = input.shape().into();
        shape.push(width);
        Ok(smallvec![padded(&rows, width, &self.filler, &shape)?])
    }
}
