//! The user's terminal: raw mode with a guarantee of return, and its size.

use crate::error::{IoResult, IoResultExt};
use rustix::termios::{OptionalActions, Termios};
use std::os::fd::BorrowedFd;

/// A terminal in raw mode; dropping this returns it to what it was.
#[derive(Debug)]
pub struct RawMode<'fd> {
    fd: BorrowedFd<'fd>,
    before: Termios,
}

impl<'fd> RawMode<'fd> {
    /// Puts the terminal behind `fd` into raw mode.
    pub fn enter(fd: BorrowedFd<'fd>) -> IoResult<Self> {
        let before = rustix::termios::tcgetattr(fd).at("read the mode of", "terminal")?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(fd, OptionalActions::Now, &raw).at("set the mode of", "terminal")?;
        Ok(Self { fd, before })
    }
}

impl Drop for RawMode<'_> {
    fn drop(&mut self) {
        // Nothing is left to tell when the terminal itself is gone.
        let _ = rustix::termios::tcsetattr(self.fd, OptionalActions::Now, &self.before);
    }
}

/// Returns rows and columns of the terminal behind `fd`, if it is one that knows them.
pub fn size(fd: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(fd).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}
