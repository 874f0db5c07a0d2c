//! Test context and fixtures: a store of its own for each test, the real program, a small real guest, and an end of
//! every process a test started, however the test ends. Used from integration tests only.
#![expect(clippy::disallowed_methods, reason = "tests work on the host directly")]
#![expect(clippy::missing_panics_doc, reason = "a test that cannot be set up panics")]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up panics")]

mod context;
mod filter;
mod guest;

pub use context::{Output, Running, TestContext};
pub use filter::plain;
pub use guest::{busybox_rootfs, fixtures, recipe};
