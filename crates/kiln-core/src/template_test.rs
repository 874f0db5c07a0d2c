//! What a test of a template found: named checks of clones that were restored from one snapshot. The result may be kept
//! beside the snapshot; `docs/formats/snapshot.md` describes the file.

use crate::text::tail;
use serde::{Deserialize, Serialize};

/// The version of the result this program writes and reads.
pub const TEST_VERSION: u32 = 1;
/// The largest result that is written or read, in bytes.
pub const TEST_BYTES_MAX: usize = 64 << 10;
/// The most characters of a check's detail.
pub const DETAIL_CHARS_MAX: usize = 400;
/// The fewest clones of a test: what is to differ needs two.
pub const TEST_CLONES_MIN: usize = 2;
/// The most clones of a test.
pub const TEST_CLONES_MAX: usize = 16;

/// What is checked, in the order in which it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CheckName {
    /// Every clone was restored and is ready.
    Restore,
    /// The kernels' random numbers differ.
    Random,
    /// The machine ids differ.
    MachineId,
    /// The hardware addresses differ.
    Mac,
    /// Each host name is its machine's.
    Hostname,
    /// The SSH host keys differ.
    SshHostKeys,
    /// Each clone knows a restore of its own.
    RestoreEpoch,
    /// The clocks are right.
    Clock,
    /// The agents answer.
    Ping,
    /// The agents run programs.
    Exec,
    /// The recipe's probe succeeds.
    Readiness,
    /// What one clone writes no other sees.
    OwnDisk,
    /// A clone keeps what it wrote, and goes on, when it is paused, suspended and resumed.
    PauseResume,
    /// The snapshot's files are what they were.
    Artifacts,
    /// No machine and no process is left.
    NothingLeft,
}

impl CheckName {
    /// Returns its name in a result.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Restore => "restore",
            Self::Random => "random",
            Self::MachineId => "machine_id",
            Self::Mac => "mac",
            Self::Hostname => "hostname",
            Self::SshHostKeys => "ssh_host_keys",
            Self::RestoreEpoch => "restore_epoch",
            Self::Clock => "clock",
            Self::Ping => "ping",
            Self::Exec => "exec",
            Self::Readiness => "readiness",
            Self::OwnDisk => "own_disk",
            Self::PauseResume => "pause_resume",
            Self::Artifacts => "artifacts",
            Self::NothingLeft => "nothing_left",
        }
    }

    /// Whether it is about what a restored guest is given to be a machine of its own.
    pub fn is_identity(self) -> bool {
        matches!(
            self,
            Self::Random
                | Self::MachineId
                | Self::Mac
                | Self::Hostname
                | Self::SshHostKeys
                | Self::RestoreEpoch
                | Self::Clock
        )
    }
}

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// It is as it should be.
    Passed,
    /// It is not.
    Failed,
    /// The template has no such thing.
    NotApplicable,
    /// It could not be looked at.
    NotChecked,
}

impl CheckStatus {
    /// Returns its name in a result.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::NotApplicable => "not_applicable",
            Self::NotChecked => "not_checked",
        }
    }
}

/// A check and what it came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was checked.
    pub name: CheckName,
    /// What it came to.
    pub status: CheckStatus,
    /// What was found, in one line, a stranger's words among it.
    pub detail: String,
}

impl Check {
    /// Makes a check. The detail becomes one line of at most [`DETAIL_CHARS_MAX`] characters.
    pub fn new(name: CheckName, status: CheckStatus, detail: &str) -> Self {
        Self { name, status, detail: tail(detail, DETAIL_CHARS_MAX) }
    }
}

/// A machine that was tested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestedClone {
    /// Its name.
    pub name: String,
    /// Milliseconds from its supervisor's start to readiness.
    pub ready_after_ms: u64,
}

/// What a test of a snapshot found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTest {
    /// [`TEST_VERSION`].
    pub version: u32,
    /// When it ended, in milliseconds since 1970 (UTC).
    pub tested_unix_ms: u64,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
    /// The machines.
    pub clones: Vec<TestedClone>,
    /// The checks, in the order of [`CheckName`].
    pub checks: Vec<Check>,
}

/// Why bytes are not the result of a test that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidTest {
    /// Larger than [`TEST_BYTES_MAX`].
    #[error("test result has {0} bytes, more than {TEST_BYTES_MAX}")]
    TooLarge(usize),
    /// Not JSON of the result's shape.
    #[error("test result does not parse")]
    Json(#[source] serde_json::Error),
    /// Written by another kiln.
    #[error("test result has version {0}, this kiln reads {TEST_VERSION}")]
    Version(u32),
}

impl SnapshotTest {
    /// Returns how many checks came to `status`.
    pub fn count(&self, status: CheckStatus) -> usize {
        self.checks.iter().filter(|check| check.status == status).count()
    }

    /// Whether no check failed.
    pub fn is_passed(&self) -> bool {
        self.count(CheckStatus::Failed) == 0
    }

    /// Returns the bytes of the file.
    ///
    /// # Errors
    /// [`InvalidTest::TooLarge`] for what could not be read again.
    pub fn to_bytes(&self) -> Result<Vec<u8>, InvalidTest> {
        #[expect(clippy::unwrap_used, reason = "the type has no map and no failing serializer")]
        let bytes = serde_json::to_vec_pretty(self).unwrap();
        if bytes.len() > TEST_BYTES_MAX { Err(InvalidTest::TooLarge(bytes.len())) } else { Ok(bytes) }
    }

    /// Parses a result.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidTest> {
        if bytes.len() > TEST_BYTES_MAX {
            return Err(InvalidTest::TooLarge(bytes.len()));
        }
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(bytes).map_err(InvalidTest::Json)?;
        if version != TEST_VERSION {
            return Err(InvalidTest::Version(version));
        }
        serde_json::from_slice(bytes).map_err(InvalidTest::Json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [CheckName; 15] = [
        CheckName::Restore,
        CheckName::Random,
        CheckName::MachineId,
        CheckName::Mac,
        CheckName::Hostname,
        CheckName::SshHostKeys,
        CheckName::RestoreEpoch,
        CheckName::Clock,
        CheckName::Ping,
        CheckName::Exec,
        CheckName::Readiness,
        CheckName::OwnDisk,
        CheckName::PauseResume,
        CheckName::Artifacts,
        CheckName::NothingLeft,
    ];

    fn result(detail: &str) -> SnapshotTest {
        SnapshotTest {
            version: TEST_VERSION,
            tested_unix_ms: 1,
            elapsed_ms: 2,
            clones: vec![TestedClone { name: "web-1a2b".to_owned(), ready_after_ms: 3 }],
            checks: ALL.iter().map(|name| Check::new(*name, CheckStatus::Passed, detail)).collect(),
        }
    }

    #[test]
    fn names_are_those_of_the_file() {
        for name in ALL {
            assert_eq!(serde_json::to_value(name).unwrap(), name.as_str());
        }
        use CheckStatus::{Failed, NotApplicable, NotChecked, Passed};
        for status in [Passed, Failed, NotApplicable, NotChecked] {
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
        }
    }

    #[test]
    fn a_result_fails_with_one_check_and_not_with_what_was_not_checked() {
        let mut test = result("fine");
        test.checks[3].status = CheckStatus::NotChecked;
        assert!(test.is_passed());
        test.checks[4].status = CheckStatus::Failed;
        assert!(!test.is_passed());
        assert_eq!((test.count(CheckStatus::Passed), test.count(CheckStatus::Failed)), (13, 1));
    }

    #[test]
    fn a_test_result_has_a_largest_size_and_the_longest_details_fit() {
        let clones = vec![TestedClone { name: "n".repeat(63), ready_after_ms: u64::MAX }; TEST_CLONES_MAX];
        let longest = SnapshotTest { clones, ..result(&"\u{1f9f1}\"".repeat(DETAIL_CHARS_MAX)) };
        let bytes = longest.to_bytes().unwrap();
        assert_eq!(SnapshotTest::parse(&bytes).unwrap(), longest);
        let padded = |len: usize| [bytes.clone(), vec![b' '; len - bytes.len()]].concat();
        assert_eq!(SnapshotTest::parse(&padded(TEST_BYTES_MAX)).unwrap(), longest);
        let error = SnapshotTest::parse(&padded(TEST_BYTES_MAX + 1)).unwrap_err().to_string();
        assert_eq!(error, "test result has 65537 bytes, more than 65536");
        let mut large = longest;
        large.checks[0].detail = "x".repeat(TEST_BYTES_MAX);
        assert!(matches!(large.to_bytes(), Err(InvalidTest::TooLarge(_))));
    }

    #[test]
    fn another_version_is_refused() {
        let newer = SnapshotTest { version: 2, ..result("fine") }.to_bytes().unwrap();
        let error = SnapshotTest::parse(&newer).unwrap_err().to_string();
        assert_eq!(error, "test result has version 2, this kiln reads 1");
        assert!(matches!(SnapshotTest::parse(b"{}"), Err(InvalidTest::Json(_))));
    }
}
