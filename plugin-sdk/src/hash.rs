//! Numbers that look random and follow from others, for plugins, which have no
//! source of randomness. They never change: what was assigned by them stays.

/// The output of splitmix64 for the state `value`.
pub fn mix(value: u64) -> u64 {
    let mut value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A hash of bytes that follow on what `start` is the hash of.
pub fn bytes(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| mix(hash ^ u64::from(*byte)))
}

/// From 0 up to 1, from the upper 53 bits.
pub fn unit(hash: u64) -> f64 {
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first outputs of the reference implementation, seeded with 0.
    #[test]
    fn it_is_splitmix64() {
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(0x9e37_79b9_7f4a_7c15), 0x6e78_9e6a_a1b9_65f4);
        assert_eq!((unit(0), unit(1 << 63)), (0.0, 0.5));
        assert_eq!(bytes(1, b"ab"), bytes(bytes(1, b"a"), b"b"));
    }
}
