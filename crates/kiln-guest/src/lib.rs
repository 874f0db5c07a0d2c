//! Host-guest protocol and the static guest agent.
//!
//! The host uses [`session::Session`], directly over a [`transport::Transport`] or through a
//! [`relay::Relay`]; the guest runs [`agent`], started by the `kiln-agent` program. Both sides share
//! [`frame`] (bytes), [`message`], [`quiesce`], [`identity`] and [`private`] (payloads) and [`config`] (what the agent reads at boot). The format is
//! described in `docs/formats/guest-channel.md`.

pub mod agent;
pub mod config;
pub mod error;
mod flow;
pub mod frame;
pub mod hook;
pub mod identity;
pub mod limits;
pub mod message;
pub mod name;
mod outbox;
pub mod private;
pub mod probe;
pub mod quiesce;
pub mod relay;
pub mod secret;
pub mod session;
pub mod token;
pub mod transport;

pub use error::{ErrorKind, RemoteError, SessionError};
pub use name::{GuestPath, NameError, SignalNumber, UserSpec};
pub use session::Session;
