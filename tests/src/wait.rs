//! Waiting, in one place: tests wait for something to be so, benchmarks let time
//! pass.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const STEP: Duration = Duration::from_millis(5);

/// Asks again until `done` says yes.
///
/// # Errors
/// It did not within `limit`; `what` says what was waited for.
pub fn until(what: &str, limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done()? {
        if start.elapsed() > limit {
            bail!("waited {limit:?} for: {what}");
        }
        pass(STEP);
    }
    Ok(())
}

/// Lets this much time pass.
pub fn pass(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    {
        std::thread::park_timeout(left);
    }
}
