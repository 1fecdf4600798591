use crate::cpu::op::Entry;

pub(crate) const ENTRIES: &[Entry] = &[];
pub(crate) const MS_ENTRIES: &[Entry] = &[];
