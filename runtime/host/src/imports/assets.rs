use crate::bindings::assets::Host;
use crate::bindings::types;
use crate::limits::Refusal;
use crate::state::State;
use mortise_types::Error;

/// Longest single read, as the contract states it.
const MAX_READ_BYTES: u64 = 16 << 20;

impl Host for State {
    fn names(&mut self) -> wasmtime::Result<Vec<String>> {
        self.enter_host()?;
        Ok(self.shared.assets.names().map(str::to_owned).collect())
    }

    fn length(&mut self, name: String) -> wasmtime::Result<Result<u64, types::Error>> {
        self.enter_host()?;
        let length = self.shared.assets.get(&name).map(|asset| asset.bytes.len() as u64);
        self.answer(length.map_err(Refusal::from))
    }

    fn read(
        &mut self,
        name: String,
        offset: u64,
        length: u64,
    ) -> wasmtime::Result<Result<Vec<u8>, types::Error>> {
        self.enter_host()?;
        let bytes = self.read_asset(&name, offset, length);
        self.answer(bytes)
    }
}

impl State {
    fn read_asset(&self, name: &str, offset: u64, length: u64) -> Result<Vec<u8>, Refusal> {
        if length > MAX_READ_BYTES {
            let message = format!("a read takes at most {MAX_READ_BYTES} bytes, not {length}");
            return Err(Error::invalid(message).into());
        }
        self.check_list(length as usize)?;
        let bytes = &self.shared.assets.get(name)?.bytes;
        let part = range_of(bytes.len(), offset, length)
            .and_then(|range| bytes.get(range))
            .ok_or_else(|| outside(name, bytes.len(), offset, length))?;
        Ok(part.to_vec())
    }
}

/// `length` bytes from `offset`, if they lie within `size`.
pub(super) fn range_of(size: usize, offset: u64, length: u64) -> Option<std::ops::Range<usize>> {
    let end = offset.checked_add(length).filter(|&end| end <= size as u64)?;
    Some(offset as usize..end as usize)
}

pub(super) fn outside(name: &str, size: usize, offset: u64, length: u64) -> Error {
    Error::invalid(format!(
        "{length} bytes from {offset} lie outside asset \"{name}\" of {size} bytes"
    ))
}
