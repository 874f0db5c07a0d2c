//! The guest agent, linked statically when this crate is compiled.

/// The program that becomes `/init` of every initramfs. See `build.rs`.
pub static AGENT: &[u8] = include_bytes!(env!("KILN_AGENT_FILE"));
