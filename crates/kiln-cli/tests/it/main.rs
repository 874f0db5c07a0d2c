//! The program as users and scripts see it. Tests whose names begin with `boot` start real machines.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests work on the host directly and panic when they cannot"
)]

mod basics;
mod bench;
mod boot;
mod build;
mod catalog;
mod catalogs;
mod clone;
mod cloud_image;
mod copy;
mod crash;
mod debian;
mod diff;
mod dockerfile;
mod exec;
mod firmware;
mod fork;
mod identity;
mod image;
mod lifecycle;
mod lock;
mod memory;
mod mvm;
mod nix;
mod oci;
mod pause;
mod private;
mod ready;
mod registry;
mod restore;
mod roots;
mod seed;
mod snapshot;
mod space;
mod ssh;
mod steps;
mod suspend;
mod template;
mod verify;
mod vmrs;
mod vsock;

use kiln_testing::TestContext;

/// Returns a context for the program under test.
fn context() -> TestContext {
    TestContext::new(env!("CARGO_BIN_EXE_kiln"))
}
