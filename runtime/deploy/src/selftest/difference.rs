//! How far the answers of two builds of one model are apart.

use super::values::{Named, difference, numbers};
use mortise_types::{Error, Result, Tensor};
use serde::{Deserialize, Serialize};

/// Of all numbers in all outputs, between two builds of one model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Requests compared.
    pub samples: usize,
    /// The largest difference of two floats, in the units of the outputs; of a
    /// model that gives none, the share of answers that changed. Infinite
    /// where only one of two is NaN, which JSON has as `null`.
    #[serde(deserialize_with = "or_infinite")]
    pub max_abs_error: f64,
    #[serde(deserialize_with = "or_infinite")]
    pub mean_abs_error: f64,
    /// The largest number of the outputs, for comparison.
    pub largest_output: f64,
    /// Whole numbers, booleans and strings that changed, of how many.
    pub changed: u64,
    pub compared: u64,
    /// Floats compared.
    pub floats: u64,
}

fn or_infinite<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::INFINITY))
}

impl Difference {
    /// Counts one request.
    ///
    /// # Errors
    /// When the outputs differ in number or shape.
    pub(crate) fn add(&mut self, want: &Named, got: &Named) -> Result<()> {
        self.samples += 1;
        for ((name, want), (_, got)) in want.iter().zip(got) {
            if want.shape() != got.shape() || want.dtype() != got.dtype() {
                return Err(Error::internal(format!(
                    "output \"{name}\" is {want:?}, and {got:?} when quantized"
                )));
            }
            match want.dtype().is_float() {
                true => self.floats(want, got),
                false => self.labels(want, got),
            }
        }
        if self.floats == 0 && self.compared > 0 {
            self.max_abs_error = self.changed as f64 / self.compared as f64;
            self.mean_abs_error = self.max_abs_error;
        }
        Ok(())
    }

    fn floats(&mut self, want: &Tensor, got: &Tensor) {
        let (want, got) = (numbers(want).unwrap_or_default(), numbers(got).unwrap_or_default());
        let mut sum = self.mean_abs_error * self.floats as f64;
        for (want, got) in want.iter().zip(&got) {
            let apart = difference(*want, *got);
            self.max_abs_error = self.max_abs_error.max(apart);
            sum += apart;
            if want.is_finite() {
                self.largest_output = self.largest_output.max(want.abs());
            }
        }
        self.floats += want.len() as u64;
        self.mean_abs_error = sum / (self.floats as f64).max(1.0);
    }

    fn labels(&mut self, want: &Tensor, got: &Tensor) {
        self.compared += want.len() as u64;
        self.changed += match (want.strings(), got.strings()) {
            (Ok(want), Ok(got)) => want.iter().zip(got.iter()).filter(|(a, b)| a != b).count(),
            _ => {
                let both = [want, got].map(|tensor| numbers(tensor).unwrap_or_default());
                both[0].iter().zip(&both[1]).filter(|(a, b)| a != b).count()
            }
        } as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(tensor: Tensor) -> Named {
        vec![("y".to_string(), tensor)]
    }

    fn floats(values: &[f32]) -> Named {
        named(Tensor::from_vec(&[values.len()], values.to_vec()).unwrap())
    }

    #[test]
    fn floats_are_measured_and_labels_counted() {
        let mut difference = Difference::default();
        difference.add(&floats(&[1.0, -4.0]), &floats(&[1.5, -4.0])).unwrap();
        difference.add(&floats(&[2.0, f32::NAN]), &floats(&[2.0, f32::NAN])).unwrap();
        assert_eq!((difference.max_abs_error, difference.mean_abs_error), (0.5, 0.125));
        assert_eq!((difference.largest_output, difference.samples), (4.0, 2));
        difference.add(&floats(&[1.0]), &floats(&[f32::NAN])).unwrap();
        assert_eq!(difference.max_abs_error, f64::INFINITY);
        let json = serde_json::to_string(&difference).unwrap();
        assert_eq!(serde_json::from_str::<Difference>(&json).unwrap(), difference);

        let labels = |values: Vec<i64>| named(Tensor::from_vec(&[values.len()], values).unwrap());
        let mut difference = Difference::default();
        difference.add(&labels(vec![1, 2, 3, 4]), &labels(vec![1, 2, 3, 5])).unwrap();
        assert_eq!((difference.changed, difference.max_abs_error), (1, 0.25));
        assert!(difference.add(&labels(vec![1]), &floats(&[1.0])).is_err());
    }
}
