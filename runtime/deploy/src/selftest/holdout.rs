//! Labelled rows, and what they are scored with.

use super::checks::output;
use super::limit::{Limit, Metric};
use super::values::{Named, find, from_leaves, numbers};
use super::{Report, Run, data_file};
use mortise_types::{Bytes, DType, Error, Result, Tensor, TensorSpec};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

const DEFAULT_BATCH_ROWS: usize = 64;

/// `[holdout]` as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHoldout {
    file: Option<String>,
    text: Option<String>,
    label: String,
    output: Option<String>,
    #[serde(default)]
    classes: Vec<String>,
    batch_rows: Option<usize>,
    limits: Vec<String>,
    #[serde(default)]
    features: BTreeMap<String, Columns>,
}

/// The columns of one input.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Columns {
    One(String),
    Many(Vec<String>),
}

/// Labelled rows with the limits that the answers must meet.
#[derive(Debug)]
pub(super) struct Holdout {
    header: Vec<String>,
    rows: Vec<csv::StringRecord>,
    labels: Vec<String>,
    output: Option<String>,
    classes: Vec<String>,
    batch_rows: usize,
    limits: Vec<Limit>,
    features: BTreeMap<String, Columns>,
}

/// What the model said about every row.
struct Answers {
    /// Values a row.
    width: usize,
    values: Values,
}

enum Values {
    Numbers(Vec<f64>),
    Texts(Vec<String>),
}

impl RawHoldout {
    pub(super) fn read(self, data: &BTreeMap<String, Bytes>) -> Result<Holdout> {
        let text = match (&self.file, &self.text) {
            (Some(file), None) => data_file(data, file)?.clone(),
            (None, Some(text)) => Bytes::from(text.clone().into_bytes()),
            _ => return Err(Error::invalid("[holdout] needs either file or text")),
        };
        let (header, rows) = read_csv(&text)?;
        let label = column(&header, &self.label)?;
        let labels = rows.iter().map(|row| row.get(label).unwrap_or_default().to_string());
        let limits = self.limits.iter().map(|limit| Limit::parse(limit)).collect::<Result<_>>()?;
        let batch_rows = match self.batch_rows.unwrap_or(DEFAULT_BATCH_ROWS) {
            0 => rows.len(),
            count => count,
        };
        Ok(Holdout {
            labels: labels.collect(),
            header,
            rows,
            output: self.output,
            classes: self.classes,
            batch_rows,
            limits,
            features: self.features,
        })
    }
}

fn read_csv(text: &[u8]) -> Result<(Vec<String>, Vec<csv::StringRecord>)> {
    let wrong = |error: csv::Error| Error::invalid(format!("the hold-out's CSV: {error}"));
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text);
    let header = reader.headers().map_err(wrong)?.iter().map(str::to_string).collect();
    let rows: Vec<_> =
        reader.into_records().collect::<std::result::Result<_, _>>().map_err(wrong)?;
    match rows.is_empty() {
        true => Err(Error::invalid("the hold-out has no rows")),
        false => Ok((header, rows)),
    }
}

fn column(header: &[String], name: &str) -> Result<usize> {
    header.iter().position(|column| column == name).ok_or_else(|| {
        Error::invalid(format!("the hold-out has no column \"{name}\"; it has {header:?}"))
    })
}

impl Holdout {
    pub(super) fn check(
        &self,
        run: &Run<'_>,
        live: Option<&Run<'_>>,
        each_batch: &dyn Fn(&Named) -> Result<()>,
        report: &mut Report,
    ) -> Result<()> {
        report.holdout_rows = self.rows.len();
        let answers = self.answers(run, each_batch)?;
        let live = self.live_answers(live, report);
        for limit in &self.limits {
            let name = limit.metric.name();
            let value = self.score(limit.metric, &answers)?;
            report.metrics.insert(name.to_string(), value);
            let mut live_value = None;
            if let (true, Some(live)) = (limit.needs_live(), &live) {
                let value = self.score(limit.metric, live)?;
                report.live_metrics.insert(name.to_string(), value);
                live_value = Some(value);
            }
            limit.check(value, live_value)?;
        }
        Ok(())
    }

    /// What is live may be nothing, or take other inputs: a comparison with it
    /// is then passed over.
    fn live_answers(&self, live: Option<&Run<'_>>, report: &mut Report) -> Option<Answers> {
        if !self.limits.iter().any(Limit::needs_live) {
            return None;
        }
        let answers = match live {
            Some(live) => self.answers(live, &|_| Ok(())).map_err(|error| error.to_string()),
            None => Err("nothing is live".to_string()),
        };
        answers
            .map_err(|reason| {
                report.notes.push(format!("not compared with what is live: {reason}"));
            })
            .ok()
    }

    fn answers(&self, run: &Run<'_>, each_batch: &dyn Fn(&Named) -> Result<()>) -> Result<Answers> {
        let wanted = self.output_name(run)?;
        let mut answers: Option<Answers> = None;
        for (index, rows) in self.rows.chunks(self.batch_rows).enumerate() {
            let first = index * self.batch_rows;
            let batch = || -> Result<Answers> {
                let outputs = run.predict(self.inputs(run, rows)?)?;
                each_batch(&outputs)?;
                Answers::read(output(&outputs, wanted)?, rows.len())
            };
            let batch = batch()
                .map_err(|error| error.context(format_args!("hold-out, rows from {first}")))?;
            match &mut answers {
                Some(answers) => answers.append(batch)?,
                None => answers = Some(batch),
            }
        }
        answers.ok_or_else(|| Error::invalid("the hold-out has no rows"))
    }

    fn output_name<'a>(&'a self, run: &'a Run<'_>) -> Result<&'a str> {
        let outputs = &run.subject.signature().outputs;
        match (&self.output, outputs.as_slice()) {
            (Some(name), _) => find(outputs, name).map(|spec| spec.name.as_str()),
            (None, [only]) => Ok(&only.name),
            (None, _) => Err(Error::invalid(
                "the endpoint has several outputs: name the one to score, with [holdout] output",
            )),
        }
    }

    fn inputs(&self, run: &Run<'_>, rows: &[csv::StringRecord]) -> Result<Named> {
        let specs = &run.subject.signature().inputs;
        self.features.keys().try_for_each(|name| find(specs, name).map(drop))?;
        specs.iter().map(|spec| Ok((spec.name.clone(), self.input(spec, rows)?))).collect()
    }

    fn input(&self, spec: &TensorSpec, rows: &[csv::StringRecord]) -> Result<Tensor> {
        let columns = match self.features.get(&spec.name) {
            Some(Columns::Many(names)) => names.as_slice(),
            Some(Columns::One(name)) => std::slice::from_ref(name),
            None => std::slice::from_ref(&spec.name),
        };
        let columns: Vec<usize> =
            columns.iter().map(|name| column(&self.header, name)).collect::<Result<_>>()?;
        let shape = input_shape(spec, rows.len(), columns.len())?;
        let mut leaves = Vec::with_capacity(rows.len() * columns.len());
        for row in rows {
            for &column in &columns {
                let field = row.get(column).unwrap_or_default();
                leaves.push(parse_field(field, spec.dtype).map_err(|error| {
                    error.context(format_args!("column \"{}\"", self.header[column]))
                })?);
            }
        }
        from_leaves(spec.dtype, &shape, &leaves.iter().collect::<Vec<_>>())
    }

    fn score(&self, metric: Metric, answers: &Answers) -> Result<f64> {
        match metric {
            Metric::Accuracy => self.accuracy(answers),
            Metric::Auc => self.auc(answers),
            Metric::Mae => {
                let errors = self.errors(metric, answers)?;
                Ok(errors.iter().map(|error| error.abs()).sum::<f64>() / errors.len() as f64)
            }
            Metric::Rmse => {
                let errors = self.errors(metric, answers)?;
                let squares: f64 = errors.iter().map(|error| error * error).sum();
                Ok((squares / errors.len() as f64).sqrt())
            }
        }
    }

    fn accuracy(&self, answers: &Answers) -> Result<f64> {
        let right = match &answers.values {
            Values::Texts(texts) if answers.width == 1 => {
                let same = |(text, label): &(&String, &String)| text.trim() == label.as_str();
                texts.iter().zip(&self.labels).filter(same).count()
            }
            Values::Texts(_) => {
                return Err(Error::invalid("accuracy needs one text a row, or numbers"));
            }
            Values::Numbers(numbers) => {
                let rows = numbers.chunks(answers.width).zip(&self.labels);
                rows.filter(|(row, label)| self.is_right(row, label)).count()
            }
        };
        Ok(right as f64 / self.rows.len() as f64)
    }

    /// One number a row is the class itself; several are a score for each.
    fn is_right(&self, row: &[f64], label: &str) -> bool {
        let number = || label.parse::<f64>().ok();
        if let [value] = row {
            return number() == Some(*value);
        }
        let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(index, _)| index);
        match best {
            Some(best) if self.classes.is_empty() => number() == Some(best as f64),
            Some(best) => self.classes.get(best).is_some_and(|class| class == label),
            None => false,
        }
    }

    fn errors(&self, metric: Metric, answers: &Answers) -> Result<Vec<f64>> {
        let Answers { width: 1, values: Values::Numbers(numbers) } = answers else {
            return Err(Error::invalid(format!("{} needs one number a row", metric.name())));
        };
        let rows = numbers.iter().zip(&self.labels);
        rows.map(|(value, label)| Ok(value - self.number_label(label)?)).collect()
    }

    fn number_label(&self, label: &str) -> Result<f64> {
        let number = label.parse().ok();
        number.ok_or_else(|| Error::invalid(format!("the label \"{label}\" is not a number")))
    }

    /// The share of pairs of a positive and a negative row that are in order,
    /// by the sum of the positive rows' ranks (Mann and Whitney, 1947), ties
    /// counting half.
    fn auc(&self, answers: &Answers) -> Result<f64> {
        let mut rows = self.scores(answers)?.into_iter().zip(self.positives()?).collect::<Vec<_>>();
        rows.sort_by(|left, right| left.0.total_cmp(&right.0));
        let mut rank_sum = 0.0;
        let mut before = 0usize;
        for tied in rows.chunk_by(|left, right| left.0 == right.0) {
            let mean_rank = before as f64 + (tied.len() as f64 + 1.0) / 2.0;
            let positives = tied.iter().filter(|(_, is_positive)| *is_positive).count();
            rank_sum += mean_rank * positives as f64;
            before += tied.len();
        }
        let positives = rows.iter().filter(|(_, is_positive)| *is_positive).count() as f64;
        let negatives = rows.len() as f64 - positives;
        Ok((rank_sum - positives * (positives + 1.0) / 2.0) / (positives * negatives))
    }

    fn scores(&self, answers: &Answers) -> Result<Vec<f64>> {
        match (&answers.values, answers.width) {
            (Values::Numbers(numbers), 1 | 2) => {
                Ok(numbers.chunks(answers.width).filter_map(|row| row.last().copied()).collect())
            }
            _ => Err(Error::invalid("auc needs one number a row, or two of which the last counts")),
        }
    }

    fn positives(&self) -> Result<Vec<bool>> {
        let mut classes: Vec<&String> = self.labels.iter().collect();
        let number = |label: &String| label.parse::<f64>().unwrap_or(f64::NAN);
        classes.sort_by(|a, b| number(a).total_cmp(&number(b)).then_with(|| a.cmp(b)));
        classes.dedup();
        let [_, positive] = classes.as_slice() else {
            return Err(Error::invalid(format!(
                "auc needs labels of two classes, the hold-out has {}",
                classes.len()
            )));
        };
        Ok(self.labels.iter().map(|label| label == *positive).collect())
    }
}

impl Answers {
    fn read(tensor: &Tensor, rows: usize) -> Result<Self> {
        let values = match tensor.strings() {
            Ok(texts) => Values::Texts(
                texts.iter().map(|text| String::from_utf8_lossy(text).into()).collect(),
            ),
            Err(_) => Values::Numbers(numbers(tensor).ok_or_else(|| {
                Error::invalid(format!("an output of type {} cannot be scored", tensor.dtype()))
            })?),
        };
        let width = tensor.len() / rows.max(1);
        if width == 0 || width * rows != tensor.len() {
            return Err(Error::invalid(format!(
                "the scored output has shape {:?} for {rows} rows",
                tensor.shape()
            )));
        }
        Ok(Self { width, values })
    }

    fn append(&mut self, other: Self) -> Result<()> {
        match (&mut self.values, other.values) {
            (Values::Numbers(mine), Values::Numbers(more)) if self.width == other.width => {
                mine.extend(more);
            }
            (Values::Texts(mine), Values::Texts(more)) if self.width == other.width => {
                mine.extend(more);
            }
            _ => return Err(Error::invalid("the scored output differs in width between batches")),
        }
        Ok(())
    }
}

/// The first dimension is the batch; the columns fill the others.
pub(super) fn input_shape(spec: &TensorSpec, rows: usize, columns: usize) -> Result<Vec<usize>> {
    let rest = spec.shape.get(1..).unwrap_or_default();
    let fixed: Option<Vec<usize>> = rest.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let tail = match (fixed, rest) {
        (Some(fixed), _) if fixed.iter().product::<usize>() == columns => fixed,
        (None, [_]) => vec![columns],
        _ => {
            return Err(Error::invalid(format!(
                "input {spec} cannot be made of {columns} columns; list its columns under \
                 [holdout.features]"
            )));
        }
    };
    Ok([rows].into_iter().chain(tail).collect())
}

pub(super) fn parse_field(field: &str, dtype: DType) -> Result<Value> {
    if dtype == DType::String {
        return Ok(Value::from(field));
    }
    if dtype == DType::Bool
        && (field.eq_ignore_ascii_case("true") || field.eq_ignore_ascii_case("false"))
    {
        return Ok(Value::Bool(field.eq_ignore_ascii_case("true")));
    }
    if field.is_empty() && dtype.is_float() {
        return Ok(Value::Null);
    }
    let whole = field.parse::<i64>().map(Value::from).ok();
    let number = whole.or_else(|| field.parse::<f64>().ok().map(float_value));
    number.ok_or_else(|| Error::invalid(format!("\"{field}\" is not a number")))
}

/// JSON has no infinities; they are written as text, and NaN as nothing.
fn float_value(value: f64) -> Value {
    match value {
        f64::INFINITY => Value::from("inf"),
        f64::NEG_INFINITY => Value::from("-inf"),
        _ => Value::from(value),
    }
}
