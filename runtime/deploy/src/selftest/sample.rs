//! Requests from a file: rows of CSV, or examples in JSON as self-tests have
//! them.

use super::holdout::{input_shape, parse_field};
use super::values::{Named, Written, from_leaves, tensors};
use mortise_types::{Error, Result, Tensor, TensorSpec};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Rows of CSV in one request.
const BATCH_ROWS: usize = 64;

/// Requests, and rows of CSV, that a file may hold.
const MAX_ROWS: usize = 10_000;

/// One request of a JSON file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    #[serde(rename = "name")]
    _name: Option<String>,
    inputs: Written,
    /// Examples of self-tests have them; here nobody asks.
    #[serde(rename = "outputs", default)]
    _outputs: BTreeMap<String, serde::de::IgnoredAny>,
}

/// Reads a file by what it begins with.
///
/// # Errors
/// `InvalidInput` naming the file and what is wrong with it.
pub(crate) fn read(name: &str, bytes: &[u8], specs: &[TensorSpec]) -> Result<Vec<Named>> {
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    let read = match first {
        Some(b'[' | b'{') => json(bytes, specs),
        Some(_) => csv(bytes, specs),
        None => Err(Error::invalid("it is empty")),
    };
    read.map_err(|error| error.context(name))
}

fn json(bytes: &[u8], specs: &[TensorSpec]) -> Result<Vec<Named>> {
    let requests: Vec<Request> = serde_json::from_slice(bytes).map_err(|error| {
        Error::invalid(format!("it is no JSON array of {{\"inputs\": {{…}}}}: {error}"))
    })?;
    check_count(requests.len())?;
    let read = |(index, request): (usize, &Request)| {
        tensors(&request.inputs, specs)
            .map_err(|error| error.context(format_args!("sample {}", index + 1)))
    };
    requests.iter().enumerate().map(read).collect()
}

fn csv(bytes: &[u8], specs: &[TensorSpec]) -> Result<Vec<Named>> {
    let wrong = |error: csv::Error| Error::invalid(error.to_string());
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes);
    let header: Vec<String> = reader.headers().map_err(wrong)?.iter().map(str::to_string).collect();
    let mut rows = Vec::new();
    for row in reader.into_records().take(MAX_ROWS + 1) {
        rows.push(row.map_err(wrong)?);
    }
    check_count(rows.len())?;
    let columns: Vec<Vec<usize>> =
        specs.iter().map(|spec| columns(&header, spec, specs.len())).collect::<Result<_>>()?;
    let batch = |rows: &[csv::StringRecord]| -> Result<Named> {
        let inputs = specs.iter().zip(&columns);
        inputs.map(|(spec, at)| Ok((spec.name.clone(), input(spec, at, rows)?))).collect()
    };
    rows.chunks(BATCH_ROWS).map(batch).collect()
}

fn check_count(rows: usize) -> Result<()> {
    match rows {
        1..=MAX_ROWS => Ok(()),
        0 => Err(Error::invalid("it has no rows")),
        _ => Err(Error::too_large(format!("it has more than {MAX_ROWS} rows"))),
    }
}

/// An input is the column of its name; a lone one without takes the columns
/// that its shape has room for, in order.
fn columns(header: &[String], spec: &TensorSpec, inputs: usize) -> Result<Vec<usize>> {
    if let Some(at) = header.iter().position(|column| *column == spec.name) {
        return Ok(vec![at]);
    }
    if inputs > 1 {
        return Err(Error::invalid(format!(
            "it has no column \"{}\" for that input; it has {header:?}",
            spec.name
        )));
    }
    let rest = spec.shape.get(1..).unwrap_or_default();
    let room: Option<usize> = rest.iter().map(|&dim| usize::try_from(dim).ok()).product();
    Ok((0..room.unwrap_or(header.len()).min(header.len())).collect())
}

fn input(spec: &TensorSpec, columns: &[usize], rows: &[csv::StringRecord]) -> Result<Tensor> {
    let shape = input_shape(spec, rows.len(), columns.len()).map_err(|_| {
        Error::invalid(format!("input {spec} cannot be made of {} columns", columns.len()))
    })?;
    let fields =
        rows.iter().flat_map(|row| columns.iter().map(move |&at| row.get(at).unwrap_or("")));
    let leaves: Vec<_> =
        fields.map(|field| parse_field(field, spec.dtype)).collect::<Result<_>>()?;
    from_leaves(spec.dtype, &shape, &leaves.iter().collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortise_types::DType;

    fn shapes(text: &str, specs: &[TensorSpec]) -> Result<Vec<Vec<Vec<usize>>>> {
        let shapes = |named: &Named| named.iter().map(|(_, t)| t.shape().to_vec()).collect();
        Ok(read("file", text.as_bytes(), specs)?.iter().map(shapes).collect())
    }

    #[test]
    fn rows_become_requests() {
        let lone = [TensorSpec::new("x", DType::F32, &[-1, 2])];
        let two =
            [TensorSpec::new("a", DType::F32, &[-1]), TensorSpec::new("b", DType::I64, &[-1, 1])];
        assert_eq!(shapes("p,q,label\n1,2,7\n3,,8\n", &lone).unwrap(), [[[2, 2]]]);
        assert_eq!(shapes("b,a\n1,2.5\n", &two).unwrap(), [[vec![1], vec![1, 1]]]);
        let many = format!("p,q\n{}", "1,2\n".repeat(65));
        assert_eq!(shapes(&many, &lone).unwrap(), [[[64, 2]], [[1, 2]]]);
        let json = r#" [{"inputs": {"x": [[1, 2], [3, 4]]}}, {"name": "n", "inputs": {"x": [[1, 2]]}, "outputs": {"y": 1}}]"#;
        assert_eq!(shapes(json, &lone).unwrap(), [[[2, 2]], [[1, 2]]]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let lone = [TensorSpec::new("x", DType::F32, &[-1, 2])];
        let two =
            [TensorSpec::new("a", DType::F32, &[-1]), TensorSpec::new("b", DType::I64, &[-1])];
        let cases = [
            ("", &lone[..], "file: it is empty"),
            ("p,q\n", &lone[..], "no rows"),
            ("p\n1\n", &lone[..], "cannot be made of 1 columns"),
            ("p,q\n1,red\n", &lone[..], "\"red\" is not a number"),
            ("a\n1\n", &two[..], "no column \"b\""),
            ("[{\"input\": 1}]", &lone[..], "JSON array"),
            ("[{\"inputs\": {\"z\": [1]}}]", &lone[..], "sample 1: the endpoint has no \"z\""),
        ];
        for (text, specs, want) in cases {
            let error = shapes(text, specs).unwrap_err();
            assert!(error.message().contains(want), "{error} lacks {want}");
        }
    }
}
