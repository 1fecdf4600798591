//! Percentiles.

/// The value below which `share` (0 to 1) of the values lie; 0 without values.
pub fn percentile(values: &mut [u32], share: f64) -> u32 {
    if values.is_empty() {
        return 0;
    }
    let rank = ((values.len() as f64 * share).ceil() as usize).clamp(1, values.len());
    *values.select_nth_unstable(rank - 1).1
}

/// The middle value, or the upper of the two; 0 without values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_take_the_nearest_rank() {
        let cases = [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)];
        for (share, expected) in cases {
            let mut values: Vec<u32> = (1..=100).rev().collect();
            assert_eq!(percentile(&mut values, share), expected, "{share}");
        }
        assert_eq!(percentile(&mut [], 0.5), 0);
    }
}
