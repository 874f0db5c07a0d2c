//! Seeds: what the recipe says of them, and whether a root file system wants one.

use crate::error::BuildError;
use crate::plan::PlanContext;
use crate::source::input;
use kiln_core::recipe::SeedOptions;
use kiln_core::seed::{Seed, SeedKind, USER_DATA_BYTES_MAX};
use kiln_core::{Digest, LoginName};
use kiln_sys::{IoResultExt as _, fs};
use std::io::Read as _;

/// The file by which a root file system shows that it has cloud-init.
pub(crate) const CLOUD_INIT: &str = "/etc/cloud/cloud.cfg";
/// The file by which its cloud-init is switched off.
pub(crate) const CLOUD_INIT_OFF: &str = "/etc/cloud/cloud-init.disabled";

/// What the recipe says of a seed, its user data read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlannedSeed {
    /// Nothing.
    Auto,
    /// This, or that there is none.
    Chosen(Option<Seed>),
}

impl PlannedSeed {
    pub(crate) fn plan(options: &SeedOptions, cx: &PlanContext<'_>) -> Result<Self, BuildError> {
        let (user_data, user) = match options {
            SeedOptions::Never => return Ok(Self::Chosen(None)),
            SeedOptions::NoCloud { user_data, user } => (user_data, user.clone()),
            _ => return Ok(Self::Auto),
        };
        let Some(path) = user_data else {
            return Ok(Self::Chosen(Some(Seed { user, ..Seed::identity() })));
        };
        let path = input("seed.user_data", cx.base, path, false)?;
        let mut bytes = Vec::new();
        // A byte more tells that there is too much.
        let limit = USER_DATA_BYTES_MAX as u64 + 1;
        fs::open(&path)?.take(limit).read_to_end(&mut bytes).at("read", &path)?;
        let Ok(text) = String::from_utf8(bytes) else { return Err(BuildError::UserDataText { path }) };
        let seed = Seed { kind: SeedKind::NoCloud, user_data: Some(text), user };
        seed.check().map_err(|source| BuildError::UserData { path, source })?;
        Ok(Self::Chosen(Some(seed)))
    }

    /// Returns who logs in by SSH, where the recipe says it.
    pub(crate) fn user(&self) -> Option<&str> {
        match self {
            Self::Chosen(Some(seed)) => seed.user.as_ref().map(LoginName::as_str),
            _ => None,
        }
    }

    /// Returns what tells one from another: user data by its digest. The user is apart.
    pub(crate) fn key(&self) -> (&'static str, Option<Digest>) {
        match self {
            Self::Auto => ("auto", None),
            Self::Chosen(None) => ("none", None),
            Self::Chosen(Some(seed)) => {
                (seed.kind.as_str(), seed.user_data.as_ref().map(|text| Digest::of(text.as_bytes())))
            }
        }
    }

    /// Returns the seed of what was built; `auto` is the one where the recipe says nothing.
    pub fn or(&self, auto: impl FnOnce() -> Option<Seed>) -> Option<Seed> {
        match self {
            Self::Auto => auto(),
            Self::Chosen(seed) => seed.clone(),
        }
    }
}
