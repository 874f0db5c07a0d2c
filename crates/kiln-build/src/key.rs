//! Keys: what names the result of a build, part by part.

use kiln_core::digest::Digest;
use kiln_core::lock::{PinKind, Pins};
use serde::Serialize;

/// A part of a key: an input and its value, or what stands for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyPart {
    /// The input.
    pub name: String,
    /// Its value as JSON.
    pub value: String,
    /// Whether it shapes the files. What does not is written into the revision only.
    pub shapes_files: bool,
    /// Whether what names of the outside world stand for depends on it: a lock is of these.
    #[serde(skip)]
    pub shapes_pins: bool,
}

#[derive(Default)]
pub(crate) struct Parts {
    pub(crate) list: Vec<KeyPart>,
    pub(crate) pins: Pins,
}

impl Parts {
    pub(crate) fn add(&mut self, name: &'static str, value: impl Serialize) {
        self.push(name, value, true, false);
    }

    /// Adds an input of the recipe that decides what names of the outside world stand for.
    pub(crate) fn ask(&mut self, name: &'static str, value: impl Serialize) {
        self.push(name, value, true, true);
    }

    pub(crate) fn add_record(&mut self, name: &'static str, value: impl Serialize) {
        self.push(name, value, false, false);
    }

    /// Adds an input whose value is JSON already.
    pub(crate) fn add_json(&mut self, name: String, value: String) {
        self.list.push(KeyPart { name, value, shapes_files: true, shapes_pins: false });
    }

    /// Adds what a name of the outside world stands for.
    pub(crate) fn pin(&mut self, kind: PinKind, name: &str, to: &str) {
        self.push(format!("{} {name}", kind.as_str()), to, true, false);
        self.pins.set(kind, name, to);
    }

    fn push(
        &mut self,
        name: impl Into<String>,
        value: impl Serialize,
        shapes_files: bool,
        shapes_pins: bool,
    ) {
        #[expect(clippy::expect_used, reason = "plain structs, lists and text always have a JSON form")]
        let value = serde_json::to_string(&value).expect("a key part has a JSON form");
        self.list.push(KeyPart { name: name.into(), value, shapes_files, shapes_pins });
    }

    pub(crate) fn digest(&self, only_files: bool) -> Digest {
        let parts: Vec<&KeyPart> = self.list.iter().filter(|part| part.shapes_files || !only_files).collect();
        #[expect(clippy::expect_used, reason = "plain structs, lists and text always have a JSON form")]
        let bytes = serde_json::to_vec(&parts).expect("key parts have a JSON form");
        Digest::of(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_key_do_not_run_into_each_other() {
        let digest = |values: &[&[&str]]| {
            let mut parts = Parts::default();
            values.iter().for_each(|value| parts.add("part", value));
            parts.digest(false)
        };
        let keys = [
            digest(&[&["a:b"], &["c"]]),
            digest(&[&["a"], &["b:c"]]),
            digest(&[&["a", "b"], &["c"]]),
            digest(&[&["a"], &["b", "c"]]),
            digest(&[&["a\",\"b"], &["c"]]),
            digest(&[&["a b c"], &[]]),
        ];
        let different: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(different.len(), keys.len());
    }
}
