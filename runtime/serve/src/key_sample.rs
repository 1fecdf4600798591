use std::sync::atomic::{AtomicU64, Ordering};

/// Users that are sampled at most.
const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 12;

/// Enough for every variant of a lineup.
const VARIANT_BITS: u32 = 5;

/// A slot without a user.
const EMPTY: u64 = u64::MAX;

/// A sample of the users that a router assigned, each once however many
/// requests they send: what a sample-ratio test may count, where requests of
/// one user are no independent draws.
///
/// Keys fall into slots by a hash, and each slot keeps the key of the smallest
/// one, so that the sample is drawn evenly from all keys, without a lock.
pub(crate) struct KeySample(Box<[AtomicU64]>);

impl Default for KeySample {
    fn default() -> Self {
        Self((0..SLOTS).map(|_| AtomicU64::new(EMPTY)).collect())
    }
}

impl KeySample {
    /// `hash` must not be what the router decides by: the smallest of those
    /// would be one variant's more often than the other's.
    pub(crate) fn note(&self, hash: u64, variant: usize) {
        let slot = &self.0[(hash >> (u64::BITS - SLOT_BITS)) as usize];
        let order = (hash << SLOT_BITS) >> SLOT_BITS;
        let entry = (order << VARIANT_BITS) | (variant as u64 % (1 << VARIANT_BITS));
        if entry < slot.load(Ordering::Relaxed) {
            slot.fetch_min(entry, Ordering::Relaxed);
        }
    }

    /// Sampled users of a variant.
    pub(crate) fn count(&self, variant: usize) -> u64 {
        let is_its = |entry: u64| entry != EMPTY && entry % (1 << VARIANT_BITS) == variant as u64;
        self.0.iter().filter(|slot| is_its(slot.load(Ordering::Relaxed))).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(key: u64) -> u64 {
        crate::routing::hash_key(&key.to_le_bytes())
    }

    #[test]
    fn users_count_once_and_in_proportion() {
        let sample = KeySample::default();
        for key in 0..100_000u64 {
            // A quarter of the users, who send most of the requests.
            let variant = usize::from(key % 4 == 0);
            for _ in 0..1 + 20 * variant {
                sample.note(hash(key), variant);
            }
        }
        let (stable, candidate) = (sample.count(0), sample.count(1));
        assert_eq!(stable + candidate, SLOTS as u64);
        let expected = SLOTS as f64 / 4.0;
        assert!(
            (candidate as f64 - expected).abs() < 3.29 * (expected * 0.75).sqrt(),
            "{candidate}"
        );
    }

    #[test]
    fn few_users_are_all_sampled_but_those_that_share_a_slot() {
        let sample = KeySample::default();
        (0..100u64).for_each(|key| sample.note(hash(key), 1));
        assert!((95..=100).contains(&sample.count(1)), "{}", sample.count(1));
        assert_eq!(sample.count(0), 0);
    }
}
