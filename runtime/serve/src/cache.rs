use crate::state::own;
use mortise_types::Tensor;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};

/// What an entry costs besides its outputs.
const ENTRY_BYTES: u64 = 256;

/// Identifies the inputs of a request.
pub(crate) type InputDigest = [u8; 32];

/// Answers of one revision by the digest of their inputs. What was not used for
/// longest goes first when the bytes are used up.
pub(crate) struct ResponseCache {
    max_bytes: u64,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    by_digest: HashMap<InputDigest, Entry>,
    /// By the time of their last use.
    by_use: BTreeMap<u64, InputDigest>,
    next_use: u64,
    bytes: u64,
}

struct Entry {
    outputs: Vec<Tensor>,
    bytes: u64,
    used: u64,
}

impl ResponseCache {
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self { max_bytes, entries: Mutex::default() }
    }

    pub(crate) fn get(&self, digest: &InputDigest) -> Option<Vec<Tensor>> {
        let mut entries = self.entries.lock();
        let entries = &mut *entries;
        let entry = entries.by_digest.get_mut(digest)?;
        entries.by_use.remove(&entry.used);
        entry.used = entries.next_use;
        entries.next_use += 1;
        entries.by_use.insert(entry.used, *digest);
        Some(entry.outputs.clone())
    }

    /// Keeps outputs, as copies: they may be views of a larger, merged run.
    pub(crate) fn insert(&self, digest: InputDigest, outputs: &[Tensor]) {
        let bytes = outputs.iter().map(|out| out.byte_len() as u64).sum::<u64>() + ENTRY_BYTES;
        if bytes > self.max_bytes {
            return;
        }
        let outputs: Vec<Tensor> = outputs.iter().map(own).collect();
        let mut entries = self.entries.lock();
        entries.remove(&digest);
        while entries.bytes + bytes > self.max_bytes && entries.remove_oldest() {}
        let used = entries.next_use;
        entries.next_use += 1;
        entries.bytes += bytes;
        entries.by_use.insert(used, digest);
        entries.by_digest.insert(digest, Entry { outputs, bytes, used });
    }
}

impl Entries {
    fn remove_oldest(&mut self) -> bool {
        let oldest = self.by_use.first_key_value().map(|(_, digest)| *digest);
        oldest.is_some_and(|digest| self.remove(&digest))
    }

    fn remove(&mut self, digest: &InputDigest) -> bool {
        let Some(entry) = self.by_digest.remove(digest) else { return false };
        self.by_use.remove(&entry.used);
        self.bytes -= entry.bytes;
        true
    }
}

/// SHA-256 over dtypes, shapes and values, each with its length, so that no two
/// requests look alike.
pub(crate) fn digest(inputs: &[Tensor]) -> InputDigest {
    let mut hash = Sha256::new();
    for tensor in inputs {
        hash.update([tensor.dtype() as u8]);
        hash.update((tensor.rank() as u64).to_le_bytes());
        tensor.shape().iter().for_each(|&dim| hash.update((dim as u64).to_le_bytes()));
        match tensor.strings() {
            Ok(strings) => {
                for text in strings.iter() {
                    hash.update((text.len() as u64).to_le_bytes());
                    hash.update(text);
                }
            }
            Err(_) => hash.update(tensor.bytes().unwrap_or_default()),
        }
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[f32]) -> Vec<Tensor> {
        vec![Tensor::from_vec(&[1, values.len()], values.to_vec()).unwrap()]
    }

    #[test]
    fn inputs_that_differ_in_anything_differ() {
        let text = |items: &[&str]| {
            vec![Tensor::from_strings(&[items.len()], items.iter().collect()).unwrap()]
        };
        let all = [
            row(&[1.0, 2.0]),
            row(&[2.0, 1.0]),
            vec![row(&[1.0, 2.0])[0].clone().reshaped(&[2, 1]).unwrap()],
            vec![Tensor::from_vec(&[1, 2], vec![1i32, 2]).unwrap()],
            text(&["ab", "c"]),
            text(&["a", "bc"]),
        ];
        for (index, one) in all.iter().enumerate() {
            assert_eq!(digest(one), digest(&one.clone()));
            assert!(all[index + 1..].iter().all(|other| digest(one) != digest(other)), "{index}");
        }
    }

    #[test]
    fn the_least_used_goes_first() {
        let cache = ResponseCache::new(2 * (ENTRY_BYTES + 4));
        let (a, b, c) = ([1; 32], [2; 32], [3; 32]);
        cache.insert(a, &row(&[1.0]));
        cache.insert(b, &row(&[2.0]));
        assert!(cache.get(&a).is_some());
        cache.insert(c, &row(&[3.0]));
        assert!(cache.get(&b).is_none());
        let kept = cache.get(&a).unwrap();
        assert_eq!(kept[0].as_slice::<f32>().unwrap(), [1.0]);
        cache.insert(c, &row(&[4.0]));
        assert_eq!(cache.entries.lock().bytes, 2 * (ENTRY_BYTES + 4));
        cache.insert([4; 32], &row(&[0.0; 1000]));
        assert!(cache.get(&[4; 32]).is_none(), "larger than the cache");
    }
}
