//! What the crate promises, through its public functions and with the host's own tools.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod archive;
mod bake;
mod disk;
mod host;
mod image;
mod initramfs;
mod nix;
mod plan;
mod run;
