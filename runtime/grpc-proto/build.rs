//! Compiles the protocol without a `protoc`: descriptors for reflection, and
//! code for messages and services.

use prost::Message;
use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

const FILES: [&str; 3] = ["inference.proto", "model_config.proto", "model_repository.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::Compiler::new(["proto"])?
        .include_source_info(false)
        .include_imports(true)
        .open_files(FILES)?
        .file_descriptor_set();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".")
        .btree_map(".")
        // Requests are bounded and tensors borrowed while they are decoded.
        .extern_path(".inference.ModelInferRequest", "crate::ModelInferRequest")
        .extern_path(".inference.ModelInferResponse", "crate::ModelInferResponse")
        .compile_fds(files)?;
    Ok(())
}
