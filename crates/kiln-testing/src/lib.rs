//! Test context and fixtures: a store of its own for each test, the real program, a small real guest, and an end of
//! every process a test started, however the test ends; for the store, a check of all its invariants, worker processes
//! that may be killed, and small file systems that fill up. Used from integration tests only.
#![expect(clippy::disallowed_methods, reason = "tests work on the host directly")]
#![expect(clippy::missing_panics_doc, reason = "a test that cannot be set up panics")]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up panics")]

#[cfg(feature = "buckets")]
mod bucket;
mod check;
mod context;
mod filter;
mod gpg;
mod guest;
mod mount;
mod nginx;
mod points;
mod registry;
mod server;
mod worker;

#[cfg(feature = "buckets")]
pub use bucket::BucketServer;
pub use check::{check_store, check_swept};
pub use context::{Output, Running, TestContext};
pub use filter::plain;
pub use gpg::{Gpg, gpg_day};
pub use guest::{busybox_rootfs, fixtures, recipe};
pub use mount::{FileSystem, Mounted, fast_dir};
pub use nginx::Nginx;
pub use points::fail_points;
pub use registry::Registry;
pub use server::FileServer;
pub use worker::{Served, Worker, pause, serve};
