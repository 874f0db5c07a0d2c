//! What is to be written for each of several references: all of it is known, or why not, before anything is.

use crate::{Engine, EngineError, EngineResult, RegistryProblem};
use kiln_core::Reference;
use kiln_core::text::chain;
use std::collections::BTreeMap;
use std::path::Path;

/// Why one is not written, or why the work ends.
pub(super) enum Planning {
    Because(String),
    Stop(EngineError),
}

impl<E: Into<EngineError>> From<E> for Planning {
    fn from(error: E) -> Self {
        match error.into() {
            EngineError::Cancelled => Self::Stop(EngineError::Cancelled),
            error => Self::Because(chain(&error)),
        }
    }
}

impl Engine {
    /// Plans each reference, and returns the plans by the names they give them; `shown` is what a name is called.
    ///
    /// # Errors
    /// [`EngineError::Registry`] with all that cannot be written to `dir`, also because two have one name.
    pub(super) fn plan_each<T>(
        &self,
        dir: &Path,
        references: &[Reference],
        name: impl Fn(&T) -> &str,
        shown: impl Fn(&str) -> String,
        mut plan: impl FnMut(&Reference) -> Result<T, Planning>,
    ) -> EngineResult<Vec<T>> {
        let mut problems = Vec::new();
        let mut all: BTreeMap<String, T> = BTreeMap::new();
        for reference in references {
            self.cancel.check()?;
            let reason = match plan(reference) {
                Ok(planned) if all.contains_key(name(&planned)) => {
                    format!("another reference is {} already", shown(name(&planned)))
                }
                Ok(planned) => {
                    all.insert(name(&planned).to_owned(), planned);
                    continue;
                }
                Err(Planning::Because(reason)) => reason,
                Err(Planning::Stop(error)) => return Err(error),
            };
            problems.push(RegistryProblem { name: reference.to_string(), reason });
        }
        if !problems.is_empty() {
            return Err(EngineError::Registry { action: "exported", path: dir.to_owned(), problems });
        }
        Ok(all.into_values().collect())
    }
}
