//! What one machine alone is told: its environment and its secrets, by restored and booted machines alike.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{ErrorKind, RemoteError};
use crate::limits::{ENVIRONMENT_BYTES_MAX, PRIVATE_WIRE_BYTES_MAX, SECRETS_BYTES_MAX, SECRETS_MAX};
use crate::message::to_json;
use crate::secret::SecretValue;
use crate::token::{SecretName, VariableName};

/// Variables by name.
pub type Environment = BTreeMap<VariableName, String>;

/// Secrets by name.
pub type Secrets = BTreeMap<SecretName, SecretValue>;

/// A machine's environment and secrets, within every limit.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Private {
    environment: Environment,
    secrets: Secrets,
}

/// Why a machine cannot be given an environment or secrets; no value is part of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrivateError {
    /// Over the limit.
    #[error("the environment has {bytes} bytes, more than {ENVIRONMENT_BYTES_MAX}")]
    EnvironmentBytes {
        /// Names, values and separators together.
        bytes: usize,
    },
    /// A value that no program could be given.
    #[error("variable {name} contains a zero byte")]
    ZeroByte {
        /// The variable.
        name: VariableName,
    },
    /// Over the limit.
    #[error("{count} secrets, more than {SECRETS_MAX}")]
    SecretCount {
        /// How many.
        count: usize,
    },
    /// Over the limit.
    #[error("the secrets have {bytes} bytes, more than {SECRETS_BYTES_MAX}")]
    SecretBytes {
        /// All values together.
        bytes: usize,
    },
    /// Each within its limit, but full of characters that take several bytes on their way.
    #[error("environment and secrets have {bytes} bytes on their way, more than {PRIVATE_WIRE_BYTES_MAX}")]
    WireBytes {
        /// Both together, as JSON.
        bytes: usize,
    },
}

impl From<PrivateError> for RemoteError {
    fn from(error: PrivateError) -> Self {
        Self::new(ErrorKind::Invalid, error.to_string())
    }
}

impl Private {
    /// Takes an environment and secrets.
    ///
    /// # Errors
    /// Names the first limit that is broken.
    pub fn new(environment: Environment, secrets: Secrets) -> Result<Self, PrivateError> {
        check_environment(&environment)?;
        check_secrets(&secrets)?;
        let bytes = to_json(&environment).len() + to_json(&secrets).len();
        if bytes > PRIVATE_WIRE_BYTES_MAX {
            return Err(PrivateError::WireBytes { bytes });
        }
        Ok(Self { environment, secrets })
    }

    /// Returns the environment.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Returns the secrets.
    #[must_use]
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Returns whether there is neither.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.environment.is_empty() && self.secrets.is_empty()
    }
}

/// Names only.
impl fmt::Debug for Private {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Private")
            .field("environment", &self.environment.keys())
            .field("secrets", &self.secrets.keys())
            .finish()
    }
}

/// Checks an environment of either request.
pub(crate) fn check_environment(environment: &Environment) -> Result<(), PrivateError> {
    let bytes: usize = environment.iter().map(|(name, value)| variable_bytes(name, value)).sum();
    if bytes > ENVIRONMENT_BYTES_MAX {
        return Err(PrivateError::EnvironmentBytes { bytes });
    }
    match environment.iter().find(|(_, value)| value.contains('\0')) {
        Some((name, _)) => Err(PrivateError::ZeroByte { name: name.clone() }),
        None => Ok(()),
    }
}

/// Checks the secrets of either request.
pub(crate) fn check_secrets(secrets: &Secrets) -> Result<(), PrivateError> {
    if secrets.len() > SECRETS_MAX {
        return Err(PrivateError::SecretCount { count: secrets.len() });
    }
    let bytes: usize = secrets.values().map(|secret| secret.bytes().len()).sum();
    if bytes > SECRETS_BYTES_MAX { Err(PrivateError::SecretBytes { bytes }) } else { Ok(()) }
}

/// `NAME=value` and the zero byte behind it.
fn variable_bytes(name: &VariableName, value: &str) -> usize {
    name.as_str().len() + value.len() + 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::FRAME_PAYLOAD_MAX;
    use crate::message::{Configure, Request};

    fn environment(value: &str) -> Environment {
        [(VariableName::new("A").unwrap(), value.to_owned())].into()
    }

    fn secrets(count: usize, bytes: usize) -> Secrets {
        let secret = |n| (SecretName::new(format!("{n:064}")).unwrap(), vec![7; bytes]);
        (0..count).map(secret).map(|(name, bytes)| (name, SecretValue::new(bytes).unwrap())).collect()
    }

    #[test]
    fn limits_are_kept_and_told_without_values() {
        let longest = "x".repeat(ENVIRONMENT_BYTES_MAX - 3);
        assert!(!Private::new(environment(&longest), Secrets::new()).unwrap().is_empty());
        let refused = |environment, secrets| Private::new(environment, secrets).unwrap_err().to_string();
        let none = Environment::new();
        assert_eq!(
            refused(environment(&(longest + "x")), Secrets::new()),
            "the environment has 12289 bytes, more than 12288"
        );
        assert_eq!(refused(environment("top\0secret"), Secrets::new()), "variable A contains a zero byte");
        assert_eq!(refused(none.clone(), secrets(65, 0)), "65 secrets, more than 64");
        assert_eq!(
            refused(none, secrets(2, SECRETS_BYTES_MAX / 2 + 1)),
            "the secrets have 16386 bytes, more than 16384"
        );
        assert!(Private::new(Environment::new(), secrets(64, SECRETS_BYTES_MAX / 64)).is_ok());
    }

    #[test]
    fn what_is_within_every_limit_fits_a_frame() {
        let quotes = "\"".repeat(ENVIRONMENT_BYTES_MAX - 3);
        let most = Private::new(environment(&quotes), secrets(64, SECRETS_BYTES_MAX / 64)).unwrap();
        let request = Configure {
            hostname: Some("x".repeat(64)),
            clock_unix_ns: Some(u64::MAX),
            entropy: Some("0".repeat(64)),
            environment: Some(most.environment().clone()),
            secrets: Some(most.secrets().clone()),
            ..Configure::default()
        };
        assert!(to_json(&Request::Configure(Box::new(request))).len() < FRAME_PAYLOAD_MAX - 1024);
        let bells = "\u{7}".repeat(ENVIRONMENT_BYTES_MAX - 3);
        let refused = Private::new(environment(&bells), Secrets::new()).unwrap_err();
        assert_eq!(refused, PrivateError::WireBytes { bytes: 6 * bells.len() + 10 });
    }

    #[test]
    fn nothing_is_shown_but_names() {
        let secrets = [(SecretName::new("key").unwrap(), SecretValue::new(b"hunter2".to_vec()).unwrap())];
        let private = Private::new(environment("hunter2"), secrets.into()).unwrap();
        let configure = Configure {
            environment: Some(private.environment().clone()),
            secrets: Some(private.secrets().clone()),
            ..Configure::default()
        };
        for text in [format!("{private:?}"), format!("{configure:?}")] {
            assert!(!text.contains("hunter2") && !text.contains("68756e"), "{text}");
        }
        let shown = format!("{private:?}");
        assert!(shown.contains("\"A\"") && shown.contains("\"key\""), "{shown}");
    }
}
