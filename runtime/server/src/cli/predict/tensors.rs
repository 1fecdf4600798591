use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

/// An input as the server's metadata describes it.
#[derive(Deserialize)]
pub(super) struct InputSpec {
    pub(super) name: String,
    datatype: String,
    /// -1 where any size is accepted.
    shape: Vec<i64>,
}

impl InputSpec {
    /// Elements of one row; `None` when any number is accepted.
    pub(super) fn row_len(&self) -> Option<usize> {
        let inner = self.shape.get(1..).unwrap_or_default();
        inner.iter().map(|&dim| usize::try_from(dim).ok()).product()
    }
}

/// One input of a request: `rows` holds a value or a list for each row. Text
/// because missing numbers are `NaN`, which JSON values cannot hold.
///
/// # Errors
/// When a value is not of the input's type, or rows differ in length.
pub(super) fn input_json(spec: &InputSpec, rows: &[Value]) -> Result<String> {
    let mut elements = Vec::new();
    for row in rows {
        flatten(row, &mut elements);
    }
    let shape = shape_of(spec, rows.len(), elements.len())?;
    let data: Vec<String> =
        elements.iter().map(|value| element(spec, value)).collect::<Result<_>>()?;
    let head = json!({"name": spec.name, "datatype": spec.datatype, "shape": shape}).to_string();
    let head = head.trim_end_matches('}');
    Ok(format!("{head},\"data\":[{}]}}", data.join(",")))
}

fn flatten<'a>(value: &'a Value, into: &mut Vec<&'a Value>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| flatten(item, into)),
        scalar => into.push(scalar),
    }
}

/// The first dimension takes the rows, one variable dimension the rest.
fn shape_of(spec: &InputSpec, rows: usize, elements: usize) -> Result<Vec<usize>> {
    let Some((_, inner)) = spec.shape.split_first() else { return Ok(Vec::new()) };
    let fixed: usize = inner.iter().filter(|dim| **dim >= 0).map(|&dim| dim as usize).product();
    let variable = inner.iter().filter(|dim| **dim < 0).count();
    let per_row = elements / rows.max(1);
    let fits = per_row * rows == elements
        && match variable {
            0 => per_row == fixed,
            1 => fixed > 0 && per_row.is_multiple_of(fixed),
            _ => false,
        };
    if !fits {
        bail!(
            "input \"{}\" has the shape {:?}, which {elements} values in {rows} rows do not fill",
            spec.name,
            spec.shape
        );
    }
    let dim = |&dim: &i64| if dim < 0 { per_row / fixed } else { dim as usize };
    Ok(std::iter::once(rows).chain(inner.iter().map(dim)).collect())
}

/// One element as JSON text, from a JSON value or the text of a CSV field.
fn element(spec: &InputSpec, value: &Value) -> Result<String> {
    let text = match value {
        Value::String(text) => text.trim(),
        Value::Null => "",
        other if spec.datatype == "BYTES" => return Ok(json!(other.to_string()).to_string()),
        other => return Ok(other.to_string()),
    };
    let wrong =
        || format!("\"{text}\" is no value for input \"{}\" ({})", spec.name, spec.datatype);
    match spec.datatype.as_str() {
        "BYTES" => Ok(json!(value.as_str().unwrap_or_default()).to_string()),
        "BOOL" => Ok(text.parse::<bool>().with_context(wrong)?.to_string()),
        "FP16" | "BF16" | "FP32" | "FP64" if text.is_empty() => Ok("NaN".to_string()),
        "FP16" | "BF16" | "FP32" | "FP64" => {
            let number: f64 = text.parse().with_context(wrong)?;
            Ok(match number {
                n if n.is_nan() => "NaN".to_string(),
                n if n.is_infinite() && n > 0.0 => "Infinity".to_string(),
                n if n.is_infinite() => "-Infinity".to_string(),
                n => n.to_string(),
            })
        }
        _ => Ok(text.parse::<i128>().with_context(wrong)?.to_string()),
    }
}

/// Predictions as rows of a CSV file.
pub(super) struct Table {
    pub(super) header: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

/// Puts all outputs side by side: one column for each element that an output
/// has in a row, `name` or `name_0`, `name_1`, ….
///
/// # Errors
/// When an output does not have one part for each row.
pub(super) fn table_of_outputs(answer: &Value, row_count: usize) -> Result<Table> {
    let mut table = Table { header: Vec::new(), rows: vec![Vec::new(); row_count] };
    for output in answer["outputs"].as_array().into_iter().flatten() {
        let name = output["name"].as_str().unwrap_or_default();
        let mut elements = Vec::new();
        flatten(&output["data"], &mut elements);
        let width = elements.len() / row_count.max(1);
        if width == 0 || width * row_count != elements.len() {
            bail!("output \"{name}\" has {} values for {row_count} rows", elements.len());
        }
        match width {
            1 => table.header.push(name.to_string()),
            _ => table.header.extend((0..width).map(|index| format!("{name}_{index}"))),
        }
        for (row, cells) in table.rows.iter_mut().zip(elements.chunks(width)) {
            row.extend(cells.iter().map(|cell| match cell {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            }));
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(datatype: &str, shape: &[i64]) -> InputSpec {
        InputSpec { name: "x".into(), datatype: datatype.into(), shape: shape.to_vec() }
    }

    #[test]
    fn rows_become_tensors() {
        let cases = [
            (spec("FP32", &[-1]), json!(["1.5", ""]), "\"shape\":[2],\"data\":[1.5,NaN]"),
            (spec("FP32", &[-1, 1]), json!([1, 2]), "\"shape\":[2,1],\"data\":[1,2]"),
            (spec("INT64", &[-1, -1]), json!([["1", "2"]]), "\"shape\":[1,2],\"data\":[1,2]"),
            (spec("BYTES", &[-1]), json!(["a\"b"]), "\"shape\":[1],\"data\":[\"a\\\"b\"]"),
            (spec("FP32", &[-1, 3]), json!([[1, 2]]), "error: input \"x\" has the shape"),
            (spec("INT64", &[-1]), json!(["red"]), "error: \"red\" is no value for input \"x\""),
        ];
        for (spec, rows, want) in cases {
            let got = input_json(&spec, rows.as_array().unwrap());
            let got = got.unwrap_or_else(|error| format!("error: {error}"));
            assert!(got.contains(want), "{got} lacks {want}");
        }
    }

    #[test]
    fn outputs_stand_side_by_side() {
        let answer = json!({"outputs": [
            {"name": "label", "data": ["a", "b"]},
            {"name": "p", "data": [0.1, 0.9, 0.8, 0.2]},
        ]});
        let table = table_of_outputs(&answer, 2).unwrap();
        assert_eq!(table.header, ["label", "p_0", "p_1"]);
        assert_eq!(table.rows, [["a", "0.1", "0.9"], ["b", "0.8", "0.2"]]);
        assert!(table_of_outputs(&answer, 3).is_err());
    }
}
