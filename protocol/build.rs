//! Generates the Rust code of `nerite.agent.v1` from its definition.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

const PROTO: &str = "proto/nerite/agent/v1/sandbox.proto";

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={PROTO}");
    if std::env::var_os("CARGO_FEATURE_RPC").is_none() {
        return Ok(());
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?);
    Codegen::new()
        .out_dir(&out)
        .inputs([PROTO])
        .include("proto")
        .rust_protobuf()
        .customize(Customize {
            async_all: true,
            ..Default::default()
        })
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .run()?;
    for name in ["sandbox.rs", "sandbox_ttrpc.rs"] {
        strip_inner_attributes(&out.join(name))?;
    }
    Ok(())
}

/// Generated files open with inner attributes, which `include!` refuses
/// (rust-lang/rust#18810); their `//!` lines are refused as well.
fn strip_inner_attributes(file: &Path) -> io::Result<()> {
    let text = fs::read_to_string(file)?;
    let kept: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("#!") && !line.starts_with("//!"))
        .collect();
    fs::write(file, kept.join("\n"))
}
