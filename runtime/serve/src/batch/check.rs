//! Rows together against rows alone, before requests are merged.

use super::merge;
use crate::revision::Revision;
use mortise_types::{DType, Element, Error, Result, RunControl, Tensor, bf16, f16};

/// Differences that another order of additions may make, relative to the
/// largest value of the output.
const TOLERANCE: f64 = 1e-4;

/// The same for 16-bit floats.
const HALF_TOLERANCE: f64 = 2e-2;

impl Revision {
    /// Runs samples together and each alone, and compares. Samples are named
    /// inputs of one shape that differ in values.
    ///
    /// # Errors
    /// When a run fails, or an answer depends on what ran with it: names
    /// output, sample and both values.
    pub fn compare_merged(
        &self,
        samples: &[Vec<(String, Tensor)>],
        control: &RunControl,
    ) -> Result<()> {
        let bound = samples.iter().map(|sample| self.bind(sample.clone()));
        let bound = bound.collect::<Result<Vec<_>>>()?;
        let buckets: Vec<_> = bound.iter().map(|inputs| merge::bucket(inputs)).collect();
        let is_one_bucket = buckets.windows(2).all(|pair| match (&pair[0], &pair[1]) {
            (Some((_, a)), Some((_, b))) => a == b,
            _ => false,
        });
        if bound.len() < 2 || !is_one_bucket {
            return Err(Error::invalid("there are no two samples that could be merged"));
        }
        let rows: Vec<usize> = buckets.iter().flatten().map(|(rows, _)| *rows).collect();
        let alone = bound.iter().map(|inputs| self.run(inputs.clone(), control).outputs);
        let alone = alone.collect::<Result<Vec<_>>>()?;
        let inputs: Vec<&[Tensor]> = bound.iter().map(Vec::as_slice).collect();
        let together = self.run(merge::join(&inputs)?, control).outputs?;
        let together = merge::split(&together, &rows)?;
        for (index, (alone, together)) in alone.iter().zip(&together).enumerate() {
            self.compare(index, alone, together)?;
        }
        Ok(())
    }

    fn compare(&self, sample: usize, alone: &[Tensor], together: &[Tensor]) -> Result<()> {
        let specs = &self.run_signature().outputs;
        for ((alone, together), spec) in alone.iter().zip(together).zip(specs) {
            if let Some((index, one, other)) = difference(alone, together)? {
                return Err(Error::invalid(format!(
                    "output \"{}\" of sample {sample} is {one} alone and {other} together with \
                     others, at element {index}",
                    spec.name
                )));
            }
        }
        Ok(())
    }
}

/// The first element that differs by more than the tolerance.
fn difference(alone: &Tensor, together: &Tensor) -> Result<Option<(usize, f64, f64)>> {
    if alone.shape() != together.shape() || alone.dtype() != together.dtype() {
        return Err(Error::invalid(format!("{alone:?} alone is {together:?} together")));
    }
    Ok(match alone.dtype() {
        DType::F32 => floats::<f32>(alone, together, TOLERANCE, f64::from)?,
        DType::F64 => floats::<f64>(alone, together, TOLERANCE, |value| value)?,
        DType::F16 => floats::<f16>(alone, together, HALF_TOLERANCE, f64::from)?,
        DType::BF16 => floats::<bf16>(alone, together, HALF_TOLERANCE, f64::from)?,
        DType::String => {
            let (one, other) = (alone.strings()?, together.strings()?);
            let index = (0..one.len()).find(|&index| one.get(index) != other.get(index));
            index.map(|index| (index, one.get(index).len() as f64, other.get(index).len() as f64))
        }
        _ => {
            let (one, other) = (alone.bytes().unwrap_or(&[]), together.bytes().unwrap_or(&[]));
            let index = one.iter().zip(other).position(|(a, b)| a != b);
            index.map(|index| (index, f64::from(one[index]), f64::from(other[index])))
        }
    })
}

fn floats<T: Element>(
    alone: &Tensor,
    together: &Tensor,
    tolerance: f64,
    number: impl Fn(T) -> f64,
) -> Result<Option<(usize, f64, f64)>> {
    let values = |tensor: &Tensor| -> Result<Vec<f64>> {
        Ok(tensor.as_slice::<T>()?.iter().map(|value| number(*value)).collect())
    };
    let (one, other) = (values(alone)?, values(together)?);
    let is_finite = |value: &&f64| value.is_finite();
    let largest = one.iter().filter(is_finite).fold(0.0f64, |most, value| most.max(value.abs()));
    let bound = tolerance * largest.max(1e-3);
    let agrees =
        |(a, b): (&f64, &f64)| a == b || (a - b).abs() <= bound || (a.is_nan() && b.is_nan());
    let index = one.iter().zip(&other).position(|pair| !agrees(pair));
    Ok(index.map(|index| (index, one[index], other[index])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{direct, inputs, parts, spec};

    fn revision(function: fn(&[f32]) -> Vec<f32>) -> Revision {
        let stage = direct("m", &[spec("x")], &[spec("y")], move |inputs| {
            Ok(vec![Tensor::from_vec(inputs[0].shape(), function(inputs[0].as_slice()?))?])
        });
        Revision::new(parts("m", 1, vec![stage])).unwrap()
    }

    #[test]
    fn what_mixes_rows_is_caught() {
        let control = RunControl::unbounded();
        let samples = [inputs(&[("x", &[1.0])]), inputs(&[("x", &[2.0])])];
        let apart = revision(|rows| rows.iter().map(|value| value * 2.0).collect());
        assert!(apart.compare_merged(&samples, &control).is_ok());
        let mixed = revision(|rows| {
            let mean = rows.iter().sum::<f32>() / rows.len() as f32;
            rows.iter().map(|value| value - mean).collect()
        });
        let error = mixed.compare_merged(&samples, &control).unwrap_err();
        assert!(error.message().contains("output \"y\" of sample 0 is 0 alone"), "{error}");
        let lost = revision(|rows| vec![rows[0]; rows.len()]);
        assert!(lost.compare_merged(&samples, &control).is_err());
        assert!(apart.compare_merged(&samples[..1], &control).is_err(), "nothing to compare");
    }
}
