//! A machine's environment and secrets on disk: `private.json` in its directory, apart from its record, so that nothing which
//! shows, copies or logs a record can show a value.

use crate::{Engine, EngineResult};
use kiln_guest::private::{Environment, Private, Secrets};
use kiln_guest::token::{SecretName, VariableName};
use kiln_store::{MachineEntry, StoreError};
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::fs;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file, in the machine's directory. A machine with neither environment nor secrets has none.
pub const PRIVATE_FILE: &str = "private.json";
/// The version of its format that this program writes.
const VERSION: u32 = 1;
/// The largest that is read, in bytes: what fits a frame of the guest channel, and its keys.
const BYTES_MAX: usize = 128 << 10;

#[derive(Serialize, Deserialize)]
struct OnDisk {
    version: u32,
    environment: Environment,
    secrets: Secrets,
}

/// The names of a machine's variables and secrets, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PrivateNames {
    /// Its variables.
    pub environment: Vec<VariableName>,
    /// Its secrets.
    pub secrets: Vec<SecretName>,
}

impl Engine {
    /// Returns the names of what a machine alone is told.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for a file that cannot be read, one of another version among them.
    pub fn private_names(&self, entry: &MachineEntry) -> EngineResult<PrivateNames> {
        let private = read(&entry.dir)?;
        Ok(PrivateNames {
            environment: private.environment().keys().cloned().collect(),
            secrets: private.secrets().keys().cloned().collect(),
        })
    }
}

/// Writes the file into the directory of a machine that is not published yet.
pub(crate) fn write(dir: &Path, private: &Private) -> EngineResult<()> {
    if private.is_empty() {
        return Ok(());
    }
    let content = OnDisk {
        version: VERSION,
        environment: private.environment().clone(),
        secrets: private.secrets().clone(),
    };
    #[expect(clippy::unwrap_used, reason = "plain data always serializes")]
    let bytes = serde_json::to_vec(&content).unwrap();
    Ok(write_file(&dir.join(PRIVATE_FILE), &bytes, 0o600, Existing::Keep)?)
}

/// Reads the file of a machine; without one it has neither environment nor secrets.
pub(crate) fn read(dir: &Path) -> EngineResult<Private> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let path = dir.join(PRIVATE_FILE);
    let Some(bytes) = fs::read_optional(&path, BYTES_MAX)? else { return Ok(Private::default()) };
    let damaged = |reason: String| StoreError::Damaged { path: path.clone(), reason };
    // The parser's own words may repeat a value.
    let not_one = |error: serde_json::Error| {
        damaged(format!("line {}, column {}: not an environment and secrets", error.line(), error.column()))
    };
    let Version { version } = serde_json::from_slice(&bytes).map_err(not_one)?;
    if version != VERSION {
        return Err(damaged(format!("it has version {version}, this kiln knows {VERSION}")).into());
    }
    let content: OnDisk = serde_json::from_slice(&bytes).map_err(not_one)?;
    Ok(Private::new(content.environment, content.secrets).map_err(|error| damaged(error.to_string()))?)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the test looks at the file itself, and damages it")]
mod tests {
    use super::*;
    use kiln_guest::limits::{ENVIRONMENT_BYTES_MAX, SECRETS_BYTES_MAX, SECRETS_MAX};
    use kiln_guest::secret::SecretValue;
    use kiln_sys::tool::ScratchDir;
    use std::os::unix::fs::PermissionsExt as _;

    fn private(variable: &str, secrets: usize, secret: &[u8]) -> Private {
        let variable = (VariableName::new("A").unwrap(), variable.to_owned());
        let secret =
            |n| (SecretName::new(format!("{n:064}")).unwrap(), SecretValue::new(secret.to_vec()).unwrap());
        Private::new([variable].into(), (0..secrets).map(secret).collect()).unwrap()
    }

    fn scratch() -> ScratchDir {
        ScratchDir::new(&std::env::temp_dir()).unwrap()
    }

    #[test]
    fn what_is_written_is_read_by_its_owner_only() {
        let dir = scratch();
        let one = private("x\n\"y\"", 2, b"\0\xff");
        write(dir.path(), &one).unwrap();
        assert_eq!(read(dir.path()).unwrap(), one);
        let mode = std::fs::metadata(dir.path().join(PRIVATE_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn the_largest_is_read_again() {
        let dir = scratch();
        let most = private(
            &"\"".repeat(ENVIRONMENT_BYTES_MAX - 3),
            SECRETS_MAX,
            &vec![7; SECRETS_BYTES_MAX / SECRETS_MAX],
        );
        write(dir.path(), &most).unwrap();
        assert_eq!(read(dir.path()).unwrap(), most);
        std::fs::write(dir.path().join(PRIVATE_FILE), vec![b' '; BYTES_MAX + 1]).unwrap();
        assert!(read(dir.path()).unwrap_err().to_string().contains("cannot read"), "over the limit");
    }

    #[test]
    fn a_machine_with_neither_has_no_file() {
        let dir = scratch();
        write(dir.path(), &Private::default()).unwrap();
        assert!(!dir.path().join(PRIVATE_FILE).exists());
        assert!(read(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn the_bytes_are_pinned() {
        let dir = scratch();
        let secret = (SecretName::new("db").unwrap(), SecretValue::new(b"p\0w".to_vec()).unwrap());
        let variable = (VariableName::new("A").unwrap(), "x y".to_owned());
        write(dir.path(), &Private::new([variable].into(), [secret].into()).unwrap()).unwrap();
        let text = std::fs::read_to_string(dir.path().join(PRIVATE_FILE)).unwrap();
        assert_eq!(text, r#"{"version":1,"environment":{"A":"x y"},"secrets":{"db":"700077"}}"#);
    }

    #[test]
    fn what_is_damaged_is_told_without_a_value() {
        let dir = scratch();
        for (text, reason) in [
            (r#"{"version":1,"environment":{"A":"hunter2"},"secrets":"hunter2"}"#, "line 1, column 62"),
            (r#"{"version":1,"environment":{"hunter2 ":"x"},"secrets":{}}"#, "line 1, column"),
            (r#"{"version":1,"environment":{"A":"hunter2\u0000"},"secrets":{}}"#, "variable A contains"),
            (r#"{"version":2,"hunter2":1}"#, "it has version 2, this kiln knows 1"),
            ("hunter2", "line 1, column 1"),
        ] {
            std::fs::write(dir.path().join(PRIVATE_FILE), text).unwrap();
            let error = kiln_core::text::chain(&read(dir.path()).unwrap_err());
            assert!(error.contains(reason) && !error.contains("hunter2"), "{error}");
        }
    }
}
