//! Generates the client protocol from `federation-proto/proto/seaway/v1`, without protoc.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "../federation-proto/proto";
    println!("cargo:rerun-if-changed={proto}");
    let files = protox::Compiler::new([proto])?
        .include_imports(true)
        .include_source_info(true)
        .open_files(["seaway/v1/seaway.proto"])?
        .file_descriptor_set();
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("seaway_descriptor.bin"), prost::Message::encode_to_vec(&files))?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}
