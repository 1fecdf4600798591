//! What follows a product with quantised weights, as part of it.

use super::chains::with_activation;
use super::{Finder, input, is_standard};
use mortise_types::{NodeDef, ValueId};

/// A product with quantised weights and then `Add` of a constant row.
pub(super) fn bias(finder: &Finder<'_>, last: &NodeDef) -> Option<NodeDef> {
    if &*last.op != "Add" || !is_standard(last) {
        return None;
    }
    [(0, 1), (1, 0)].into_iter().find_map(|(a, b)| {
        let (value, bias) = (input(last, a)?, input(last, b)?);
        let product = product(finder, value)?;
        let columns = finder.last_size(value)?;
        let row = match finder.constant_shape(bias)? {
            [size] => *size == columns,
            [1, size] => *size == columns && finder.rank(value)? >= 2,
            _ => false,
        };
        row.then(|| {
            let mut fused = product.clone();
            fused.inputs.push(Some(bias));
            fused
        })
    })
}

/// A product that nobody else reads and that adds nothing yet.
fn product<'a>(finder: &Finder<'a>, value: ValueId) -> Option<&'a NodeDef> {
    let node = finder.writer(value).filter(|_| finder.once(value))?;
    let free = match &*node.op {
        "MatMulInt8" => node.inputs.len() == 3,
        "MatMulHalf" => node.inputs.len() == 2,
        "MatMulNBits" => node.inputs.len() == 5,
        _ => false,
    };
    (free && node.attribute("activation").is_none()).then_some(node)
}

/// And then an activation without parameters.
pub(super) fn activation(finder: &Finder<'_>, last: &NodeDef) -> Option<NodeDef> {
    const ACTIVATIONS: [&str; 5] = ["Relu", "Sigmoid", "Tanh", "Gelu", "Erf"];
    with_activation(finder, last, "MatMulInt8", &ACTIVATIONS)
        .or_else(|| with_activation(finder, last, "MatMulHalf", &ACTIVATIONS))
}
