//! Compiles the guest agent for the same architecture, statically, with a nested cargo in a target directory of its
//! own. `KILN_AGENT_BINARY` names a finished program to embed in its place.
#![expect(clippy::disallowed_methods, reason = "a build script talks to cargo in these ways")]

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Variables of the outer cargo that would change what the nested one does.
const DISTURBING: [&str; 14] = [
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CLIPPY_ARGS",
    "CLIPPY_CONF_DIR",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_MAKEFLAGS",
    "MAKEFLAGS",
    "RUSTDOCFLAGS",
    "LLVM_PROFILE_FILE",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=KILN_AGENT_BINARY");
    let file = match env::var_os("KILN_AGENT_BINARY") {
        Some(file) => finished(Path::new(&file))?,
        None => compiled()?,
    };
    println!("cargo::rustc-env=KILN_AGENT_FILE={}", file.display());
    Ok(())
}

fn finished(file: &Path) -> Result<PathBuf, Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", file.display());
    let found =
        file.canonicalize().map_err(|error| format!("KILN_AGENT_BINARY={}: {error}", file.display()))?;
    Ok(found)
}

fn compiled() -> Result<PathBuf, Box<dyn Error>> {
    let own = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let workspace = own.join("../..").canonicalize()?;
    for watched in
        ["crates/kiln-guest/src", "crates/kiln-guest/Cargo.toml", "crates/kiln-core/src", "Cargo.lock"]
    {
        println!("cargo::rerun-if-changed={}", workspace.join(watched).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let target = format!("{arch}-unknown-linux-gnu");
    let target_dir = PathBuf::from(env::var("OUT_DIR")?).join("agent");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&workspace);
    cargo.args(["build", "--package", "kiln-guest", "--bin", "kiln-agent", "--profile", "agent", "--locked"]);
    cargo.args(["--target", &target]).arg("--target-dir").arg(&target_dir);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let of_package = ["CARGO_PKG_", "CARGO_CFG_", "CARGO_FEATURE_", "CARGO_PROFILE_", "DEP_"];
        if DISTURBING.contains(&text.as_ref()) || of_package.iter().any(|prefix| text.starts_with(prefix)) {
            cargo.env_remove(&name);
        }
    }
    // At a fixed address: it relocates nothing when it starts, and under software emulation, which keeps translations by
    // address, its code once translated serves the process of it that goes on beside an image's init.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\x1f-Crelocation-model=static");
    let output =
        cargo.output().map_err(|error| format!("cannot start cargo for the guest agent: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("cargo cannot build the guest agent ({}):\n{said}", output.status).into());
    }
    Ok(target_dir.join(target).join("agent/kiln-agent"))
}
