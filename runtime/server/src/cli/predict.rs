use super::CliError;
use super::args::PredictArgs;
use super::client::{AdminFile, HttpClient, segment};
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use tensors::{InputSpec, input_json, table_of_outputs};

mod tensors;

/// # Errors
/// When the input does not fit the model, or the server refuses it.
pub(super) fn run(args: &PredictArgs) -> Result<()> {
    let model = Model::connect(args)?;
    match (&args.row, &args.json, &args.csv) {
        (Some(row), ..) => {
            let columns = parse_row(row)?;
            print_outputs(&model.infer(&model.request(&columns, 1)?)?);
            Ok(())
        }
        (_, Some(path), _) => {
            print_outputs(&model.infer(&model.request_from_json(path)?)?);
            Ok(())
        }
        (_, _, Some(path)) => predict_csv(&model, path, args),
        _ => bail!("one of --row, --json and --csv is needed"),
    }
}

/// An endpoint on the data plane.
pub(super) struct Model {
    client: HttpClient,
    path: String,
    inputs: Vec<InputSpec>,
}

/// A named column with one value for each row.
pub(super) struct Column {
    name: String,
    values: Vec<Value>,
}

impl Model {
    fn connect(args: &PredictArgs) -> Result<Self> {
        let version = args.version.map(|version| format!("/versions/{version}"));
        let path = format!("{}{}", segment(&args.name), version.unwrap_or_default());
        Self::at(path, args.url.as_deref(), args.store.as_deref())
    }

    /// The live version of an endpoint.
    pub(super) fn of(name: &str, url: Option<&str>, store: Option<&Path>) -> Result<Self> {
        Self::at(segment(name), url, store)
    }

    fn at(model: String, url: Option<&str>, store: Option<&Path>) -> Result<Self> {
        let url = match url {
            Some(url) => url.to_string(),
            None => AdminFile::read(store)?.http,
        };
        let client = HttpClient::new(&url, None);
        let path = format!("/v2/models/{model}");
        let metadata = client.json("GET", &path, ureq::SendBody::none())?;
        let inputs = serde_json::from_value(metadata["inputs"].clone())
            .context("the server's metadata has no inputs")?;
        Ok(Self { client, path, inputs })
    }

    /// As `infer`, with a header.
    pub(super) fn ask(&self, request: &str, header: Option<(&str, &str)>) -> Result<Value> {
        self.client.json_with("POST", &format!("{}/infer", self.path), header, request)
    }

    /// A request of one row; a lone input takes the columns that its shape has
    /// room for.
    pub(super) fn request_of_row(&self, header: &[String], row: &[String]) -> Result<String> {
        let columns = header.iter().zip(row).map(|(name, value)| Column {
            name: name.clone(),
            values: vec![Value::from(value.as_str())],
        });
        let is_input = |column: &Column| self.inputs.iter().any(|spec| spec.name == column.name);
        let mut columns: Vec<Column> = columns.collect();
        if columns.iter().any(is_input) {
            columns.retain(is_input);
        } else if let [only] = self.inputs.as_slice() {
            columns.truncate(only.row_len().unwrap_or(columns.len()));
        }
        self.request(&columns, 1)
    }

    fn infer(&self, request: &str) -> Result<Value> {
        self.client.json("POST", &format!("{}/infer", self.path), request)
    }

    /// A request from columns: each input is the column of its name, or a lone
    /// input takes all columns, in order.
    fn request(&self, columns: &[Column], rows: usize) -> Result<String> {
        let find = |name: &str| columns.iter().find(|column| column.name == name);
        let is_lone = self.inputs.len() == 1 && self.inputs.iter().all(|i| find(&i.name).is_none());
        let mut inputs = Vec::new();
        for spec in &self.inputs {
            let of_row = |row: usize| -> Result<Value> {
                match (is_lone, find(&spec.name)) {
                    (true, _) => Ok(columns.iter().map(|column| column.at(row)).collect()),
                    (false, Some(column)) => Ok(column.at(row)),
                    (false, None) => Err(self.missing(&spec.name).into()),
                }
            };
            let values = (0..rows).map(of_row).collect::<Result<Vec<_>>>()?;
            inputs.push(input_json(spec, &values)?);
        }
        self.refuse_unknown(columns, is_lone)?;
        Ok(format!("{{\"inputs\":[{}]}}", inputs.join(",")))
    }

    fn refuse_unknown(&self, columns: &[Column], is_lone: bool) -> Result<()> {
        let known = |column: &Column| self.inputs.iter().any(|spec| spec.name == column.name);
        match columns.iter().find(|column| !is_lone && !known(column)) {
            None => Ok(()),
            Some(column) => {
                let message = format!("the model has no input \"{}\"", column.name);
                Err(CliError::new(message, self.hint()).into())
            }
        }
    }

    fn missing(&self, name: &str) -> CliError {
        CliError::new(format!("no value for the input \"{name}\""), self.hint())
    }

    fn hint(&self) -> String {
        let names: Vec<&str> = self.inputs.iter().map(|spec| spec.name.as_str()).collect();
        format!("the model takes {}", names.join(", "))
    }

    /// A file with a request of the protocol, or with `{"input": values}`.
    pub(super) fn request_from_json(&self, path: &Path) -> Result<String> {
        let mut text = String::new();
        if path == Path::new("-") {
            std::io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
        } else {
            let file = File::open(path).with_context(|| format!("cannot read {}", path.display()));
            file?.read_to_string(&mut text)?;
        }
        let object: Map<String, Value> = match serde_json::from_str(&text) {
            Ok(object) => object,
            // Such as NaN, which the protocol's servers read and JSON has not.
            Err(_) if text.contains("\"inputs\"") => return Ok(text),
            Err(error) => return Err(error).context("the request is not a JSON object"),
        };
        if object.get("inputs").is_some_and(Value::is_array) {
            return Ok(text);
        }
        let rows = object.values().map(|value| value.as_array().map_or(1, Vec::len)).max();
        let column = |(name, value): (&String, &Value)| Column {
            name: name.clone(),
            values: value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]),
        };
        self.request(&object.iter().map(column).collect::<Vec<_>>(), rows.unwrap_or(1))
    }
}

impl Column {
    fn at(&self, row: usize) -> Value {
        self.values.get(row).cloned().unwrap_or_default()
    }
}

/// `a=1,b=[2,3],c=text`: commas inside brackets and quotes belong to a value.
fn parse_row(text: &str) -> Result<Vec<Column>> {
    let mut pairs = vec![String::new()];
    let (mut depth, mut is_quoted) = (0, false);
    for character in text.chars() {
        match character {
            '"' => is_quoted = !is_quoted,
            '[' if !is_quoted => depth += 1,
            ']' if !is_quoted => depth -= 1,
            ',' if depth == 0 && !is_quoted => {
                pairs.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(pair) = pairs.last_mut() {
            pair.push(character);
        }
    }
    pairs.iter().filter(|pair| !pair.trim().is_empty()).map(|pair| column(pair)).collect()
}

fn column(pair: &str) -> Result<Column> {
    let Some((name, value)) = pair.split_once('=') else {
        let message = format!("\"{pair}\" has no \"=\"");
        return Err(CliError::new(message, "write --row name=value,name=value").into());
    };
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok(Column { name: name.trim().to_string(), values: vec![value] })
}

fn print_outputs(answer: &Value) {
    for output in answer["outputs"].as_array().into_iter().flatten() {
        let name = output["name"].as_str().unwrap_or_default();
        let datatype = output["datatype"].as_str().unwrap_or_default();
        println!("{name} {datatype}{} = {}", output["shape"], output["data"]);
    }
}

fn predict_csv(model: &Model, path: &Path, args: &PredictArgs) -> Result<()> {
    let mut reader =
        csv::Reader::from_path(path).with_context(|| format!("cannot read {}", path.display()))?;
    let header: Vec<String> = reader.headers()?.iter().map(String::from).collect();
    let target: Box<dyn Write> = match &args.output {
        Some(path) => Box::new(
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?,
        ),
        None => Box::new(std::io::stdout().lock()),
    };
    let mut writer = csv::Writer::from_writer(target);
    let mut rows: Vec<csv::StringRecord> = Vec::new();
    let mut written = 0;
    for record in reader.records() {
        rows.push(record?);
        if rows.len() == args.batch_rows.max(1) {
            written += predict_rows(model, &header, &rows, &mut writer, written)?;
            rows.clear();
        }
    }
    if !rows.is_empty() {
        written += predict_rows(model, &header, &rows, &mut writer, written)?;
    }
    writer.flush()?;
    if let Some(path) = &args.output {
        eprintln!("{written} predictions in {}", path.display());
    }
    Ok(())
}

/// Predicts some rows, writes them (with a header before the first), and
/// returns how many there were.
fn predict_rows<W: Write>(
    model: &Model,
    header: &[String],
    rows: &[csv::StringRecord],
    writer: &mut csv::Writer<W>,
    first_row: usize,
) -> Result<usize> {
    let field = |row: &csv::StringRecord, at: usize| Value::from(row.get(at).unwrap_or_default());
    let columns: Vec<Column> = header
        .iter()
        .enumerate()
        .map(|(at, name)| Column {
            name: name.clone(),
            values: rows.iter().map(|row| field(row, at)).collect(),
        })
        .collect();
    let answer = model.request(&columns, rows.len()).and_then(|request| model.infer(&request));
    let answer = answer.with_context(|| {
        format!("rows {} to {} of the CSV file", first_row + 1, first_row + rows.len())
    })?;
    let table = table_of_outputs(&answer, rows.len())?;
    if first_row == 0 {
        writer.write_record(&table.header)?;
    }
    for row in &table.rows {
        writer.write_record(row)?;
    }
    Ok(rows.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_are_split_outside_brackets_and_quotes() {
        let cases = [
            ("a=1,b=2.5", vec![("a", json!(1)), ("b", json!(2.5))]),
            ("x=[1,2],y=red", vec![("x", json!([1, 2])), ("y", json!("red"))]),
            ("t=\"a,b\"", vec![("t", json!("a,b"))]),
        ];
        for (text, want) in cases {
            let columns = parse_row(text).unwrap();
            let got: Vec<_> =
                columns.iter().map(|column| (column.name.as_str(), column.at(0))).collect();
            assert_eq!(got, want);
        }
        assert!(parse_row("a").is_err());
    }
}
