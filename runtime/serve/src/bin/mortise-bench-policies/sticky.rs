//! Which keys get which version, through the components that ship.

use crate::{Bench, Headers};
use mortise_serve::Routing;
use mortise_types::{Error, Result};

/// Weights of the candidate, in parts of 10,000.
const RAMP: [u32; 5] = [100, 500, 2_500, 5_000, 10_000];

/// Two-sided 99.9 % of the normal distribution.
const SCORE: f64 = 3.29;

/// 99.9 % of the chi-square distribution with one degree of freedom.
const CHI_SQUARE: f64 = 10.83;

/// Two experiments that each own a layer, one that owns half of the first
/// one's, and one that owns the other half.
const EXPERIMENTS: [&str; 4] = [
    r#"{"experiment": "colour"}"#,
    r#"{"experiment": "price"}"#,
    r#"{"experiment": "left", "layer": "page", "slice": [0, 0.5],
        "groups": {"all": {"version": 2, "share": 1}}}"#,
    r#"{"experiment": "right", "layer": "page", "slice": [0.5, 1],
        "groups": {"all": {"version": 2, "share": 1}}}"#,
];

impl Bench {
    /// Counts keys that leave the new version while its weight grows, shares
    /// outside their 99.9 % interval, and how far experiments of different
    /// layers are from independent.
    pub(super) fn sticky(&self, keys: u64) -> Result<String> {
        let ramp = RAMP.map(|weight| self.routing("weighted", "{}", weight));
        let ramp = ramp.into_iter().collect::<Result<Vec<_>>>()?;
        let experiments = EXPERIMENTS.map(|config| self.routing("ab", config, 5_000));
        let experiments = experiments.into_iter().collect::<Result<Vec<_>>>()?;
        let (mut counts, mut left) = ([0u64; RAMP.len()], 0u64);
        let (mut layers, mut excluded) = ([[0f64; 2]; 2], 0u64);
        for key in 0..keys {
            let facts = Headers::of_user(&format!("user-{key}"));
            let on: Vec<bool> = ramp.iter().map(|it| is_new(it, &facts)).collect::<Result<_>>()?;
            left += u64::from(!on.is_sorted());
            counts.iter_mut().zip(on).for_each(|(count, on)| *count += u64::from(on));
            let in_group: Vec<bool> =
                experiments.iter().map(|it| is_new(it, &facts)).collect::<Result<_>>()?;
            layers[usize::from(in_group[0])][usize::from(in_group[1])] += 1.0;
            excluded += u64::from(in_group[2] != in_group[3]);
        }
        let outside =
            RAMP.iter().zip(counts).filter(|&(&weight, count)| is_outside(weight, count, keys));
        let (outside, chi_square) = (outside.count(), chi_square(&layers));
        eprintln!(
            "{keys} keys: {counts:?} at {RAMP:?} of 10,000, {left} left the new version; layers: \
             chi-square {chi_square:.2}, independent ones are below {CHI_SQUARE} in 99.9 %"
        );
        Ok(format!(
            "{{\"sticky_keys\":{keys},\"sticky_left\":{left},\"sticky_shares_outside\":{outside},\
             \"layers_chi_square\":{chi_square:.4},\"layers_dependent\":{},\
             \"layer_shared\":{}}}",
            u64::from(chi_square > CHI_SQUARE),
            keys - excluded
        ))
    }
}

/// Whether the new version gets the request.
fn is_new(routing: &Routing, facts: &Headers) -> Result<bool> {
    let choice = routing.choose(Some(facts), &[]);
    let choice = choice.ok_or_else(|| Error::internal(format!("{:?}", routing.stats())))?;
    Ok(choice.variant == 1)
}

fn is_outside(weight: u32, count: u64, keys: u64) -> bool {
    let (keys, share) = (keys as f64, f64::from(weight) / 10_000.0);
    let deviation = (keys * share * (1.0 - share)).sqrt();
    (count as f64 - keys * share).abs() > SCORE * deviation
}

/// Pearson's statistic of a table of two by two.
fn chi_square(cells: &[[f64; 2]; 2]) -> f64 {
    let total: f64 = cells.iter().flatten().sum();
    let row = |at: usize| cells[at][0] + cells[at][1];
    let column = |at: usize| cells[0][at] + cells[1][at];
    let mut sum = 0.0;
    for (i, cells) in cells.iter().enumerate() {
        for (j, cell) in cells.iter().enumerate() {
            let expected = row(i) * column(j) / total;
            sum += (cell - expected).powi(2) / expected;
        }
    }
    sum
}
