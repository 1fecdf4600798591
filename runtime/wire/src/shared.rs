use bytes::Bytes;
use mortise_types::{DType, Error, Result, Shape};

/// A range of a registered shared-memory region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionSlice {
    pub region: String,
    /// From the start of the region.
    pub offset: u64,
    pub byte_size: u64,
}

/// The shared memory that requests name.
pub trait SharedMemory: Send + Sync {
    /// # Errors
    /// When there is no such region, or it is shorter.
    fn read(&self, slice: &RegionSlice) -> Result<Bytes>;

    /// Writes `bytes` to the start of the slice.
    ///
    /// # Errors
    /// As [`SharedMemory::read`], and when the slice is shorter than `bytes`.
    fn write(&self, slice: &RegionSlice, bytes: &[u8]) -> Result<()>;
}

/// For where shared memory is not served.
pub struct NoSharedMemory;

impl SharedMemory for NoSharedMemory {
    fn read(&self, _: &RegionSlice) -> Result<Bytes> {
        Err(not_served())
    }

    fn write(&self, _: &RegionSlice, _: &[u8]) -> Result<()> {
        Err(not_served())
    }
}

fn not_served() -> Error {
    Error::unsupported("shared memory is not served here; send the data itself")
}

/// An input whose data is in shared memory, to be read.
#[derive(Clone, Debug)]
pub struct SharedInput {
    pub name: String,
    pub dtype: DType,
    pub shape: Shape,
    pub slice: RegionSlice,
}

/// The shared-memory parameters of one tensor while they are read.
#[derive(Debug, Default)]
pub struct SliceDraft {
    pub region: Option<String>,
    pub offset: Option<u64>,
    pub byte_size: Option<u64>,
}

impl SliceDraft {
    /// `None` when the tensor is not in shared memory.
    ///
    /// # Errors
    /// When a region has no size, or a size no region.
    pub fn finish(self) -> Result<Option<RegionSlice>> {
        match (self.region, self.byte_size) {
            (Some(region), Some(byte_size)) => {
                Ok(Some(RegionSlice { region, offset: self.offset.unwrap_or(0), byte_size }))
            }
            (Some(_), None) => {
                Err(Error::invalid("has shared_memory_region without shared_memory_byte_size"))
            }
            (None, Some(_)) => {
                Err(Error::invalid("has shared_memory_byte_size without shared_memory_region"))
            }
            (None, None) if self.offset.is_some() => {
                Err(Error::invalid("has shared_memory_offset without shared_memory_region"))
            }
            (None, None) => Ok(None),
        }
    }
}
