//! Operators of `ai.onnx.ml`: rows in, rows out.

use super::{Fact, NodeView};
use mortise_types::DType;

pub(crate) fn infer(view: &NodeView<'_>) -> Option<Vec<Fact>> {
    let rows = rows(view);
    let scores = |columns: usize| Fact::new(Some(DType::F32), Some(vec![rows, count(columns)]));
    Some(match &*view.node.op {
        "LinearClassifier" | "SVMClassifier" | "TreeEnsembleClassifier" => {
            let (labels, classes) = classes(view);
            vec![Fact::new(Some(labels), Some(vec![rows])), scores(classes)]
        }
        "LinearRegressor" => vec![scores(int_or(view, "targets", 1))],
        "SVMRegressor" => vec![scores(1)],
        "TreeEnsembleRegressor" => vec![scores(int_or(view, "n_targets", 1))],
        "TreeEnsemble" => {
            let dtype = view.dtype(0).map(|dtype| match dtype {
                DType::F64 => DType::F64,
                _ => DType::F32,
            });
            vec![Fact::new(dtype, Some(vec![rows, count(int_or(view, "n_targets", 1))]))]
        }
        "Scaler" | "Imputer" | "Binarizer" | "Normalizer" => {
            let dtype = match &*view.node.op {
                "Imputer" | "Binarizer" => view.dtype(0),
                _ => Some(DType::F32),
            };
            vec![Fact::new(dtype, view.shape(0))]
        }
        "OneHotEncoder" => {
            let mut shape = view.shape(0);
            let categories = view.list_len("cats_int64s") + view.list_len("cats_strings");
            shape.iter_mut().for_each(|shape| shape.push(count(categories)));
            vec![Fact::new(Some(DType::F32), shape)]
        }
        "LabelEncoder" | "CategoryMapper" => vec![Fact::new(mapped(view), view.shape(0))],
        "ArrayFeatureExtractor" => {
            let mut shape = view.shape(0)?;
            if let Some(last) = shape.last_mut() {
                *last = view.shape(1).map_or(-1, |indices| product(&indices));
            }
            let rank_one = shape.len() == 1;
            if rank_one {
                shape.insert(0, 1);
            }
            vec![Fact::new(view.dtype(0), Some(shape))]
        }
        "FeatureVectorizer" => vec![Fact::new(Some(DType::F32), Some(vec![rows, -1]))],
        _ => return None,
    })
}

/// How many elements, `-1` where a size is unknown.
fn product(dims: &[i64]) -> i64 {
    if dims.iter().any(|dim| *dim < 0) {
        return -1;
    }
    dims.iter().fold(1, |count: i64, dim| count.saturating_mul(*dim))
}

fn rows(view: &NodeView<'_>) -> i64 {
    match view.shape(0).as_deref() {
        Some([rows, ..]) if view.fact(0).rank() > Some(1) => *rows,
        Some([_]) => 1,
        _ => -1,
    }
}

/// An unknown number of columns is shown as variable.
fn count(columns: usize) -> i64 {
    if columns == 0 { -1 } else { columns as i64 }
}

fn int_or(view: &NodeView<'_>, name: &str, default: usize) -> usize {
    view.int(name).and_then(|value| usize::try_from(value).ok()).unwrap_or(default)
}

/// Type of the labels, and how many there are: also the columns of the scores.
fn classes(view: &NodeView<'_>) -> (DType, usize) {
    let strings = view.list_len("classlabels_strings");
    if strings > 0 {
        return (DType::String, strings);
    }
    let ints = view.list_len("classlabels_ints").max(view.list_len("classlabels_int64s"));
    (DType::I64, ints)
}

/// What `LabelEncoder` maps to; `CategoryMapper` swaps strings and integers.
fn mapped(view: &NodeView<'_>) -> Option<DType> {
    let swaps = &*view.node.op == "CategoryMapper" || view.list_len("classes_strings") > 0;
    if swaps {
        return match view.dtype(0)? {
            DType::String => Some(DType::I64),
            _ => Some(DType::String),
        };
    }
    let lists = [
        ("values_int64s", DType::I64),
        ("values_floats", DType::F32),
        ("values_strings", DType::String),
    ];
    if let Some((_, dtype)) = lists.iter().find(|(name, _)| view.list_len(name) > 0) {
        return Some(*dtype);
    }
    match view.node.attribute("values_tensor") {
        Some(mortise_types::Attribute::Tensor(tensor)) => Some(tensor.dtype()),
        _ => None,
    }
}
