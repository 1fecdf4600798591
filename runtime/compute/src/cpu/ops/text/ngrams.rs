//! `TfIdfVectorizer`: how often known runs of tokens occur.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::layout::{dim, integers};
use mortise_types::{DType, Error, NodeDef, Result, Tensor};
use smallvec::smallvec;
use std::collections::HashMap;

/// Most columns of the output.
const MAX_COLUMNS: i64 = 1 << 26;

pub(super) struct TfIdfVectorizer {
    words: Words,
    /// By length less one: n-grams as word numbers, and their numbers.
    grams: Vec<HashMap<Vec<u32>, usize>>,
    /// By n-gram: its column.
    columns: Vec<usize>,
    /// By column; empty where all are 1.
    weights: Vec<f32>,
    mode: Mode,
    shortest: usize,
    longest: usize,
    /// How many words may lie between two of an n-gram.
    most_skipped: usize,
    width: usize,
}

/// Numbers of the words that n-grams consist of.
enum Words {
    Ints(HashMap<i64, u32>),
    Strings(HashMap<Vec<u8>, u32>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Counts,
    Weights,
    Products,
}

impl Words {
    /// The word numbers of the pool, in its order.
    fn of(attributes: &Attributes<'_>) -> Result<(Self, Vec<u32>)> {
        if let Some(pool) = attributes.texts("pool_strings")?.filter(|pool| !pool.is_empty()) {
            let mut words = HashMap::new();
            let numbers = pool.iter().map(|word| {
                let next = words.len() as u32;
                *words.entry(word.clone()).or_insert(next)
            });
            let numbers = numbers.collect();
            return Ok((Self::Strings(words), numbers));
        }
        let pool = attributes.ints("pool_int64s")?.unwrap_or(&[]);
        let mut words = HashMap::new();
        let numbers = pool.iter().map(|&word| {
            let next = words.len() as u32;
            *words.entry(word).or_insert(next)
        });
        let numbers = numbers.collect();
        Ok((Self::Ints(words), numbers))
    }

    fn numbers(&self, input: &Tensor) -> Result<Vec<Option<u32>>> {
        match self {
            Self::Strings(words) => {
                Ok(input.strings()?.iter().map(|word| words.get(word).copied()).collect())
            }
            Self::Ints(words) => {
                Ok(integers(input)?.iter().map(|word| words.get(word).copied()).collect())
            }
        }
    }
}

impl TfIdfVectorizer {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let mode = match attributes.text("mode")?.unwrap_or("") {
            "TF" => Mode::Counts,
            "IDF" => Mode::Weights,
            "TFIDF" => Mode::Products,
            other => return Err(Error::unsupported(format!("mode \"{other}\""))),
        };
        let (words, pool) = Words::of(&attributes)?;
        let starts = attributes.ints("ngram_counts")?.unwrap_or(&[]);
        let indexes = attributes.ints("ngram_indexes")?.unwrap_or(&[]);
        if indexes.iter().any(|&column| !(0..MAX_COLUMNS).contains(&column)) {
            return Err(Error::invalid(format!("ngram_indexes must be below {MAX_COLUMNS}")));
        }
        let grams = grams(&pool, starts)?;
        let count: usize = grams.iter().map(HashMap::len).sum();
        let weights = attributes.floats("weights")?.unwrap_or(&[]).to_vec();
        if indexes.len() < count || !(weights.is_empty() || weights.len() == indexes.len()) {
            return Err(Error::invalid(format!(
                "{count} n-grams need as many ngram_indexes and weights, got {} and {}",
                indexes.len(),
                weights.len()
            )));
        }
        let columns: Vec<usize> = indexes.iter().map(|&column| column as usize).collect();
        let width = columns.iter().max().map_or(0, |&column| column + 1);
        Ok(Box::new(Self {
            words,
            grams,
            weights: by_column(&weights, &columns, width),
            columns,
            mode,
            shortest: dim(attributes.int_or("min_gram_length", 1)?)?.max(1),
            longest: dim(attributes.int_or("max_gram_length", 1)?)?,
            most_skipped: dim(attributes.int_or("max_skip_count", 0)?)?,
            width,
        }))
    }

    /// Calls `found` with the number of every n-gram that occurs in a row.
    fn scan(
        &self,
        ctx: &OpContext<'_>,
        row: &[Option<u32>],
        mut found: impl FnMut(usize),
    ) -> Result<()> {
        let mut gram = Vec::with_capacity(self.longest.min(self.grams.len()));
        for length in self.shortest..=self.longest.min(self.grams.len()) {
            let known = &self.grams[length - 1];
            // A single word has no gaps to skip in.
            let most = if length == 1 { 0 } else { self.most_skipped.min(row.len()) };
            for step in 1..=most + 1 {
                ctx.control.check()?;
                let reach = (length - 1).saturating_mul(step);
                for start in 0..row.len().saturating_sub(reach) {
                    gram.clear();
                    gram.extend(row[start..=start + reach].iter().step_by(step).map_while(|w| *w));
                    if gram.len() == length
                        && let Some(&number) = known.get(&gram)
                    {
                        found(number);
                    }
                }
            }
        }
        Ok(())
    }

    fn weigh(&self, column: usize, count: f32) -> f32 {
        let weight = self.weights.get(column).copied().unwrap_or(1.0);
        match self.mode {
            Mode::Counts => count,
            Mode::Weights if count > 0.0 => weight,
            Mode::Weights => 0.0,
            Mode::Products => count * weight,
        }
    }
}

/// The weights of n-grams at their columns.
fn by_column(weights: &[f32], columns: &[usize], width: usize) -> Vec<f32> {
    let mut spread = vec![1.0; if weights.is_empty() { 0 } else { width }];
    for (&weight, &column) in weights.iter().zip(columns) {
        spread[column] = weight;
    }
    spread
}

/// Cuts the pool into n-grams: those of length `n` start at `starts[n - 1]`.
fn grams(pool: &[u32], starts: &[i64]) -> Result<Vec<HashMap<Vec<u32>, usize>>> {
    let mut number = 0;
    let mut grams = Vec::with_capacity(starts.len());
    for (at, &start) in starts.iter().enumerate() {
        let length = at + 1;
        let end = starts.get(at + 1).copied().unwrap_or(pool.len() as i64);
        let part = usize::try_from(start)
            .ok()
            .zip(usize::try_from(end).ok())
            .and_then(|(start, end)| pool.get(start..end))
            .filter(|part| part.len().is_multiple_of(length))
            .ok_or_else(|| {
                Error::invalid(format!("ngram_counts {starts:?} do not fit the pool"))
            })?;
        let mut known = HashMap::new();
        for gram in part.chunks_exact(length) {
            known.insert(gram.to_vec(), number);
            number += 1;
        }
        if known.len() != part.len() / length {
            return Err(Error::invalid(format!("the pool has an n-gram of length {length} twice")));
        }
        grams.push(known);
    }
    Ok(grams)
}

impl Operator for TfIdfVectorizer {
    fn run(&self, ctx: &OpContext<'_>, inputs: Inputs<'_>) -> Result<Outputs> {
        let input = inputs.tensor(0)?;
        let (rows, length, shape) = match *input.shape() {
            [length] => (1, length, vec![self.width]),
            [rows, length] => (rows, length, vec![rows, self.width]),
            _ => return Err(Error::invalid(format!("expected [c] or [n, c], got {input:?}"))),
        };
        let numbers = self.words.numbers(input)?;
        let mut output = ctx.allocate(DType::F32, &shape)?;
        let cells = output.as_mut_slice::<f32>()?;
        cells.fill(0.0);
        for row in 0..rows {
            let line = &mut cells[row * self.width..(row + 1) * self.width];
            self.scan(ctx, &numbers[row * length..(row + 1) * length], |gram| {
                line[self.columns[gram]] += 1.0;
            })?;
            for (column, cell) in line.iter_mut().enumerate() {
                *cell = self.weigh(column, *cell);
            }
        }
        Ok(smallvec![output.into()])
    }
}
