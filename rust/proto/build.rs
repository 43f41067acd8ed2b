//! Compiles the protocol with a pure-Rust compiler: no `protoc` on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "proto/meta.proto";
    println!("cargo:rerun-if-changed={file}");
    let descriptors = protox::compile([file], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
