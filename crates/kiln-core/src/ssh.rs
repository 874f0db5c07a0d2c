//! Public keys of SSH, and the users they let in.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The longest line of a public key, in bytes.
pub const SSH_KEY_BYTES_MAX: usize = 16 << 10;
/// The most keys of one machine.
pub const SSH_KEYS_MAX: usize = 32;
/// The most bytes of all keys of one machine.
pub const SSH_KEYS_BYTES_MAX: usize = 64 << 10;
/// The longest name of a user who logs in, in bytes.
pub const LOGIN_BYTES_MAX: usize = 32;

/// The kinds of keys that are taken. Source: OpenSSH's manual `sshd`, "AUTHORIZED_KEYS FILE FORMAT".
const KINDS: [&str; 7] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];
/// How a private key's file begins.
const PRIVATE_BEGINS: &str = "-----BEGIN";

/// A public key, as a line of a file `authorized_keys` has it, without options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SshPublicKey {
    /// `KIND BASE64` or `KIND BASE64 COMMENT`.
    line: String,
    /// Where its comment begins, or its end.
    comment: usize,
}

/// Why a text is no public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSshKey {
    /// Longer than [`SSH_KEY_BYTES_MAX`].
    #[error("an SSH key of {0} bytes, more than {SSH_KEY_BYTES_MAX}")]
    TooLong(usize),
    /// A private key, which nobody else is to see.
    #[error("this is a private SSH key: a machine is given public ones")]
    Private,
    /// Several lines, or characters that no line has.
    #[error("an SSH key is one line without control characters")]
    NotALine,
    /// Options come before the key.
    #[error("options before an SSH key are not taken: a line begins with the key's kind")]
    Options,
    /// None of the kinds that are known.
    #[error("`{0}` is no kind of SSH key that is taken: {list}", list = KINDS.join(", "))]
    Kind(String),
    /// What follows the kind is not Base64, or is missing.
    #[error("the SSH key is not Base64")]
    NotBase64,
    /// The key itself is of another kind than the line says.
    #[error("the SSH key is not of the kind {0} that its line begins with")]
    OtherKind(&'static str),
}

impl SshPublicKey {
    /// Returns the key's line, without its end.
    pub fn as_str(&self) -> &str {
        &self.line
    }

    /// Returns kind and key, by which equal ones are told.
    pub fn key(&self) -> &str {
        self.line[..self.comment].trim_end()
    }

    /// Returns the comment, empty where there is none.
    pub fn comment(&self) -> &str {
        &self.line[self.comment..]
    }

    /// Returns the comment, or the kind where there is none.
    pub fn label(&self) -> &str {
        match self.comment() {
            "" => self.line.split(' ').next().unwrap_or_default(),
            comment => comment,
        }
    }
}

impl FromStr for SshPublicKey {
    type Err = InvalidSshKey;

    fn from_str(text: &str) -> Result<Self, InvalidSshKey> {
        if text.len() > SSH_KEY_BYTES_MAX {
            return Err(InvalidSshKey::TooLong(text.len()));
        }
        let text = text.trim();
        if text.starts_with(PRIVATE_BEGINS) {
            return Err(InvalidSshKey::Private);
        }
        let text = text.replace('\t', " ");
        if text.chars().any(char::is_control) {
            return Err(InvalidSshKey::NotALine);
        }
        let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
        let Some(kind) = KINDS.into_iter().find(|kind| *kind == word) else {
            let is_later = rest.split([' ', ',', '"']).any(|word| KINDS.contains(&word));
            return Err(if is_later {
                InvalidSshKey::Options
            } else {
                InvalidSshKey::Kind(crate::text::clip(word))
            });
        };
        let rest = rest.trim_start();
        let (base64, comment) = rest.split_once(' ').unwrap_or((rest, ""));
        let key = BASE64_STANDARD.decode(base64).map_err(|_| InvalidSshKey::NotBase64)?;
        if base64.is_empty() {
            return Err(InvalidSshKey::NotBase64);
        }
        if inner_kind(&key) != Some(kind.as_bytes()) {
            return Err(InvalidSshKey::OtherKind(kind));
        }
        let comment = comment.trim_start();
        let mut line = format!("{kind} {base64}");
        if !comment.is_empty() {
            line.push(' ');
        }
        let begins = line.len();
        line.push_str(comment);
        Ok(Self { line, comment: begins })
    }
}

/// Returns the name that a key begins with: a length in four bytes, and so many. None where nothing follows it.
fn inner_kind(key: &[u8]) -> Option<&[u8]> {
    let (length, rest) = key.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    rest.split_at_checked(length).filter(|(_, key)| !key.is_empty()).map(|(kind, _)| kind)
}

impl TryFrom<String> for SshPublicKey {
    type Error = InvalidSshKey;

    fn try_from(text: String) -> Result<Self, InvalidSshKey> {
        text.parse()
    }
}

impl From<SshPublicKey> for String {
    fn from(key: SshPublicKey) -> Self {
        key.line
    }
}

impl fmt::Display for SshPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

/// Too many keys for one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{count} SSH keys of {bytes} bytes are too many: at most {SSH_KEYS_MAX}, of {SSH_KEYS_BYTES_MAX} bytes"
)]
pub struct TooManySshKeys {
    /// How many.
    pub count: usize,
    /// Their lines' bytes together.
    pub bytes: usize,
}

/// Checks that a machine can have all of these.
///
/// # Errors
/// When there are too many.
pub fn check_keys(keys: &[SshPublicKey]) -> Result<(), TooManySshKeys> {
    let (count, bytes) = (keys.len(), keys.iter().map(|key| key.line.len()).sum());
    let fits = count <= SSH_KEYS_MAX && bytes <= SSH_KEYS_BYTES_MAX;
    if fits { Ok(()) } else { Err(TooManySshKeys { count, bytes }) }
}

/// The name of a user who logs in to a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LoginName(String);

/// A text that is no user's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not the name of a user: up to {LOGIN_BYTES_MAX} of A-Z, a-z, 0-9, `_`, `.` and `-`, the first a letter or `_`"
)]
pub struct InvalidLoginName(String);

impl LoginName {
    /// Returns the superuser.
    pub fn root() -> Self {
        Self("root".to_owned())
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LoginName {
    type Err = InvalidLoginName;

    fn from_str(text: &str) -> Result<Self, InvalidLoginName> {
        let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let goes_on =
            text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
        if begins && goes_on && text.len() <= LOGIN_BYTES_MAX {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidLoginName(crate::text::clip(text)))
        }
    }
}

impl TryFrom<String> for LoginName {
    type Error = InvalidLoginName;

    fn try_from(text: String) -> Result<Self, InvalidLoginName> {
        text.parse()
    }
}

impl From<LoginName> for String {
    fn from(name: LoginName) -> Self {
        name.0
    }
}

impl fmt::Display for LoginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests;
