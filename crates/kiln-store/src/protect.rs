//! Protection of artifacts by the kernel, as the store is set to: fs-verity before an artifact is published, the immutable
//! flag after, so that a crash leaves nothing that cannot be swept. An artifact's seal says what protected it.

use crate::error::StoreResult;
use crate::layout::Store;
use kiln_core::Digest;
use kiln_sys::lock::{Holder, Share};
use kiln_sys::protect::{self, Look, ProtectError, Protection};
use kiln_sys::{Cancel, IoResultExt as _, fail, fs};
use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::str::FromStr;

/// The longest artifact to which [`Protect::Auto`] gives fs-verity, in bytes: the kernel reads all of it, holes too.
pub const AUTO_VERITY_BYTES_MAX: u64 = 16 << 30;
/// The mode in which an artifact can get fs-verity: its owner may write to it.
const WRITABLE_MODE: u32 = 0o600;

/// What is to protect a store's artifacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protect {
    /// fs-verity where it is to be had and the artifact has at most [`AUTO_VERITY_BYTES_MAX`], else nothing.
    #[default]
    Auto,
    /// Nothing.
    None,
    /// fs-verity, or the artifact is refused.
    Verity,
    /// The immutable flag, or the artifact is refused. It takes privileges to set and to take off.
    Immutable,
}

/// Text that names no way to protect artifacts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is none of auto, none, verity, immutable")]
pub struct InvalidProtect(String);

impl Protect {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Auto, Self::None, Self::Verity, Self::Immutable];

    /// Returns its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::Verity => "verity",
            Self::Immutable => "immutable",
        }
    }

    /// Whether an artifact of this length is to get fs-verity.
    fn wants_verity(self, size: u64) -> bool {
        self == Self::Verity || self == Self::Auto && size <= AUTO_VERITY_BYTES_MAX
    }

    /// Drops the error of an attempt that need not succeed, and that of one that was not needed.
    fn judge(self, result: Result<(), ProtectError>) -> Result<(), ProtectError> {
        match result {
            Err(ProtectError::Already { .. }) => Ok(()),
            Err(error) if self == Self::Auto && error.is_inability() => Ok(()),
            other => other,
        }
    }
}

impl fmt::Display for Protect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Protect {
    type Err = InvalidProtect;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|protect| protect.as_str() == text);
        found.ok_or_else(|| InvalidProtect(kiln_core::text::clip(text)))
    }
}

impl Store {
    /// Returns what is to protect the artifacts, as it was set when the store was opened.
    pub fn protect(&self) -> Protect {
        self.protect
    }

    /// Sets what is to protect the artifacts. New ones get it; those that are there get it, and lose the immutable flag
    /// where it is not wanted any more, with their next verification. `waiting` is told when somebody has the store.
    ///
    /// # Errors
    /// [`StoreError::Protect`](crate::StoreError::Protect) for what this user, kernel or file system cannot do: the
    /// setting stays as it was.
    pub fn set_protect(
        &mut self,
        protect: Protect,
        cancel: &Cancel,
        waiting: &mut dyn FnMut(&Holder),
    ) -> StoreResult<()> {
        let _alone = self.lock(Share::Exclusive, "changing a setting", cancel, waiting)?;
        if matches!(protect, Protect::Verity | Protect::Immutable) {
            self.try_protect(protect)?;
        }
        self.write_protect(protect)?;
        self.protect = protect;
        Ok(())
    }

    /// Protects a small file in a staging directory as an artifact would be, and returns what protects it then.
    ///
    /// # Errors
    /// [`StoreError::Protect`](crate::StoreError::Protect) for what is asked for and cannot be done.
    pub fn try_protect(&self, protect: Protect) -> StoreResult<Protection> {
        let staging = self.stage("trying protection")?;
        let path = staging.path().join("probe");
        fs::create_new(&path)?.write_all(b"probe").at("write", &path)?;
        let file = fs::open(&path)?;
        if protect.wants_verity(0) {
            protect.judge(protect::enable_verity(&file, &path))?;
        }
        if protect == Protect::Immutable {
            protect.judge(protect::set_immutable(&file, &path))?;
        }
        Ok(protect::look_at(&file, &path)?.protection)
    }

    /// Returns what protects an artifact; none where there is no such file.
    pub fn protection(&self, digest: &Digest) -> StoreResult<Protection> {
        let look = fs::optional(protect::look(&self.artifact_path(digest)))?;
        Ok(look.map_or_else(Protection::default, |look| look.protection))
    }

    /// Protects a finished file that nobody sees yet, as far as its rename allows.
    pub(crate) fn protect_staged(&self, file: &File, path: &Path, size: u64) -> StoreResult<()> {
        fail::point("protect.staged", path)?;
        if self.protect.wants_verity(size) {
            fs::set_mode(path, WRITABLE_MODE)?;
            self.protect.judge(protect::enable_verity(file, path))?;
        }
        Ok(())
    }

    /// Protects an artifact that was published and has no seal yet.
    pub(crate) fn protect_published(&self, file: &File, path: &Path) -> StoreResult<()> {
        fail::point("protect.published", path)?;
        if self.protect == Protect::Immutable {
            self.protect.judge(protect::set_immutable(file, path))?;
        }
        Ok(())
    }

    /// Gives an artifact that is there the protection that the store is set to, and takes the immutable flag off where
    /// that is not it. What cannot be done is left: the artifact can be used, and its seal says what protects it.
    pub(crate) fn protect_again(&self, file: &File, path: &Path, look: &Look, mode: u32) -> StoreResult<()> {
        let wants_flag = self.protect == Protect::Immutable;
        let wants_verity = self.protect.wants_verity(look.stamp.size) && !look.protection.verity;
        let tried = (|| {
            if look.protection.immutable && (!wants_flag || look.mode != mode) {
                fail::point("protect.clear", path)?;
                protect::clear_immutable(path)?;
            }
            if look.mode != mode {
                fs::set_mode(path, mode)?;
            }
            if wants_verity {
                enable_on_read_only(file, path, mode)?;
            }
            if wants_flag {
                protect::set_immutable(file, path)?;
            }
            Ok(())
        })();
        match tried {
            Err(error) if ProtectError::is_inability(&error) => Ok(()),
            // fs-verity takes some room.
            Err(ProtectError::Io(error)) if error.is_no_space() => Ok(()),
            other => Ok(other?),
        }
    }

    /// Takes the immutable flag off an artifact that is to be renamed, replaced or removed.
    pub(crate) fn unprotect(&self, digest: &Digest) -> StoreResult<()> {
        let path = self.artifact_path(digest);
        fail::point("protect.clear", &path)?;
        protect::clear_immutable(&path)?;
        Ok(())
    }
}

/// Turns fs-verity on for a file of this mode. Who is not privileged needs the right to write for that, which the file
/// has for a moment: another process that looks then reads it before use.
fn enable_on_read_only(file: &File, path: &Path, mode: u32) -> Result<(), ProtectError> {
    match protect::enable_verity(file, path) {
        Err(ProtectError::Denied { .. }) => {}
        other => return other,
    }
    fs::set_mode(path, mode | 0o200)?;
    let enabled = protect::enable_verity(file, path);
    fs::set_mode(path, mode)?;
    enabled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_back_and_others_refused() {
        for protect in Protect::ALL {
            assert_eq!(protect.to_string().parse(), Ok(protect));
        }
        let error = "Verity".parse::<Protect>().unwrap_err();
        assert_eq!(error.to_string(), "`Verity` is none of auto, none, verity, immutable");
    }

    #[test]
    fn auto_spares_the_longest_artifacts() {
        assert!(Protect::Auto.wants_verity(16 << 30) && !Protect::Auto.wants_verity((16 << 30) + 1));
        assert!(Protect::Verity.wants_verity(u64::MAX));
        assert!(!Protect::None.wants_verity(0) && !Protect::Immutable.wants_verity(0));
    }

    #[test]
    fn what_gets_verity_by_itself_has_a_longest_form() {
        let longest = AUTO_VERITY_BYTES_MAX;
        assert_eq!([longest, longest + 1].map(|size| Protect::Auto.wants_verity(size)), [true, false]);
        assert_eq!([longest, longest + 1].map(|size| Protect::Verity.wants_verity(size)), [true, true]);
        assert_eq!([0, longest].map(|size| Protect::Immutable.wants_verity(size)), [false, false]);
    }
}
