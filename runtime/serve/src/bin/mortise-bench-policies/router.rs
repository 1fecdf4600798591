//! What a router costs, from the decoded request to the chosen variant.

use crate::{Bench, Headers};
use mortise_types::{Error, Result};
use std::fmt::Write as _;
use std::time::Instant;

impl Bench {
    /// Medians over rounds, since one call is shorter than a clock is exact.
    pub(super) fn router(&self) -> Result<String> {
        const ROUNDS: usize = 101;
        const CALLS: usize = 2_000;
        let cases = [
            ("weighted", "{}"),
            ("header", r#"{"rules": [{"when": "header:x-beta", "equals": "1"}]}"#),
            ("ab", r#"{"experiment": "e"}"#),
            ("shadow", "{}"),
            ("bandit", "{}"),
        ];
        let mut json = String::from("{");
        for (name, config) in cases {
            let routing = self.routing(name, config, 2_500)?;
            let mut times: Vec<f64> = Vec::with_capacity(ROUNDS);
            let mut on_candidate = 0usize;
            for round in 0..ROUNDS {
                let facts = Headers::of_user(&format!("user-{round}"));
                let started = Instant::now();
                for _ in 0..CALLS {
                    let choice = routing.choose(Some(&facts), &[]);
                    on_candidate += choice.map_or(0, |choice| choice.variant);
                }
                times.push(started.elapsed().as_secs_f64() * 1e6 / CALLS as f64);
            }
            times.sort_by(f64::total_cmp);
            let median = times[ROUNDS / 2];
            eprintln!("{name:<9} {median:.3} us a request ({on_candidate} to the candidate)");
            if routing.counts().undecided > 0 {
                return Err(Error::internal(format!("{name} failed: {:?}", routing.stats())));
            }
            // Writing into a string cannot fail.
            let _ = write!(json, "\"{name}_us\":{median:.4},");
            if name == "weighted" {
                let _ = write!(json, "\"router_us\":{median:.4},");
            }
        }
        Ok(json.trim_end_matches(',').to_string() + "}")
    }
}
