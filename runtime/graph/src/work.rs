//! How much arithmetic and how many bytes a plan is, for the floor that its
//! time is compared with.

use crate::infer::static_shape;
use crate::plan::Plan;
use mortise_types::{Attribute, NodeDef, Value, ValueId};
use std::collections::HashSet;

/// The work of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Multiplications and additions, counted singly.
    pub operations: u64,
    /// Bytes that have to move at least: weights, inputs and outputs, once.
    pub bytes: u64,
    /// Nodes whose shapes are not known before a run; they are not in
    /// `operations`.
    pub unknown_nodes: usize,
}

/// Reads of its first input what its second one says, not all of it.
fn is_lookup(node: &NodeDef) -> bool {
    matches!(&*node.op, "Gather" | "GatherRows" | "GatherND" | "GatherElements")
}

impl Plan {
    /// What a run takes, of a plan that was [`Plan::specialised`]. Products,
    /// convolutions, attention and recurrences are counted by their formulas,
    /// any other node as one operation for each element that it writes.
    pub fn work(&self) -> Work {
        let mut work = Work::default();
        let mut read: HashSet<ValueId> = self.body.inputs.iter().copied().collect();
        read.extend(&self.body.outputs);
        for node in &self.body.nodes {
            let weights = node.inputs.iter().skip(usize::from(is_lookup(node))).flatten();
            read.extend(weights.filter(|value| self.is_constant(**value)));
            match self.operations(node) {
                Some(operations) => work.operations += operations,
                None => work.unknown_nodes += 1,
            }
        }
        work.bytes = read.into_iter().filter_map(|value| self.byte_len(value)).sum();
        work
    }

    fn operations(&self, node: &NodeDef) -> Option<u64> {
        let written = self.shape(node.outputs.first().copied().flatten())?;
        let written: u64 = written.iter().map(|&dim| dim as u64).product();
        let input = |index: usize| self.shape(node.inputs.get(index).copied().flatten());
        let size = |index: usize| input(index).map(|dims| dims.iter().product::<usize>() as u64);
        match &*node.op {
            "MatMul"
            | "MatMulBias"
            | "MatMulInteger"
            | "MatMulIntegerToFloat"
            | "QLinearMatMul"
            | "MatMulHalf"
            | "MatMulInt8"
            | "MatMulNBits" => Some(2 * written * *input(0)?.last()? as u64),
            "Gemm" | "FusedGemm" => {
                let turned = matches!(node.attribute("transA"), Some(Attribute::Int(1)));
                Some(2 * written * *input(0)?.get(usize::from(!turned))? as u64)
            }
            "Conv" | "FusedConv" | "ConvInteger" => {
                let weights = input(1)?;
                let window: usize = weights.get(1..)?.iter().product();
                Some(2 * written * window as u64)
            }
            "QLinearConv" => {
                let window: usize = input(3)?.get(1..)?.iter().product();
                Some(2 * written * window as u64)
            }
            // Scores and the sum that they weigh: two products of one size.
            "HeadsAttention" => Some(4 * written * *input(1)?.get(1)? as u64),
            "Attention" if input(0)?.len() == 4 && input(1)?.len() == 4 => {
                Some(4 * written * input(1)?[2] as u64)
            }
            "LSTM" | "GRU" | "RNN" => {
                let steps: usize = input(0)?.get(..2)?.iter().product();
                Some(2 * steps as u64 * (size(1)? + size(2)?))
            }
            _ => Some(written),
        }
    }

    fn is_constant(&self, value: ValueId) -> bool {
        self.constants.get(value.index()).is_some_and(Option::is_some)
    }

    fn shape(&self, value: Option<ValueId>) -> Option<Vec<usize>> {
        static_shape(self.facts.get(value?.index())?)
    }

    fn byte_len(&self, value: ValueId) -> Option<u64> {
        if let Some(Some(Value::Tensor(tensor))) = self.constants.get(value.index()) {
            return Some(tensor.byte_len() as u64);
        }
        let count = self.shape(Some(value))?.iter().product();
        let dtype = self.facts.get(value.index())?.dtype?;
        dtype.byte_len(count).map(|bytes| bytes as u64)
    }
}
