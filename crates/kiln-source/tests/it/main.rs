//! Tests of the crate from outside.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::disallowed_methods, reason = "tests work on the host directly")]

mod bucket;
mod catalog;
mod download;
mod oci;
mod openpgp;
mod shelf;
