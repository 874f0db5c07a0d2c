//! Unix sockets in directories with long paths: the address has room for 107 bytes, a descriptor of the directory
//! and a short name always fit.

use crate::error::{IoResult, IoResultExt};
use crate::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Connects to the socket `name` in `dir`.
pub fn connect(dir: &Path, name: &str) -> IoResult<UnixStream> {
    let fd = fs::open_dir(dir)?;
    UnixStream::connect(short(&fd, name)).at("connect to", dir.join(name))
}

/// Listens on the socket `name` in `dir`; one left behind by a process that is gone is replaced.
pub fn listen(dir: &Path, name: &str) -> IoResult<UnixListener> {
    fs::remove_file(&dir.join(name))?;
    let fd = fs::open_dir(dir)?;
    UnixListener::bind(short(&fd, name)).at("listen on", dir.join(name))
}

fn short(dir: &impl AsRawFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::ScratchDir;

    #[test]
    fn a_long_directory_is_no_obstacle() {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let dir = scratch.path().join("x".repeat(200));
        fs::create_dir_all(&dir).unwrap();
        let listener = listen(&dir, "s").unwrap();
        let _client = connect(&dir, "s").unwrap();
        listener.accept().unwrap();
        drop(listener);
        listen(&dir, "s").unwrap();
    }
}
