//! Writing new keys and values into a cache of fixed size.

use crate::cpu::op::{Attributes, Inputs, OpContext, Operator, Outputs};
use crate::cpu::ops::elementwise::writable;
use crate::cpu::ops::layout::{axis, by_width, cells, cells_mut, dim, element_count, integers};
use mortise_types::{Error, NodeDef, Result, Tensor};
use smallvec::smallvec;

/// The cache with `update` in it, from a place along an axis that each batch
/// has its own of.
pub(super) struct TensorScatter {
    axis: i64,
    /// What goes past the end goes on at the start.
    circular: bool,
}

impl TensorScatter {
    pub(super) fn build(node: &NodeDef) -> Result<Box<dyn Operator>> {
        let attributes = Attributes(node);
        let circular = match attributes.text("mode")?.unwrap_or("linear") {
            "linear" => false,
            "circular" => true,
            other => {
                let node = node.describe();
                return Err(Error::unsupported(format!("{node}: mode \"{other}\"")));
            }
        };
        Ok(Box::new(Self { axis: attributes.int_or("axis", -2)?, circular }))
    }

    /// Where place `at` of an update is in a cache of `size`, when it was
    /// begun at `start`.
    fn place(&self, start: usize, at: usize, size: usize) -> Result<usize> {
        match start.checked_add(at) {
            Some(place) if self.circular => Ok(place % size),
            Some(place) if place < size => Ok(place),
            _ => Err(Error::invalid(format!("place {at} from {start} is beyond {size}"))),
        }
    }
}

/// # Errors
/// When the update is larger than the cache, or differs in another dimension.
fn check(cache: &Tensor, update: &Tensor, along: usize) -> Result<()> {
    let sizes = cache.shape().iter().zip(update.shape()).enumerate();
    let mut fits = sizes.map(|(at, (old, new))| if at == along { new <= old } else { new == old });
    if cache.rank() == update.rank() && cache.dtype() == update.dtype() && fits.all(|fits| fits) {
        return Ok(());
    }
    Err(Error::invalid(format!("an update {update:?} does not fit a cache {cache:?}")))
}

impl Operator for TensorScatter {
    fn run(&self, ctx: &OpContext<'_>, mut inputs: Inputs<'_>) -> Result<Outputs> {
        let cache = inputs.take(0)?;
        let (update, starts) = (inputs.tensor(1)?, inputs.optional(2)?.map(integers).transpose()?);
        let along = axis(self.axis, cache.rank())?;
        check(&cache, update, along)?;
        let (size, length) = (cache.shape()[along], update.shape()[along]);
        let batch = if along == 0 { 1 } else { cache.shape()[0] };
        if along == 0 || starts.as_ref().is_some_and(|starts| starts.len() != batch) {
            return Err(Error::invalid(
                "the axis must follow the batch, and each batch has one index",
            ));
        }
        let outer = element_count(&cache.shape()[..along])?;
        let inner = element_count(&cache.shape()[along + 1..])?;
        let mut output = writable(ctx, cache)?;
        by_width!(output.dtype(), T => {
            let (source, target) = (cells::<T>(update)?, cells_mut::<T>(&mut output)?);
            for row in 0..outer * length {
                let (line, at) = (row / length, row % length);
                let start = starts.as_ref().map_or(Ok(0), |list| dim(list[line / (outer / batch)]))?;
                let to = (line * size + self.place(start, at, size)?) * inner;
                target[to..to + inner].copy_from_slice(&source[row * inner..(row + 1) * inner]);
            }
            Ok(())
        })?;
        Ok(smallvec![output.into()])
    }
}
