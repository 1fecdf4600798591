use mortise_types::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What bodies and messages being received hold together, with a bound.
pub(crate) struct BodyBudget {
    used: AtomicUsize,
    limit: usize,
}

impl BodyBudget {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    /// The share of one body, which holds nothing yet.
    pub(crate) fn share(self: &Arc<Self>) -> BodyShare {
        BodyShare { budget: self.clone(), bytes: 0 }
    }
}

/// Part of a [`BodyBudget`], given back on drop.
pub(crate) struct BodyShare {
    budget: Arc<BodyBudget>,
    bytes: usize,
}

impl BodyShare {
    /// Holds `bytes`, more or fewer than before.
    ///
    /// # Errors
    /// `Overloaded` when it is more and the budget is used up.
    pub(crate) fn hold(&mut self, bytes: usize) -> Result<()> {
        let Some(more) = bytes.checked_sub(self.bytes) else {
            self.budget.used.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
            self.bytes = bytes;
            return Ok(());
        };
        let before = self.budget.used.fetch_add(more, Ordering::Relaxed);
        self.bytes = bytes;
        if before + more <= self.budget.limit {
            return Ok(());
        }
        Err(Error::overloaded(format!(
            "requests being received hold http.max_buffered_body_bytes = {}; try again later",
            self.budget.limit
        )))
    }
}

impl Drop for BodyShare {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_given_back() {
        let budget = BodyBudget::new(100);
        let (mut first, mut second) = (budget.share(), budget.share());
        assert!(first.hold(60).is_ok() && second.hold(40).is_ok());
        assert!(first.hold(61).is_err());
        assert!(first.hold(10).is_ok() && second.hold(90).is_ok());
        drop(first);
        assert!(second.hold(100).is_ok());
        drop(second);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }
}
