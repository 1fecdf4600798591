//! Discrete Fourier transforms of any length: radix 2 where it is a power of
//! two, else Bluestein's chirp, which turns one into three of those
//! (<https://doi.org/10.1109/TAU.1970.1162132>).

use std::f64::consts::PI;

/// Real and imaginary part.
pub(super) type Complex = [f64; 2];

fn mul([a, b]: Complex, [c, d]: Complex) -> Complex {
    [a * c - b * d, a * d + b * c]
}

fn unit(angle: f64) -> Complex {
    [angle.cos(), angle.sin()]
}

/// Which way; the inverse divides by the length.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Direction {
    Forward,
    Inverse,
}

/// Transforms of one length.
pub(super) struct Fourier {
    length: usize,
    chirp: Option<Chirp>,
}

struct Chirp {
    /// `exp(-πi k² / n)`
    factors: Vec<Complex>,
    /// The transform of the conjugate chirp, around zero.
    filter: Vec<Complex>,
}

impl Fourier {
    pub(super) fn new(length: usize) -> Self {
        let chirp = (!length.is_power_of_two() && length > 0).then(|| Chirp::new(length));
        Self { length, chirp }
    }

    /// # Panics
    /// When `values` has another length.
    pub(super) fn run(&self, values: &mut [Complex], direction: Direction) {
        assert_eq!(values.len(), self.length, "a transform of another length");
        // The inverse is the forward transform between two conjugations.
        if direction == Direction::Inverse {
            values.iter_mut().for_each(|value| value[1] = -value[1]);
        }
        match &self.chirp {
            Some(chirp) => chirp.run(values),
            None => radix_2(values),
        }
        if direction == Direction::Inverse {
            let scale = 1.0 / self.length as f64;
            values.iter_mut().for_each(|[real, imaginary]| {
                (*real, *imaginary) = (*real * scale, -*imaginary * scale);
            });
        }
    }
}

impl Chirp {
    fn new(length: usize) -> Self {
        // k² modulo 2n, since the angle of a large k² would be inexact.
        let angle = |k: usize| {
            let square = (k as u128 * k as u128) % (2 * length as u128);
            PI * square as f64 / length as f64
        };
        let factors: Vec<Complex> = (0..length).map(|k| unit(-angle(k))).collect();
        let padded = (2 * length - 1).next_power_of_two();
        let mut filter = vec![[0.0; 2]; padded];
        for (k, [real, imaginary]) in factors.iter().enumerate() {
            filter[k] = [*real, -imaginary];
            filter[(padded - k) % padded] = [*real, -imaginary];
        }
        radix_2(&mut filter);
        Self { factors, filter }
    }

    fn run(&self, values: &mut [Complex]) {
        let mut padded = vec![[0.0; 2]; self.filter.len()];
        for ((to, value), factor) in padded.iter_mut().zip(&*values).zip(&self.factors) {
            *to = mul(*value, *factor);
        }
        radix_2(&mut padded);
        // Conjugated, so that the next forward transform is the inverse one.
        for (value, filter) in padded.iter_mut().zip(&self.filter) {
            let [real, imaginary] = mul(*value, *filter);
            *value = [real, -imaginary];
        }
        radix_2(&mut padded);
        let scale = 1.0 / padded.len() as f64;
        for ((value, [real, imaginary]), factor) in values.iter_mut().zip(padded).zip(&self.factors)
        {
            *value = mul([real * scale, -imaginary * scale], *factor);
        }
    }
}

/// Cooley and Tukey, in place; the length is a power of two or 0.
fn radix_2(values: &mut [Complex]) {
    let length = values.len();
    let bits = length.max(1).trailing_zeros();
    if bits == 0 {
        return;
    }
    for at in 0..length {
        let other = at.reverse_bits() >> (usize::BITS - bits);
        if other > at {
            values.swap(at, other);
        }
    }
    let mut half = 1;
    while half < length {
        let turns: Vec<Complex> = (0..half).map(|k| unit(-PI * k as f64 / half as f64)).collect();
        for block in values.chunks_exact_mut(2 * half) {
            let (low, high) = block.split_at_mut(half);
            for ((low, high), turn) in low.iter_mut().zip(high).zip(&turns) {
                let odd = mul(*high, *turn);
                *high = [low[0] - odd[0], low[1] - odd[1]];
                *low = [low[0] + odd[0], low[1] + odd[1]];
            }
        }
        half *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, term by term.
    fn slow(values: &[Complex]) -> Vec<Complex> {
        let n = values.len();
        let one = |k: usize| {
            let terms = values
                .iter()
                .enumerate()
                .map(|(j, value)| mul(*value, unit(-2.0 * PI * ((j * k) % n) as f64 / n as f64)));
            terms.fold([0.0; 2], |[a, b], [c, d]| [a + c, b + d])
        };
        (0..n).map(one).collect()
    }

    #[test]
    fn all_lengths_follow_the_definition_and_come_back() {
        for length in [1, 2, 3, 5, 7, 8, 12, 33, 64, 129, 200] {
            let values: Vec<Complex> = (0..length)
                .map(|k| [(k as f64 * 1.7).sin(), (k as f64 * 0.3).cos() * k as f64])
                .collect();
            let fourier = Fourier::new(length);
            let mut got = values.clone();
            fourier.run(&mut got, Direction::Forward);
            let near = |a: &[Complex], b: &[Complex]| {
                let flat = |x: &[Complex]| x.as_flattened().to_vec();
                flat(a).iter().zip(flat(b)).all(|(a, b)| (a - b).abs() < 1e-9 * length as f64)
            };
            assert!(near(&got, &slow(&values)), "{length}");
            fourier.run(&mut got, Direction::Inverse);
            assert!(near(&got, &values), "{length} and back");
        }
    }
}
