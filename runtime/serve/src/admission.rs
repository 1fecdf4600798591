use mortise_types::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter with an upper bound.
pub(crate) struct Budget {
    used: AtomicU64,
    limit: u64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), limit })
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// `None` beyond the bound.
    pub(crate) fn take(self: &Arc<Self>, amount: u64) -> Option<Share> {
        let add = |used: u64| used.checked_add(amount).filter(|&sum| sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Share { budget: self.clone(), amount })
    }
}

/// Part of a budget, given back on drop.
pub(crate) struct Share {
    budget: Arc<Budget>,
    amount: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

/// The right of one request to wait and run. Travels with the work, so that
/// work whose client has gone still counts until it is done.
pub(crate) struct Permit {
    _requests: Share,
    _bytes: Share,
}

/// What an endpoint asks of the budgets for one request.
pub(crate) struct Admission<'a> {
    pub(crate) endpoint: &'a str,
    pub(crate) requests: &'a Arc<Budget>,
    pub(crate) bytes: &'a Arc<Budget>,
}

impl Admission<'_> {
    /// # Errors
    /// [`mortise_types::ErrorKind::Overloaded`], naming the bound that was hit.
    pub(crate) fn admit(&self, input_bytes: u64) -> Result<Permit> {
        let requests = self.requests.take(1).ok_or_else(|| {
            Error::overloaded(format!(
                "model \"{}\" has {} requests running and waiting, which is \
                 max_endpoint_requests; try again later",
                self.endpoint, self.requests.limit
            ))
        })?;
        let bytes = self.bytes.take(input_bytes).ok_or_else(|| {
            Error::overloaded(format!(
                "the server holds {} of max_admitted_bytes = {} in requests under way; \
                 try again later",
                self.bytes.used(),
                self.bytes.limit
            ))
        })?;
        Ok(Permit { _requests: requests, _bytes: bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortise_types::ErrorKind;

    #[test]
    fn both_bounds_refuse_and_recover() {
        let (requests, bytes) = (Budget::new(2), Budget::new(100));
        let admission = Admission { endpoint: "m", requests: &requests, bytes: &bytes };
        let first = admission.admit(60).unwrap();
        let refused = admission.admit(60).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Overloaded);
        assert!(refused.message().contains("max_admitted_bytes = 100"), "{refused}");
        let second = admission.admit(40).unwrap();
        let refused = admission.admit(0).err().unwrap();
        assert!(refused.message().contains("max_endpoint_requests"), "{refused}");
        drop((first, second));
        assert_eq!((requests.used(), bytes.used()), (0, 0));
    }
}
