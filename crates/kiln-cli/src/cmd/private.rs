//! Options that give a machine an environment and secrets of its own. Everything is read before anything is made.

use super::run::Identity;
use crate::env;
use crate::error::CliError;
use clap::Args;
use kiln_guest::NameError;
use kiln_guest::limits::SECRETS_BYTES_MAX;
use kiln_guest::private::{Environment, Private, Secrets};
use kiln_guest::secret::SecretValue;
use kiln_guest::token::{SecretName, VariableName};
use kiln_sys::{IoError, IoResultExt as _, fs};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The largest file of variables that is read, in bytes: more than fits a machine, for its comments.
const ENV_FILE_BYTES_MAX: usize = 64 << 10;

#[derive(Debug, Clone, Args)]
pub(crate) struct PrivateOptions {
    /// Set a variable of its environment; without =VALUE, to what kiln's own environment has
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<Variable>,
    /// Set the variables of a file: lines like those of --env, which goes over them, and comments
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Put a file's content, or standard input's (-), into the guest's /run/kiln/secrets/NAME
    #[arg(long, value_name = "NAME=FILE")]
    secret: Vec<Secret>,
}

/// One `--env` as it was given. A value may be a secret: it is not shown.
#[derive(Clone)]
struct Variable(String);

/// One `--secret`: `NAME=FILE`, or `id=NAME,src=FILE` as docker has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Secret {
    name: SecretName,
    source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Stdin,
    File(PathBuf),
}

/// Where a variable was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// By `--env`.
    Option,
    /// In a file.
    Line { path: PathBuf, number: usize },
}

/// Why a machine cannot be given what was asked for; no value is part of the text.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrivateError {
    #[error("{origin} names no variable")]
    Name {
        origin: Origin,
        #[source]
        source: NameError,
    },
    #[error("{origin} gives `{name}` no value, and kiln's own environment has none")]
    NotSet { origin: Origin, name: VariableName },
    #[error("{origin}: the value of `{name}` is not UTF-8")]
    NotText { origin: Origin, name: VariableName },
    #[error("{} is not UTF-8", path.display())]
    FileNotText { path: PathBuf },
    #[error("variable `{name}` is given twice: by {first} and by {second}")]
    VariableTwice { name: VariableName, first: Origin, second: Origin },
    #[error("secret `{name}` is given twice")]
    SecretTwice { name: SecretName },
    #[error("standard input can be one secret, and `{first}` and `{second}` want it")]
    StdinTwice { first: SecretName, second: SecretName },
    #[error("secret `{name}` takes standard input, which -i hands on")]
    StdinTaken { name: SecretName },
    #[error("secret `{name}` takes standard input, which is a terminal")]
    StdinTerminal { name: SecretName },
    #[error("--identity skip leaves out what --env, --env-file and --secret give")]
    NoIdentity,
    #[error(transparent)]
    Limit(#[from] kiln_guest::private::PrivateError),
    #[error(transparent)]
    File(#[from] IoError),
}

/// Why the text of a `--secret` is none.
#[derive(Debug, thiserror::Error)]
enum NoSecret {
    #[error("not NAME=FILE, and not id=NAME,src=FILE")]
    Form,
    #[error("`{0}` is neither `id` nor `src`")]
    Key(String),
    #[error(transparent)]
    Name(#[from] NameError),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option => f.write_str("--env"),
            Self::Line { path, number } => write!(f, "{} line {number}", path.display()),
        }
    }
}

impl FromStr for Variable {
    type Err = Infallible;

    /// The usage errors of the parser repeat what was given: this is parsed later.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Variable({})", self.0.split('=').next().unwrap_or_default())
    }
}

impl FromStr for Secret {
    type Err = NoSecret;

    fn from_str(text: &str) -> Result<Self, NoSecret> {
        let keyed = ["id=", "src=", "source=", "type="].iter().any(|key| text.starts_with(key));
        let (name, source) =
            if keyed { by_keys(text)? } else { text.split_once('=').ok_or(NoSecret::Form)? };
        let source = match source {
            "" => return Err(NoSecret::Form),
            "-" => Source::Stdin,
            path => Source::File(path.into()),
        };
        Ok(Self { name: name.parse()?, source })
    }
}

/// Returns name and source of docker's form.
fn by_keys(text: &str) -> Result<(&str, &str), NoSecret> {
    let (mut name, mut source) = (None, None);
    for part in text.split(',') {
        match part.split_once('=').ok_or(NoSecret::Form)? {
            ("id", value) if name.is_none() => name = Some(value),
            ("src" | "source", value) if source.is_none() => source = Some(value),
            ("type", "file") => {}
            ("id" | "src" | "source", _) => return Err(NoSecret::Form),
            (key, _) => return Err(NoSecret::Key(kiln_core::text::clip(key))),
        }
    }
    name.zip(source).ok_or(NoSecret::Form)
}

impl PrivateOptions {
    /// Reads what the options name. `interactive` says that standard input is the guest's.
    ///
    /// # Errors
    /// [`CliError::Private`]; nothing was made then.
    pub(super) fn read(&self, identity: Identity, interactive: bool) -> Result<Private, CliError> {
        let private = Private::new(self.environment(env::variable)?, self.secrets(interactive)?)
            .map_err(PrivateError::from)?;
        if identity == Identity::Skip && !private.is_empty() {
            return Err(PrivateError::NoIdentity.into());
        }
        Ok(private)
    }

    /// Collects the variables; `own` is kiln's environment.
    fn environment(
        &self,
        own: impl Fn(&VariableName) -> Option<OsString>,
    ) -> Result<Environment, PrivateError> {
        let mut found = Found { variables: BTreeMap::new(), own: &own };
        for path in &self.env_file {
            let bytes = fs::read_limited(path, ENV_FILE_BYTES_MAX)?;
            let text =
                String::from_utf8(bytes).map_err(|_| PrivateError::FileNotText { path: path.clone() })?;
            found.take_file(path, &text)?;
        }
        for Variable(text) in &self.env {
            found.take(text, Origin::Option)?;
        }
        Ok(found.variables.into_iter().map(|(name, (value, _))| (name, value)).collect())
    }

    fn secrets(&self, interactive: bool) -> Result<Secrets, PrivateError> {
        let mut stdin: Option<&SecretName> = None;
        for Secret { name, source } in &self.secret {
            if self.secret.iter().filter(|secret| secret.name == *name).count() > 1 {
                return Err(PrivateError::SecretTwice { name: name.clone() });
            }
            if *source == Source::Stdin
                && let Some(first) = stdin.replace(name)
            {
                return Err(PrivateError::StdinTwice { first: first.clone(), second: name.clone() });
            }
        }
        if let Some(name) = stdin.cloned() {
            if interactive {
                return Err(PrivateError::StdinTaken { name });
            }
            if std::io::stdin().is_terminal() {
                return Err(PrivateError::StdinTerminal { name });
            }
        }
        let mut secrets = Secrets::new();
        for Secret { name, source } in &self.secret {
            let bytes = match source {
                Source::File(path) => fs::read_limited(path, SECRETS_BYTES_MAX)?,
                Source::Stdin => read_stdin()?,
            };
            let bytes_read = bytes.len();
            let too_many = |_| kiln_guest::private::PrivateError::SecretBytes { bytes: bytes_read };
            secrets.insert(name.clone(), SecretValue::new(bytes).map_err(too_many)?);
        }
        Ok(secrets)
    }
}

/// Variables by name, each with the place it was given at.
struct Found<'a> {
    variables: BTreeMap<VariableName, (String, Origin)>,
    own: &'a dyn Fn(&VariableName) -> Option<OsString>,
}

impl Found<'_> {
    /// Takes a file's lines as docker does: leading blanks, empty lines, comments and a byte order mark say nothing; the rest
    /// of a line is its value as it stands.
    fn take_file(&mut self, path: &Path, text: &str) -> Result<(), PrivateError> {
        for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let line = line.trim_start();
            if !line.is_empty() && !line.starts_with('#') {
                self.take(line, Origin::Line { path: path.to_owned(), number: index + 1 })?;
            }
        }
        Ok(())
    }

    fn take(&mut self, text: &str, origin: Origin) -> Result<(), PrivateError> {
        let (name, value) =
            text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value.to_owned())));
        let name = match VariableName::new(name) {
            Ok(name) => name,
            Err(source) => return Err(PrivateError::Name { origin, source }),
        };
        let value = match value {
            Some(value) => value,
            None => match (self.own)(&name).map(OsString::into_string) {
                Some(Ok(value)) => value,
                Some(Err(_)) => return Err(PrivateError::NotText { origin, name }),
                None => return Err(PrivateError::NotSet { origin, name }),
            },
        };
        match self.variables.insert(name.clone(), (value, origin.clone())) {
            // What is said for one machine goes over what is said for many.
            Some((_, Origin::Line { .. })) if origin == Origin::Option => Ok(()),
            Some((_, first)) => Err(PrivateError::VariableTwice { name, first, second: origin }),
            None => Ok(()),
        }
    }
}

fn read_stdin() -> Result<Vec<u8>, IoError> {
    let mut bytes = Vec::new();
    let limit = SECRETS_BYTES_MAX as u64 + 1;
    std::io::stdin().lock().take(limit).read_to_end(&mut bytes).at("read", "standard input")?;
    Ok(bytes)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the test writes what is read")]
#[path = "private_tests.rs"]
mod tests;
