//! kiln's own pair of SSH keys: `ssh/` in the store's directory, so that its machines let it in without a key of the user's.

use crate::{Engine, EngineError, EngineResult};
use kiln_core::SshPublicKey;
use kiln_core::ssh::SSH_KEY_BYTES_MAX;
use kiln_sys::commit::commit_dir;
use kiln_sys::{IoResultExt as _, fs};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The directory, in the store's.
const DIRECTORY: &str = "ssh";
/// The private key, in that directory; the public one beside it has `.pub` behind its name.
const PRIVATE_FILE: &str = "id_ed25519";
/// The public key's comment.
const COMMENT: &str = "kiln";
/// Time to make a pair.
const MADE_WITHIN: Duration = Duration::from_secs(60);

/// kiln's own pair of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnSshKey {
    /// The private key's file.
    pub private: PathBuf,
    /// The public key.
    pub public: SshPublicKey,
}

impl Engine {
    /// Returns kiln's own pair of keys, and makes it where there is none yet. Of several who make it at once one wins, and all
    /// use it.
    ///
    /// # Errors
    /// [`kiln_sys::ToolError::NotFound`] where there is no pair and no `ssh-keygen`; [`EngineError::HostPath`] for a public
    /// key that is none.
    pub fn own_ssh_key(&self) -> EngineResult<OwnSshKey> {
        let home = self.store.root().join(DIRECTORY);
        let private = home.join(PRIVATE_FILE);
        if !fs::exists(&private)? {
            self.make_own_key(&home)?;
        }
        let path = home.join(PRIVATE_FILE).with_extension("pub");
        let public = fs::read_text_limited(&path, SSH_KEY_BYTES_MAX)?.parse().map_err(
            |error: kiln_core::ssh::InvalidSshKey| EngineError::HostPath {
                path,
                reason: format!("is no public key: {error}"),
            },
        )?;
        Ok(OwnSshKey { private, public })
    }

    fn make_own_key(&self, home: &Path) -> EngineResult<()> {
        let keygen = self.settings.toolbox.find("ssh-keygen")?;
        let staging = self.store.stage("making an SSH key")?;
        let dir = staging.path().join(DIRECTORY);
        fs::create_dir(&dir)?;
        fs::set_mode(&dir, 0o700)?;
        let private = dir.join(PRIVATE_FILE);
        keygen
            .args(["-q", "-t", "ed25519", "-N", "", "-C", COMMENT, "-f"])
            .arg(&private)
            .deadline(MADE_WITHIN)
            .run(&self.cancel, &mut |_| ())?;
        for (path, mode) in [(private.clone(), 0o600), (private.with_extension("pub"), 0o644)] {
            fs::set_mode(&path, mode)?;
            fs::open(&path)?.sync_all().at("sync", &path)?;
        }
        match commit_dir(&dir, home) {
            // Somebody else was faster.
            Err(error)
                if error.kind() == ErrorKind::AlreadyExists && fs::exists(&home.join(PRIVATE_FILE))? =>
            {
                Ok(())
            }
            other => Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;
    use kiln_sys::tool::ScratchDir;
    use kiln_sys::{Cancel, ToolError, Toolbox};

    fn engine(home: &Path, toolbox: Toolbox) -> Engine {
        let settings = Settings { home: home.to_owned(), toolbox, own_program: PathBuf::new() };
        Engine::open(settings, Cancel::new().unwrap()).unwrap()
    }

    #[test]
    fn of_several_who_make_a_pair_one_wins_and_all_use_it() {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let home = scratch.path().join("home");
        let none = engine(&home, Toolbox::new(Vec::new(), Vec::new())).own_ssh_key();
        assert!(matches!(none, Err(EngineError::Tool(ToolError::NotFound { .. }))), "{none:?}");
        let engine = engine(&home, Toolbox::default());
        let made: Vec<OwnSshKey> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..4).map(|_| scope.spawn(|| engine.own_ssh_key().unwrap())).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(made.iter().all(|one| *one == made[0]), "{made:?}");
        assert_eq!(made[0].public.comment(), COMMENT);
        assert_eq!(fs::list_dir(&home.join("staging")).unwrap(), Vec::<std::ffi::OsString>::new());
    }
}
