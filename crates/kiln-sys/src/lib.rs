//! Everything kiln asks of the operating system: files that are durable and name themselves in errors, holes and
//! reflinks, locks that name their holder, programs without a shell, and the few `unsafe` blocks with their reasons.

pub mod cancel;
pub mod clock;
pub mod commit;
pub mod copy;
mod error;
pub mod extents;
pub mod fail;
pub mod fs;
pub mod kvm;
pub mod lock;
pub mod measure;
pub mod memory;
pub mod process;
pub mod protect;
pub mod signal;
pub mod socket;
pub mod stamp;
pub mod tcp;
pub mod terminal;
pub mod tool;

pub use cancel::Cancel;
pub use error::{IoError, IoResult, IoResultExt};
pub use tool::{Tool, ToolError, Toolbox};
