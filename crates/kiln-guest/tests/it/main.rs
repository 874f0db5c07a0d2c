//! The real agent over a unix socket, without a machine.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::disallowed_methods, reason = "the tests start the agent and look at the files it writes")]

mod connect;
mod exec;
mod files;
mod handshake;
mod harness;
mod identity;
mod private;
mod relay;
