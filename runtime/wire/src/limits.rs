/// What one request may contain. The size of its body is bounded where it is
/// read; these bound what a body of that size can make the decoder do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireLimits {
    /// Inputs of a request, and likewise requested outputs. Default 256.
    pub max_tensors: usize,
    /// Dimensions of a tensor. Default 32.
    pub max_rank: usize,
    /// Elements of one tensor. Default 2^30.
    pub max_elements: usize,
    /// Nesting of objects and arrays in the JSON, `data` included. Default 64.
    pub max_depth: usize,
    /// Parameters of a request. Default 64.
    pub max_parameters: usize,
    /// Bytes of a name, an id, or a parameter's text. Default 1,024.
    pub max_text_bytes: usize,
}

impl Default for WireLimits {
    fn default() -> Self {
        Self {
            max_tensors: 256,
            max_rank: 32,
            max_elements: 1 << 30,
            max_depth: 64,
            max_parameters: 64,
            max_text_bytes: 1024,
        }
    }
}

const _: () = assert!(std::mem::size_of::<usize>() == 8, "element limits assume 64-bit sizes");
