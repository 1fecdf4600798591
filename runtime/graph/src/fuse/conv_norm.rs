//! `BatchNormalization` behind a convolution, folded into its weights.

use super::{input, is_standard, makers_and_uses};
use crate::plan::Draft;
use mortise_types::{Attribute, DType, NodeDef, Tensor, ValueId};

/// Replaces each pair by one convolution with weights of its own.
pub(super) fn fold(draft: &mut Draft) {
    let (makers, uses) = makers_and_uses(draft);
    for index in 0..draft.body.nodes.len() {
        let norm = &draft.body.nodes[index];
        let folded = before(draft, &makers, &uses, norm)
            .and_then(|conv| Some((conv, parameters(draft, conv, norm)?)));
        let Some((conv, (weights, bias))) = folded else { continue };
        let mut node = conv.clone();
        node.outputs = norm.outputs.iter().take(1).copied().collect();
        let image = node.inputs.first().copied().flatten();
        let [weights, bias] = [weights, bias].map(|tensor| draft.add_constant(tensor.into()));
        node.inputs = [image, Some(weights), Some(bias)].into_iter().collect();
        let origin = vec!["Conv".to_owned(), "BatchNormalization".to_owned()];
        draft.replace_node(index, node, origin);
    }
}

/// The convolution that only `norm` reads.
fn before<'a>(
    draft: &'a Draft,
    makers: &[Option<usize>],
    uses: &[usize],
    norm: &NodeDef,
) -> Option<&'a NodeDef> {
    let training = matches!(norm.attribute("training_mode"), Some(Attribute::Int(1)));
    let one_output = norm.outputs.iter().skip(1).all(Option::is_none);
    if &*norm.op != "BatchNormalization" || !is_standard(norm) || training || !one_output {
        return None;
    }
    let value = input(norm, 0)?;
    let index = *makers.get(value.index())?;
    let conv = draft.body.nodes.get(index?)?;
    let fits = &*conv.op == "Conv" && is_standard(conv) && uses.get(value.index()) == Some(&1);
    fits.then_some(conv)
}

/// `w · s` and `(b - mean) · s + shift`, where `s` is `scale / √(var + ε)`.
fn parameters(draft: &Draft, conv: &NodeDef, norm: &NodeDef) -> Option<(Tensor, Tensor)> {
    let constant = |value: Option<ValueId>| {
        let tensor = draft.constants.get(value?.index())?.as_ref()?.tensor().ok()?;
        (tensor.dtype() == DType::F32).then_some(tensor)
    };
    let weights = constant(input(conv, 1))?;
    let channels = *weights.shape().first()?;
    let list = |value: Option<ValueId>| {
        let tensor = constant(value).filter(|tensor| tensor.shape() == [channels])?;
        tensor.as_slice::<f32>().ok()
    };
    let [scale, shift, mean, variance] = [1, 2, 3, 4].map(|at| list(input(norm, at)));
    let (scale, shift, mean, variance) = (scale?, shift?, mean?, variance?);
    let epsilon = match norm.attribute("epsilon") {
        Some(Attribute::Float(epsilon)) => f64::from(*epsilon),
        _ => 1e-5,
    };
    let factors: Vec<f64> = scale
        .iter()
        .zip(variance)
        .map(|(scale, variance)| f64::from(*scale) / (f64::from(*variance) + epsilon).sqrt())
        .collect();
    let bias = match input(conv, 2) {
        Some(bias) => list(Some(bias))?.to_vec(),
        None => vec![0.0; channels],
    };
    let moved = |channel: usize| {
        let centred = f64::from(bias[channel]) - f64::from(mean[channel]);
        (centred * factors[channel] + f64::from(shift[channel])) as f32
    };
    let size = weights.len().checked_div(channels)?;
    let values = weights.as_slice::<f32>().ok()?.iter().enumerate();
    let scaled = values.map(|(at, w)| (f64::from(*w) * factors[at / size]) as f32).collect();
    let bias = Tensor::from_vec(&[channels], (0..channels).map(moved).collect()).ok()?;
    Some((Tensor::from_vec(weights.shape(), scaled).ok()?, bias))
}
