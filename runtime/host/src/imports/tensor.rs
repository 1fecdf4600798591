use super::shape_of;
use crate::bindings::tensor::{ByteStrings, Host, HostTensor};
use crate::bindings::types::{self, Dtype};
use crate::limits::Refusal;
use crate::state::State;
use mortise_types::{Bytes, DType, Element, Error, ErrorKind, Strings, Tensor};
use wasmtime::component::Resource;

type Answer<T> = wasmtime::Result<Result<T, types::Error>>;

impl Host for State {}

impl State {
    fn read<T: Element>(&mut self, handle: &Resource<Tensor>) -> Answer<Vec<T>> {
        self.enter_host()?;
        let tensor = self.tensors.get(handle)?;
        let list =
            self.check_list(tensor.byte_len()).and_then(|()| Ok(tensor.as_slice::<T>()?.to_vec()));
        self.answer(list)
    }

    /// A tensor that cannot be made is the plugin's fault, not its caller's.
    fn make(&mut self, build: impl FnOnce() -> Result<Tensor, Error>) -> Answer<Resource<Tensor>> {
        self.enter_host()?;
        let built = build().map_err(|error| error.with_kind(ErrorKind::PluginFailed));
        let held = built.map_err(Refusal::from).and_then(|tensor| self.hold(tensor));
        self.answer(held)
    }
}

impl HostTensor for State {
    fn dtype(&mut self, handle: Resource<Tensor>) -> wasmtime::Result<Dtype> {
        self.enter_host()?;
        Ok(self.tensors.get(&handle)?.dtype().into())
    }

    fn shape(&mut self, handle: Resource<Tensor>) -> wasmtime::Result<Vec<u64>> {
        self.enter_host()?;
        Ok(self.tensors.get(&handle)?.shape().iter().map(|&dim| dim as u64).collect())
    }

    fn length(&mut self, handle: Resource<Tensor>) -> wasmtime::Result<u64> {
        self.enter_host()?;
        Ok(self.tensors.get(&handle)?.len() as u64)
    }

    fn read_bytes(&mut self, handle: Resource<Tensor>) -> Answer<Vec<u8>> {
        self.enter_host()?;
        let tensor = self.tensors.get(&handle)?;
        let strings = || Error::invalid("read-bytes is not for BYTES tensors; use read-strings");
        let list = self
            .check_list(tensor.byte_len())
            .and_then(|()| Ok(tensor.bytes().ok_or_else(strings)?.to_vec()));
        self.answer(list)
    }

    fn read_f32(&mut self, handle: Resource<Tensor>) -> Answer<Vec<f32>> {
        self.read(&handle)
    }

    fn read_f64(&mut self, handle: Resource<Tensor>) -> Answer<Vec<f64>> {
        self.read(&handle)
    }

    fn read_s32(&mut self, handle: Resource<Tensor>) -> Answer<Vec<i32>> {
        self.read(&handle)
    }

    fn read_s64(&mut self, handle: Resource<Tensor>) -> Answer<Vec<i64>> {
        self.read(&handle)
    }

    fn read_strings(&mut self, handle: Resource<Tensor>) -> Answer<ByteStrings> {
        self.enter_host()?;
        let tensor = self.tensors.get(&handle)?;
        let list = self.check_list(tensor.byte_len()).and_then(|()| {
            let strings = tensor.strings()?;
            let (data, offsets) = (strings.bytes().to_vec(), strings.offsets().to_vec());
            Ok(ByteStrings { data, offsets })
        });
        self.answer(list)
    }

    fn from_bytes(
        &mut self,
        dtype: Dtype,
        shape: Vec<u64>,
        data: Vec<u8>,
    ) -> Answer<Resource<Tensor>> {
        self.make(|| match DType::from(dtype) {
            DType::Bool => Tensor::from_bools(&shape_of(&shape)?, data),
            DType::String => Err(Error::invalid("from-bytes is not for BYTES; use from-strings")),
            dtype => Tensor::from_bytes(dtype, &shape_of(&shape)?, Bytes::from(data)),
        })
    }

    fn from_f32(&mut self, shape: Vec<u64>, data: Vec<f32>) -> Answer<Resource<Tensor>> {
        self.make(|| Tensor::from_vec(&shape_of(&shape)?, data))
    }

    fn from_f64(&mut self, shape: Vec<u64>, data: Vec<f64>) -> Answer<Resource<Tensor>> {
        self.make(|| Tensor::from_vec(&shape_of(&shape)?, data))
    }

    fn from_s32(&mut self, shape: Vec<u64>, data: Vec<i32>) -> Answer<Resource<Tensor>> {
        self.make(|| Tensor::from_vec(&shape_of(&shape)?, data))
    }

    fn from_s64(&mut self, shape: Vec<u64>, data: Vec<i64>) -> Answer<Resource<Tensor>> {
        self.make(|| Tensor::from_vec(&shape_of(&shape)?, data))
    }

    fn from_strings(&mut self, shape: Vec<u64>, data: ByteStrings) -> Answer<Resource<Tensor>> {
        self.make(|| {
            let strings = Strings::new(data.data, data.offsets)?;
            Tensor::from_strings(&shape_of(&shape)?, strings)
        })
    }

    fn drop(&mut self, handle: Resource<Tensor>) -> wasmtime::Result<()> {
        self.release(handle).map(drop)
    }
}
