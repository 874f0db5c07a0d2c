//! Machine monitors from outside: the suite of `kiln_vmm::conformance` on the fake and on a real QEMU, and QEMU's own
//! ways to fail. The guest is a few bytes of machine code, so nothing is downloaded and nothing takes long.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up panics")]

mod capture;
mod fake;
mod guest;
mod qemu;
