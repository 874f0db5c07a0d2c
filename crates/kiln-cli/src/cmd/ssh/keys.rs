//! The public keys that a new machine is given.

use super::super::Context;
use crate::error::CliError;
use crate::{env, output};
use clap::Args;
use kiln_core::ssh::{InvalidSshKey, SSH_KEYS_BYTES_MAX, check_keys};
use kiln_core::text::chain;
use kiln_core::{Reference, SshPublicKey};
use kiln_engine::EngineError;
use kiln_engine::ssh::OwnSshKey;
use kiln_sys::{IoResult, ToolError, fs};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time the user's agent has to list its keys.
const LISTED_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct SshKeyOptions {
    /// Let the owner of a public SSH key in: a file of keys, or a key [default: those of your agent, else
    /// ~/.ssh/id_*.pub, where the template has a seed]
    #[arg(long = "ssh-key", value_name = "FILE|KEY")]
    keys: Vec<String>,
    /// Give it no SSH keys, kiln's own included
    #[arg(long, conflicts_with = "keys")]
    no_ssh_keys: bool,
}

/// Why a key cannot be given to a machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SshKeyError {
    /// What a file holds is no public key.
    #[error("{} holds no public SSH key", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: InvalidSshKey,
    },
    /// A file without any key.
    #[error("{} is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// What was given in place of a file is no public key.
    #[error(transparent)]
    Key(InvalidSshKey),
    /// A file cannot be read.
    #[error(transparent)]
    Unreadable(kiln_sys::IoError),
}

impl SshKeyOptions {
    /// Returns the keys for a machine of this reference, kiln's own first.
    ///
    /// # Errors
    /// For a key that is none, and for more than a machine can have.
    pub(crate) fn read(
        &self,
        context: &Context,
        reference: &Reference,
    ) -> Result<Vec<SshPublicKey>, CliError> {
        if self.no_ssh_keys {
            return Ok(Vec::new());
        }
        if self.keys.is_empty() {
            return usual(context, reference);
        }
        let mut keys = Vec::new();
        if has_seed(context, reference)? {
            keys.extend(own(context)?.map(|own| own.public));
        }
        for word in &self.keys {
            for key in given(word)? {
                add(&mut keys, key);
            }
        }
        check_keys(&keys).map_err(EngineError::from)?;
        Ok(keys)
    }
}

/// Returns the keys that a machine of this reference is given where none are named: kiln's own and the user's, as many as a
/// machine can have.
pub(crate) fn usual(context: &Context, reference: &Reference) -> Result<Vec<SshPublicKey>, CliError> {
    if !has_seed(context, reference)? {
        return Ok(Vec::new());
    }
    let mut keys: Vec<SshPublicKey> = own(context)?.map(|own| own.public).into_iter().collect();
    let mut users = of_agent(context);
    if users.is_empty() {
        for path in env::ssh_public_files()? {
            match of_file(&path) {
                Ok(keys) => users.extend(keys),
                Err(error) => {
                    output::tell(&format!("{} is passed over: {}", path.display(), chain(&error)));
                }
            }
        }
    }
    for key in users {
        let before = keys.len();
        add(&mut keys, key);
        if check_keys(&keys).is_err() {
            keys.truncate(before);
        }
    }
    Ok(keys)
}

/// Returns kiln's own pair of keys; none where this host cannot make one.
pub(crate) fn own(context: &Context) -> Result<Option<OwnSshKey>, CliError> {
    match context.engine.own_ssh_key() {
        Ok(own) => Ok(Some(own)),
        Err(EngineError::Tool(ToolError::NotFound { .. })) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn has_seed(context: &Context, reference: &Reference) -> Result<bool, CliError> {
    Ok(context.engine.store().resolve(reference)?.manifest.seed.is_some())
}

fn add(keys: &mut Vec<SshPublicKey>, key: SshPublicKey) {
    if keys.iter().all(|known| known.key() != key.key()) {
        keys.push(key);
    }
}

/// Returns the keys that the user's agent has; none where there is no agent.
fn of_agent(context: &Context) -> Vec<SshPublicKey> {
    let Some(socket) = env::ssh_agent() else { return Vec::new() };
    let Ok(tool) = env::toolbox().find("ssh-add") else { return Vec::new() };
    let tool = tool.arg("-L").env("SSH_AUTH_SOCK", socket).deadline(LISTED_WITHIN);
    // One that does not answer, or has no keys, is none.
    let Ok(listed) = tool.run(context.engine.cancel(), &mut |_| ()) else { return Vec::new() };
    // What it has of other kinds, certificates among them, is not for machines.
    String::from_utf8_lossy(&listed.stdout).lines().filter_map(|line| line.parse().ok()).collect()
}

/// Returns the keys that a word of the command line stands for: a key has a space in it, and a kind before that.
fn given(word: &str) -> Result<Vec<SshPublicKey>, SshKeyError> {
    let path = Path::new(word);
    match word.parse() {
        Ok(key) => Ok(vec![key]),
        Err(error) if word.contains(' ') && !is_there(path).unwrap_or(false) => Err(SshKeyError::Key(error)),
        Err(_) => of_file(path),
    }
}

fn is_there(path: &Path) -> IoResult<bool> {
    fs::exists(path)
}

/// Returns the keys of a file, one a line, as `.pub` files and `authorized_keys` have them.
fn of_file(path: &Path) -> Result<Vec<SshPublicKey>, SshKeyError> {
    let text = fs::read_text_limited(path, SSH_KEYS_BYTES_MAX).map_err(SshKeyError::Unreadable)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Result<Vec<SshPublicKey>, _> = lines.map(str::parse).collect();
    let keys = keys.map_err(|source| SshKeyError::File { path: path.to_owned(), source })?;
    if keys.is_empty() { Err(SshKeyError::Empty { path: path.to_owned() }) } else { Ok(keys) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_sys::commit::{Existing, write_file};
    use kiln_sys::tool::ScratchDir;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";

    #[test]
    fn a_word_is_a_key_or_a_file_of_keys() {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let write = |text: &str| {
            let path = scratch.path().join("keys of mine");
            write_file(&path, text.as_bytes(), 0o600, Existing::Replace).unwrap();
            given(path.to_str().unwrap())
        };
        assert_eq!(given(KEY).unwrap().len(), 1);
        assert_eq!(write(&format!("# mine\n\n{KEY} a\n{KEY} b\n")).unwrap()[1].comment(), "b");
        assert!(matches!(write("# none\n"), Err(SshKeyError::Empty { .. })));
        let private = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n";
        assert!(matches!(write(private), Err(SshKeyError::File { source: InvalidSshKey::Private, .. })));
        assert!(matches!(given("ssh-rsa !!"), Err(SshKeyError::Key(InvalidSshKey::NotBase64))));
        assert!(matches!(given("/absent"), Err(SshKeyError::Unreadable(_))));
    }

    #[test]
    fn a_key_is_given_once_whatever_its_comment() {
        let mut keys = Vec::new();
        for comment in ["a", "b"] {
            add(&mut keys, format!("{KEY} {comment}").parse().unwrap());
        }
        assert_eq!((keys.len(), keys[0].comment()), (1, "a"));
    }
}
