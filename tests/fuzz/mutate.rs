//! Deterministic mutations of a corpus.

const INTERESTING: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 1 << 31, u32::MAX as u64, 1 << 40, 1 << 63, u64::MAX];

const WORDS: [&str; 16] = [
    "\"shape\":[-1]",
    "\"datatype\":\"BYTES\"",
    "\"FP16\"",
    "1e999",
    "-0",
    "null",
    "[[",
    "]]",
    "{}",
    "\\u0000",
    "\\ud800",
    "binary_data_size",
    "Loop",
    "Scan",
    "ai.onnx.ml",
    "18446744073709551616",
];

const MAX_CORPUS: usize = 4_000;
const MAX_INPUT_BYTES: usize = 64 * 1024;

pub(crate) struct Mutator {
    corpus: Vec<Vec<u8>>,
    random: fastrand::Rng,
}

impl Mutator {
    pub(crate) fn new(corpus: Vec<Vec<u8>>, seed: u64) -> Self {
        Self { corpus, random: fastrand::Rng::with_seed(seed) }
    }

    /// Mutates this one too from now on.
    pub(crate) fn keep(&mut self, input: Vec<u8>) {
        if self.corpus.len() < MAX_CORPUS {
            self.corpus.push(input);
        }
    }

    pub(crate) fn next(&mut self) -> Vec<u8> {
        let mut input = self.pick();
        for _ in 0..=self.random.usize(0..6) {
            self.mutate(&mut input);
        }
        input.truncate(MAX_INPUT_BYTES);
        input
    }

    fn pick(&mut self) -> Vec<u8> {
        let index = self.random.usize(0..self.corpus.len());
        self.corpus[index].clone()
    }

    fn mutate(&mut self, input: &mut Vec<u8>) {
        let at = self.random.usize(0..=input.len());
        let length = self.random.usize(0..=(input.len() - at).min(64));
        match self.random.u8(0..9) {
            0 => flip(input, at, self.random.u32(0..8)),
            1 => insert(input, at, &[self.random.u8(..)]),
            2 => drop(input.drain(at..at + length)),
            3 => {
                let piece = input[at..at + length].to_vec();
                insert(input, at, &piece);
            }
            4 => input.truncate(at),
            5 => {
                let value = INTERESTING[self.random.usize(0..INTERESTING.len())];
                let width = [1, 2, 4, 8][self.random.usize(0..4)];
                overwrite(input, at, &value.to_le_bytes()[..width]);
            }
            6 => {
                let value = INTERESTING[self.random.usize(0..INTERESTING.len())];
                overwrite(input, at, &varint(value));
            }
            7 => {
                let word = WORDS[self.random.usize(0..WORDS.len())];
                insert(input, at, word.as_bytes());
            }
            _ => {
                let other = self.pick();
                let from = self.random.usize(0..=other.len());
                let until = self.random.usize(from..=other.len());
                insert(input, at, &other[from..until]);
            }
        }
    }
}

fn flip(input: &mut [u8], at: usize, bit: u32) {
    if let Some(byte) = input.get_mut(at) {
        *byte ^= 1 << bit;
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}

fn overwrite(input: &mut [u8], at: usize, bytes: &[u8]) {
    input[at..].iter_mut().zip(bytes).for_each(|(old, new)| *old = *new);
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}
