//! Keeping to a lock: what a build found is compared with what it was to be.

use crate::error::BuildError;
use kiln_core::lock::{PinKind, Pins};
use std::collections::BTreeMap;

/// Checks what was found against the pins of its kind; without any of the kind all is well.
///
/// # Errors
/// [`BuildError::LockMoved`] with all that differs, found or pinned.
pub(crate) fn check(pins: &Pins, kind: PinKind, found: &BTreeMap<String, String>) -> Result<(), BuildError> {
    let mut wanted = Pins::default();
    pins.of(kind).for_each(|(name, to)| {
        wanted.set(kind, name, to);
    });
    if wanted.is_empty() {
        return Ok(());
    }
    let mut now = Pins::default();
    for (name, to) in found {
        now.set(kind, name, to);
    }
    let moved = wanted.moved(&now);
    if moved.is_empty() { Ok(()) } else { Err(BuildError::LockMoved { kind, moved }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_as_locked_is_named() {
        let found = |list: &[(&str, &str)]| -> BTreeMap<String, String> {
            list.iter().map(|(name, to)| ((*name).to_owned(), (*to).to_owned())).collect()
        };
        let mut pins = Pins::default();
        pins.set(PinKind::Kernel, "linux", "6");
        assert!(check(&pins, PinKind::Package, &found(&[("a", "1")])).is_ok());
        pins.set(PinKind::Package, "a", "1");
        pins.set(PinKind::Package, "b", "1");
        assert!(check(&pins, PinKind::Package, &found(&[("a", "1"), ("b", "1")])).is_ok());
        let told = |list| check(&pins, PinKind::Package, &found(list)).unwrap_err().to_string();
        assert_eq!(told(&[("a", "2"), ("b", "1")]), "package `a` is 2 now and 1 in the lock");
        assert_eq!(
            told(&[("b", "2"), ("c", "1")]),
            "package `a` is none now and 1 in the lock, and 2 others moved too"
        );
    }
}
