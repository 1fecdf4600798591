use crate::cpu::op::Entry;

pub(crate) const ENTRIES: &[Entry] = &[];
