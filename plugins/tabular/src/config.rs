//! The configuration as it is written, and its meaning once checked: every
//! step refers to columns that exist and have the type that it needs.

use mortise_plugin_sdk::{DType, Error, Result, TensorSpec, VARIABLE};
use serde::Deserialize;
use std::collections::{BTreeMap, HashSet};

/// As written in JSON; see the crate's documentation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Raw {
    columns: Vec<RawColumn>,
    #[serde(default)]
    steps: Vec<RawStep>,
    #[serde(default)]
    output: RawOutput,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawColumn {
    name: String,
    #[serde(rename = "type")]
    kind: RawKind,
    /// Of numbers: `FP32` (the default), `FP64` or `INT64`.
    dtype: Option<String>,
    /// Of numbers: how many a row has; 1 by default.
    width: Option<usize>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawKind {
    Number,
    String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case", deny_unknown_fields)]
enum RawStep {
    Impute {
        values: BTreeMap<String, Literal>,
    },
    Scale {
        columns: BTreeMap<String, RawScale>,
    },
    Clip {
        columns: BTreeMap<String, RawClip>,
    },
    Log {
        columns: Vec<String>,
        #[serde(default)]
        plus_one: bool,
    },
    OneHot {
        columns: BTreeMap<String, Vec<Literal>>,
        #[serde(default)]
        unknown: Unknown,
    },
    Bin {
        columns: BTreeMap<String, RawBin>,
    },
}

/// A number or a string in the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Literal {
    Number(f64),
    Text(String),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum RawScale {
    Standard { mean: f64, std: f64 },
    Range { min: f64, max: f64 },
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClip {
    min: Option<f64>,
    max: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBin {
    edges: Vec<f64>,
    labels: Option<Vec<String>>,
    #[serde(default)]
    closed: Closed,
}

/// What a category that is not listed does.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unknown {
    /// Its row is all zeros.
    #[default]
    Ignore,
    /// The request fails.
    Error,
}

/// Which end of a bin belongs to it.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Closed {
    /// `[20, 30)`, as NumPy's `digitize`.
    #[default]
    Left,
    /// `(20, 30]`, as pandas' `cut`.
    Right,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawOutput {
    name: String,
    columns: Option<Vec<String>>,
}

impl Default for RawOutput {
    fn default() -> Self {
        Self { name: "features".into(), columns: None }
    }
}

/// The checked configuration. Columns are referred to by index.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pipeline {
    pub(crate) columns: Vec<Column>,
    pub(crate) steps: Vec<Step>,
    pub(crate) output_name: String,
    pub(crate) output_columns: Vec<usize>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    /// Values in each row: more than 1 for vectors of numbers.
    pub(crate) width: usize,
}

impl Column {
    /// The tensor of a request: `[rows, width]`.
    pub(crate) fn spec(&self) -> TensorSpec {
        let width = i64::try_from(self.width).unwrap_or(VARIABLE);
        TensorSpec::new(&self.name, self.dtype, [VARIABLE, width])
    }
}

/// One step for some columns.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Replaces NaN.
    ImputeNumbers(Vec<(usize, f64)>),
    /// Replaces the empty string.
    ImputeTexts(Vec<(usize, String)>),
    /// `(x - shift) / divisor`.
    Scale(Vec<(usize, Affine)>),
    /// Limits, infinite where there is none.
    Clip(Vec<(usize, Limits)>),
    /// The natural logarithm of `x`, or of `1 + x`.
    Log {
        columns: Vec<usize>,
        plus_one: bool,
    },
    OneHot(Vec<(usize, Categories)>, Unknown),
    Bin(Vec<(usize, Bins)>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Affine {
    pub(crate) shift: f64,
    pub(crate) divisor: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limits {
    pub(crate) min: f64,
    pub(crate) max: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Categories {
    Numbers(Vec<f64>),
    Texts(Vec<String>),
}

impl Categories {
    fn len(&self) -> usize {
        match self {
            Self::Numbers(numbers) => numbers.len(),
            Self::Texts(texts) => texts.len(),
        }
    }
}

/// `labels` has one entry more than `edges`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bins {
    pub(crate) edges: Vec<f64>,
    pub(crate) labels: Vec<String>,
    pub(crate) closed: Closed,
}

/// What a column holds at some point of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Number,
    /// Several numbers in each row.
    Vector,
    Text,
    /// One-hot columns.
    Block,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Number => "a number",
            Self::Vector => "a vector",
            Self::Text => "a string",
            Self::Block => "already one-hot",
        }
    }
}

impl Pipeline {
    /// # Errors
    /// [`Error::Invalid`] says which key is wrong and what would be right.
    pub(crate) fn new(raw: Raw) -> Result<Self> {
        let columns = raw.columns.iter().map(column).collect::<Result<Vec<_>>>()?;
        check_names(&columns)?;
        let kinds = columns.iter().map(initial_kind).collect();
        let mut checker = Checker { columns: &columns, kinds };
        let mut steps = Vec::new();
        for (index, step) in raw.steps.into_iter().enumerate() {
            let checked = checker.step(step);
            steps.extend(checked.map_err(|error| error.context(format!("step {}", index + 1)))?);
        }
        let output_columns =
            checker.output(raw.output.columns).map_err(|error| error.context("output"))?;
        Ok(Self { columns, steps, output_name: raw.output.name, output_columns })
    }

    /// Whether a graph can express all steps; one that refuses requests by
    /// their values needs code.
    pub(crate) fn is_graph(&self) -> bool {
        !self.steps.iter().any(|step| matches!(step, Step::OneHot(_, Unknown::Error)))
    }

    /// How many features the output has.
    pub(crate) fn width(&self) -> usize {
        self.output_columns.iter().map(|&column| self.column_width(column)).sum()
    }

    fn column_width(&self, column: usize) -> usize {
        let mut one_hots = self.steps.iter().filter_map(|step| match step {
            Step::OneHot(columns, _) => columns.iter().find(|(index, _)| *index == column),
            _ => None,
        });
        let width = self.columns[column].width;
        one_hots.next_back().map_or(width, |(_, categories)| categories.len())
    }
}

fn column(raw: &RawColumn) -> Result<Column> {
    let dtype = match (raw.kind, raw.dtype.as_deref()) {
        (RawKind::String, None | Some("BYTES")) => DType::String,
        (RawKind::Number, None | Some("FP32")) => DType::F32,
        (RawKind::Number, Some("FP64")) => DType::F64,
        (RawKind::Number, Some("INT64")) => DType::I64,
        (kind, Some(other)) => {
            let choices = match kind {
                RawKind::Number => "FP32, FP64 or INT64",
                RawKind::String => "BYTES",
            };
            return Err(Error::invalid(format!(
                "column \"{}\" has the dtype {other}; it can be {choices}",
                raw.name
            )));
        }
    };
    let width = raw.width.unwrap_or(1);
    match (dtype, width) {
        (_, 0) => Err(Error::invalid(format!("column \"{}\" has the width 0", raw.name))),
        (DType::String, 2..) => Err(Error::invalid(format!(
            "column \"{}\" has a width, which is for numbers; strings have a column each",
            raw.name
        ))),
        _ => Ok(Column { name: raw.name.clone(), dtype, width }),
    }
}

fn check_names(columns: &[Column]) -> Result<()> {
    if columns.is_empty() {
        return Err(Error::invalid("\"columns\" is empty; list the columns of a request"));
    }
    let mut seen = HashSet::new();
    match columns.iter().find(|column| !seen.insert(&column.name)) {
        Some(column) => Err(Error::invalid(format!("column \"{}\" is listed twice", column.name))),
        None => Ok(()),
    }
}

fn initial_kind(column: &Column) -> Kind {
    match (column.dtype, column.width) {
        (DType::String, _) => Kind::Text,
        (_, 1) => Kind::Number,
        _ => Kind::Vector,
    }
}

/// Follows what each column holds from step to step.
struct Checker<'a> {
    columns: &'a [Column],
    kinds: Vec<Kind>,
}

impl Checker<'_> {
    fn step(&mut self, raw: RawStep) -> Result<Vec<Step>> {
        Ok(match raw {
            RawStep::Impute { values } => self.impute(values)?,
            RawStep::Scale { columns } => vec![Step::Scale(self.numbers(columns, affine)?)],
            RawStep::Clip { columns } => vec![Step::Clip(self.numbers(columns, limits)?)],
            RawStep::Log { columns, plus_one } => {
                let find = |name: &String| self.find_number(name);
                let columns = columns.iter().map(find).collect::<Result<_>>()?;
                vec![Step::Log { columns, plus_one }]
            }
            RawStep::OneHot { columns, unknown } => self.one_hot(columns, unknown)?,
            RawStep::Bin { columns } => {
                let columns = self.numbers(columns, bins)?;
                columns.iter().try_for_each(|(index, _)| self.check_single(*index))?;
                columns.iter().for_each(|(index, _)| self.kinds[*index] = Kind::Text);
                vec![Step::Bin(columns)]
            }
        })
    }

    fn impute(&self, values: BTreeMap<String, Literal>) -> Result<Vec<Step>> {
        let (mut numbers, mut texts) = (Vec::new(), Vec::new());
        for (name, value) in values {
            let index = self.find(&name)?;
            match (self.kinds[index], value) {
                (Kind::Number | Kind::Vector, Literal::Number(value)) => {
                    numbers.push((index, value))
                }
                (Kind::Text, Literal::Text(value)) => texts.push((index, value)),
                (kind, _) => return Err(self.wrong_kind(index, kind, "a value of its own type")),
            }
        }
        let steps = [Step::ImputeNumbers(numbers), Step::ImputeTexts(texts)];
        Ok(steps.into_iter().filter(|step| !step.is_empty()).collect())
    }

    fn one_hot(
        &mut self,
        columns: BTreeMap<String, Vec<Literal>>,
        unknown: Unknown,
    ) -> Result<Vec<Step>> {
        let mut checked = Vec::new();
        for (name, categories) in columns {
            let index = self.find(&name)?;
            let categories = self.categories(index, categories)?;
            self.kinds[index] = Kind::Block;
            checked.push((index, categories));
        }
        Ok(vec![Step::OneHot(checked, unknown)])
    }

    fn categories(&self, index: usize, categories: Vec<Literal>) -> Result<Categories> {
        let kind = self.kinds[index];
        if categories.is_empty() {
            return Err(Error::invalid(format!(
                "column \"{}\" has no categories",
                self.columns[index].name
            )));
        }
        let wrong = || self.wrong_kind(index, kind, "categories of its own type");
        match kind {
            Kind::Number => {
                let number = |literal: &Literal| match literal {
                    Literal::Number(value) => Ok(*value),
                    Literal::Text(_) => Err(wrong()),
                };
                Ok(Categories::Numbers(categories.iter().map(number).collect::<Result<_>>()?))
            }
            Kind::Text => {
                let text = |literal: Literal| match literal {
                    Literal::Text(value) => Ok(value),
                    Literal::Number(_) => Err(wrong()),
                };
                Ok(Categories::Texts(categories.into_iter().map(text).collect::<Result<_>>()?))
            }
            Kind::Vector => Err(self.wrong_kind(index, kind, "a number or a string")),
            Kind::Block => Err(wrong()),
        }
    }

    fn check_single(&self, index: usize) -> Result<()> {
        match self.kinds[index] {
            kind @ Kind::Vector => Err(self.wrong_kind(index, kind, "a number")),
            _ => Ok(()),
        }
    }

    fn output(&self, names: Option<Vec<String>>) -> Result<Vec<usize>> {
        let columns = match names {
            None => (0..self.columns.len()).collect(),
            Some(names) => names.iter().map(|name| self.find(name)).collect::<Result<Vec<_>>>()?,
        };
        if columns.is_empty() {
            return Err(Error::invalid("\"columns\" is empty"));
        }
        match columns.iter().find(|&&index| self.kinds[index] == Kind::Text) {
            Some(&index) => Err(Error::invalid(format!(
                "column \"{}\" is a string at the end; add a one_hot step for it, or leave it out of \
                 output.columns",
                self.columns[index].name
            ))),
            None => Ok(columns),
        }
    }

    /// Checks the parameters of columns that must be numbers.
    fn numbers<R, P>(
        &self,
        columns: BTreeMap<String, R>,
        check: fn(R) -> Result<P, String>,
    ) -> Result<Vec<(usize, P)>> {
        let mut checked = Vec::new();
        for (name, raw) in columns {
            let index = self.find_number(&name)?;
            let parameters = check(raw)
                .map_err(|problem| Error::invalid(format!("column \"{name}\": {problem}")))?;
            checked.push((index, parameters));
        }
        Ok(checked)
    }

    fn find_number(&self, name: &str) -> Result<usize> {
        let index = self.find(name)?;
        match self.kinds[index] {
            Kind::Number | Kind::Vector => Ok(index),
            kind => Err(self.wrong_kind(index, kind, "a number")),
        }
    }

    fn find(&self, name: &str) -> Result<usize> {
        let found = self.columns.iter().position(|column| column.name == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = self.columns.iter().map(|column| &*column.name).collect();
            let hint = closest(name, &names)
                .map(|close| format!("did you mean \"{close}\"? "))
                .unwrap_or_default();
            Error::invalid(format!(
                "there is no column \"{name}\"; {hint}the columns are {names:?}"
            ))
        })
    }

    fn wrong_kind(&self, index: usize, kind: Kind, want: &str) -> Error {
        let name = &self.columns[index].name;
        Error::invalid(format!("column \"{name}\" is {} here; the step needs {want}", kind.name()))
    }
}

impl Step {
    fn is_empty(&self) -> bool {
        match self {
            Self::ImputeNumbers(columns) => columns.is_empty(),
            Self::ImputeTexts(columns) => columns.is_empty(),
            _ => false,
        }
    }
}

fn affine(raw: RawScale) -> Result<Affine, String> {
    match raw {
        RawScale::Standard { std, .. } if std <= 0.0 => Err(format!("std is {std}, not above 0")),
        RawScale::Standard { mean, std } => Ok(Affine { shift: mean, divisor: std }),
        RawScale::Range { min, max } if max <= min => {
            Err(format!("max is {max}, not above min, which is {min}"))
        }
        RawScale::Range { min, max } => Ok(Affine { shift: min, divisor: max - min }),
    }
}

fn limits(raw: RawClip) -> Result<Limits, String> {
    let min = raw.min.unwrap_or(f64::NEG_INFINITY);
    let max = raw.max.unwrap_or(f64::INFINITY);
    if raw.min.is_none() && raw.max.is_none() {
        return Err("give min, max or both".into());
    }
    if min > max {
        return Err(format!("min is {min}, above max, which is {max}"));
    }
    Ok(Limits { min, max })
}

fn bins(raw: RawBin) -> Result<Bins, String> {
    if raw.edges.is_empty() || raw.edges.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err(format!("edges must ascend, they are {:?}", raw.edges));
    }
    let labels = raw.labels.unwrap_or_else(|| bin_labels(&raw.edges, raw.closed));
    if labels.len() != raw.edges.len() + 1 {
        return Err(format!(
            "{} edges make {} bins, there are {} labels",
            raw.edges.len(),
            raw.edges.len() + 1,
            labels.len()
        ));
    }
    Ok(Bins { edges: raw.edges, labels, closed: raw.closed })
}

/// `<20`, `20-30`, `>=30`.
fn bin_labels(edges: &[f64], closed: Closed) -> Vec<String> {
    let (below, above) = match closed {
        Closed::Left => ("<", ">="),
        Closed::Right => ("<=", ">"),
    };
    let first = edges.first().map(|edge| format!("{below}{edge}"));
    let last = edges.last().map(|edge| format!("{above}{edge}"));
    let inner = edges.windows(2).map(|pair| format!("{}-{}", pair[0], pair[1]));
    first.into_iter().chain(inner).chain(last).collect()
}

/// The name that differs from `name` by the fewest edits, when they are few.
fn closest<'n>(name: &str, names: &[&'n str]) -> Option<&'n str> {
    let scored = names.iter().map(|other| (edits(name, other), *other));
    let (distance, best) = scored.min()?;
    let length = name.chars().count();
    (distance <= 2.max(length / 3) && distance < length).then_some(best)
}

/// The Levenshtein distance: one row of the table at a time.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (index, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, &to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(config: &str) -> String {
        let raw: Result<Raw> = mortise_plugin_sdk::Context::new(config).config();
        raw.and_then(Pipeline::new).unwrap_err().message().to_owned()
    }

    fn with_steps(steps: &str) -> String {
        let columns = r#"[{"name": "age", "type": "number"}, {"name": "city", "type": "string"}]"#;
        error(&format!(r#"{{"columns": {columns}, "steps": [{steps}]}}"#))
    }

    #[test]
    fn wrong_configurations_say_what_would_be_right() {
        let cases = [
            (
                r#"{"step": "scale", "columns": {"aeg": {"mean": 1, "std": 2}}}"#,
                "step 1: there is no column \"aeg\"; did you mean \"age\"? the columns are [\"age\", \"city\"]",
            ),
            (
                r#"{"step": "scale", "columns": {"city": {"mean": 1, "std": 2}}}"#,
                "step 1: column \"city\" is a string here; the step needs a number",
            ),
            (
                r#"{"step": "scale", "columns": {"age": {"mean": 1, "std": 0}}}"#,
                "step 1: column \"age\": std is 0, not above 0",
            ),
            (
                r#"{"step": "clip", "columns": {"age": {"min": 3, "max": 2}}}"#,
                "step 1: column \"age\": min is 3, above max, which is 2",
            ),
            (
                r#"{"step": "bin", "columns": {"age": {"edges": [1, 2], "labels": ["a"]}}}"#,
                "step 1: column \"age\": 2 edges make 3 bins, there are 1 labels",
            ),
            (
                r#"{"step": "impute", "values": {"age": "old"}}"#,
                "step 1: column \"age\" is a number here; the step needs a value of its own type",
            ),
            (
                r#"{"step": "log", "columns": ["age"]}"#,
                "output: column \"city\" is a string at the end; add a one_hot step for it, or leave \
                 it out of output.columns",
            ),
        ];
        for (steps, want) in cases {
            assert_eq!(with_steps(steps), want);
        }
    }

    #[test]
    fn vectors_are_of_numbers_and_stay_whole() {
        let with = |column: &str, steps: &str| {
            error(&format!(r#"{{"columns": [{column}], "steps": [{steps}]}}"#))
        };
        let pixels = r#"{"name": "x", "type": "number", "width": 3}"#;
        let cases = [
            (pixels, r#"{"step": "one_hot", "columns": {"x": [1]}}"#),
            (pixels, r#"{"step": "bin", "columns": {"x": {"edges": [1]}}}"#),
        ];
        for (column, step) in cases {
            let message = with(column, step);
            assert!(message.contains("column \"x\" is a vector here"), "{message}");
        }
        let texts = with(r#"{"name": "x", "type": "string", "width": 2}"#, "");
        assert!(texts.contains("strings have a column each"), "{texts}");
        let none = with(r#"{"name": "x", "type": "number", "width": 0}"#, "");
        assert!(none.contains("has the width 0"), "{none}");
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(error(r#"{"colums": []}"#).contains("unknown field `colums`"));
        let unknown = with_steps(r#"{"step": "log", "columns": ["age"], "plus": true}"#);
        assert!(unknown.contains("unknown field `plus`"), "{unknown}");
        let step = with_steps(r#"{"step": "onehot", "columns": {}}"#);
        assert!(step.contains("unknown variant `onehot`, expected one of `impute`"), "{step}");
    }

    #[test]
    fn bins_are_named_after_their_edges() {
        assert_eq!(bin_labels(&[20.0, 30.0], Closed::Left), ["<20", "20-30", ">=30"]);
        assert_eq!(bin_labels(&[0.5], Closed::Right), ["<=0.5", ">0.5"]);
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
    }
}
