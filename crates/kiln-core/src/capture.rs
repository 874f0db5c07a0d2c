//! What happens to a ready machine of a template before it is captured.

use serde::{Deserialize, Serialize};

/// The most commands of one plan.
pub const WARM_UP_COMMANDS_MAX: usize = 16;
/// The most bytes of one command: its words, each with the zero byte that ends it.
pub const WARM_UP_COMMAND_BYTES_MAX: usize = 48 << 10;

/// How a machine of a template is warmed before it is captured. Part of a revision, so that it can be captured again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapturePlan {
    /// Commands, each a program and its arguments, that are run in the ready guest one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warm_up: Vec<Vec<String>>,
    /// Whether the guest drops clean caches afterwards: a smaller snapshot, and slower first reads.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drop_caches: bool,
}

/// Why a plan cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidCapturePlan {
    /// It says nothing: no plan says the same.
    #[error("a plan of a capture says nothing")]
    Empty,
    /// More than [`WARM_UP_COMMANDS_MAX`] commands.
    #[error("{0} warm-up commands, more than {WARM_UP_COMMANDS_MAX}")]
    TooMany(usize),
    /// A command without a program, or with a zero byte.
    #[error("warm-up command {0} is not a list of program and arguments")]
    Command(usize),
    /// A command of more than [`WARM_UP_COMMAND_BYTES_MAX`].
    #[error("warm-up command {number} has {bytes} bytes, more than {WARM_UP_COMMAND_BYTES_MAX}")]
    TooLong {
        /// Which command, from 1.
        number: usize,
        /// Its bytes.
        bytes: usize,
    },
}

impl CapturePlan {
    /// Returns whether it says nothing: a capture without any preparation.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the number and length of its commands.
    ///
    /// # Errors
    /// All but [`InvalidCapturePlan::Empty`], which is the manifest's to refuse.
    pub fn check(&self) -> Result<(), InvalidCapturePlan> {
        if self.warm_up.len() > WARM_UP_COMMANDS_MAX {
            return Err(InvalidCapturePlan::TooMany(self.warm_up.len()));
        }
        for (at, command) in self.warm_up.iter().enumerate() {
            let number = at + 1;
            let has_program = command.first().is_some_and(|program| !program.is_empty());
            if !has_program || command.iter().any(|word| word.contains('\0')) {
                return Err(InvalidCapturePlan::Command(number));
            }
            let bytes = command.iter().map(|word| word.len() + 1).sum();
            if bytes > WARM_UP_COMMAND_BYTES_MAX {
                return Err(InvalidCapturePlan::TooLong { number, bytes });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(warm_up: Vec<Vec<String>>) -> String {
        CapturePlan { warm_up, drop_caches: false }.check().unwrap_err().to_string()
    }

    #[test]
    fn warm_up_commands_are_limited_in_number_and_length() {
        let of = |bytes: usize| vec!["x".repeat(bytes - 1)];
        let full = vec![of(WARM_UP_COMMAND_BYTES_MAX); WARM_UP_COMMANDS_MAX];
        CapturePlan { warm_up: full.clone(), drop_caches: false }.check().unwrap();
        assert_eq!(refusal([full, vec![of(2)]].concat()), "17 warm-up commands, more than 16");
        let long = vec![of(2), of(WARM_UP_COMMAND_BYTES_MAX + 1)];
        assert_eq!(refusal(long), "warm-up command 2 has 49153 bytes, more than 49152");
        for bad in [vec![], vec![String::new()], vec!["a".to_owned(), "b\0".to_owned()]] {
            assert_eq!(refusal(vec![bad]), "warm-up command 1 is not a list of program and arguments");
        }
    }

    #[test]
    fn each_form_has_pinned_bytes() {
        let warm_up = vec![vec!["curl".to_owned(), "-s".to_owned()]];
        for (plan, text) in [
            (CapturePlan::default(), "{}"),
            (CapturePlan { warm_up: warm_up.clone(), drop_caches: false }, r#"{"warm_up":[["curl","-s"]]}"#),
            (CapturePlan { warm_up: Vec::new(), drop_caches: true }, r#"{"drop_caches":true}"#),
            (CapturePlan { warm_up, drop_caches: true }, r#"{"warm_up":[["curl","-s"]],"drop_caches":true}"#),
        ] {
            assert_eq!(serde_json::to_string(&plan).unwrap(), text);
            assert_eq!(serde_json::from_str::<CapturePlan>(text).unwrap(), plan);
        }
    }
}
