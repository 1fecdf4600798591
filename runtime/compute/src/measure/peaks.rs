//! What a machine can do at most, measured by loops that do nothing else.

use mortise_graph::Work;
use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// What a device can do at most, as measured on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// Operations a second in `f32`, a multiplication with an addition as two.
    pub f32_per_second: f64,
    /// The same of 8-bit integers summed in 32 bits; `None` where no
    /// instruction for it is known here.
    pub int8_per_second: Option<f64>,
    /// The same in `f16`; `None` where it was not measured.
    pub f16_per_second: Option<f64>,
    /// Bytes a second from memory, of more than fit any cache.
    pub bytes_per_second: f64,
}

/// In what a graph computes, for the peak that it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    F32,
    F16,
    Int8,
}

impl Peaks {
    /// The least seconds that `work` takes; `None` where that depends on a
    /// peak that is not known.
    pub fn floor(&self, work: &Work, arithmetic: Arithmetic) -> Option<f64> {
        let moving = work.bytes as f64 / self.bytes_per_second;
        let computing = |peak: f64| work.operations as f64 / peak;
        let peak = match arithmetic {
            Arithmetic::F32 => Some(self.f32_per_second),
            Arithmetic::F16 => self.f16_per_second,
            Arithmetic::Int8 => self.int8_per_second,
        };
        match peak {
            Some(peak) => Some(moving.max(computing(peak))),
            // Narrower numbers are at least as fast.
            None => (moving >= computing(self.f32_per_second)).then_some(moving),
        }
    }
}

/// How long a loop runs.
const TIME: Duration = Duration::from_millis(100);

/// Operations a second of one thread in `f32`.
pub(crate) fn cpu_f32_per_second() -> f64 {
    rate(|| MultiplyAdds.dispatch())
}

/// Operations a second of one thread on 8-bit integers.
pub(crate) fn cpu_int8_per_second() -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
        // SAFETY: the features that the function is compiled for are there.
        return Some(rate(|| unsafe { dot_products() }));
    }
    None
}

/// Bytes a second that one thread reads from a buffer that no cache holds.
pub(crate) fn cpu_bytes_per_second() -> f64 {
    const FLOATS: usize = 64 << 20;
    let buffer = vec![1.0f32; FLOATS];
    rate(|| {
        black_box(Sum(&buffer).dispatch());
        (FLOATS * size_of::<f32>()) as f64
    })
}

/// The best of what `work` says it did in a second of its time.
fn rate(mut work: impl FnMut() -> f64) -> f64 {
    work();
    let (start, mut best) = (Instant::now(), 0.0f64);
    while start.elapsed() < TIME {
        let before = Instant::now();
        let done = work();
        best = best.max(done / before.elapsed().as_secs_f64().max(1e-9));
    }
    best
}

/// Rounds of a loop that computes in registers.
const ROUNDS: usize = 20_000;

/// Sums that do not wait for one another: more than the latency of a
/// multiplication with an addition times the units that do it.
const SUMS: usize = 12;

/// Multiplies and adds in registers; gives the number of operations.
struct MultiplyAdds;

impl SimdOp for MultiplyAdds {
    type Output = f64;

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) -> f64 {
        let ops = isa.f32();
        let (factor, term) = (ops.splat(black_box(0.5)), ops.splat(black_box(1.0)));
        let mut sums = [ops.zero(); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = ops.mul_add(*sum, factor, term);
            }
        }
        let total = sums.into_iter().fold(ops.zero(), |total, sum| ops.add(total, sum));
        black_box(ops.sum(total));
        (ROUNDS * SUMS * ops.len() * 2) as f64
    }
}

/// Reads all of a slice.
struct Sum<'a>(&'a [f32]);

impl SimdOp for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) -> f32 {
        const UNROLLED: usize = 8;
        let ops = isa.f32();
        let width = ops.len();
        let mut sums = [ops.zero(); UNROLLED];
        for chunk in self.0.chunks_exact(width * UNROLLED) {
            for (sum, part) in sums.iter_mut().zip(chunk.chunks_exact(width)) {
                *sum = ops.add(*sum, ops.load(part));
            }
        }
        let total = sums.into_iter().fold(ops.zero(), |total, sum| ops.add(total, sum));
        ops.sum(total)
    }
}

/// Sums products of bytes in registers; gives the number of operations.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot_products() -> f64 {
    use std::arch::x86_64::{
        _mm512_add_epi32, _mm512_dpbusd_epi32, _mm512_reduce_add_epi32, _mm512_set1_epi32,
        _mm512_setzero_si512,
    };
    const BYTES: usize = 64;
    let (a, b) = (_mm512_set1_epi32(black_box(3)), _mm512_set1_epi32(black_box(5)));
    let mut sums = [_mm512_setzero_si512(); SUMS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    let total = sums.into_iter().fold(_mm512_setzero_si512(), |a, b| _mm512_add_epi32(a, b));
    black_box(_mm512_reduce_add_epi32(total));
    (ROUNDS * SUMS * BYTES * 2) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_slower_of_computing_and_moving() {
        let peaks = Peaks {
            f32_per_second: 100.0,
            int8_per_second: Some(400.0),
            f16_per_second: None,
            bytes_per_second: 10.0,
        };
        let work = |operations, bytes| Work { operations, bytes, unknown_nodes: 0 };
        let cases = [
            (work(200, 10), Arithmetic::F32, Some(2.0)),
            (work(200, 40), Arithmetic::F32, Some(4.0)),
            (work(800, 10), Arithmetic::Int8, Some(2.0)),
            (work(200, 40), Arithmetic::F16, Some(4.0)),
            (work(800, 40), Arithmetic::F16, None),
        ];
        for (work, arithmetic, want) in cases {
            assert_eq!(peaks.floor(&work, arithmetic), want, "{work:?} {arithmetic:?}");
        }
    }
}
