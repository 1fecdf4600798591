//! Errors of a malformed file, with the place.

use mortise_plugin_sdk::Error;

/// Invalid input at a byte offset of the model file.
pub(crate) fn at(offset: u64, message: impl std::fmt::Display) -> Error {
    Error::invalid(format!("the ONNX file is not valid at byte {offset}: {message}"))
}

/// Invalid input that no single byte is to blame for.
pub(crate) fn invalid(message: impl std::fmt::Display) -> Error {
    Error::invalid(format!("the ONNX file is not valid: {message}"))
}
