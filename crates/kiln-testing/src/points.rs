//! The fail-points that sources have.

use std::collections::BTreeSet;
use std::path::Path;

/// What a fail-point looks like in a source file.
const CALL: &str = "fail::point(\"";

/// Returns the names of all fail-points in a Rust source, or in all sources below a directory.
pub fn fail_points(sources: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    if sources.is_dir() {
        for entry in std::fs::read_dir(sources).unwrap() {
            found.extend(fail_points(&entry.unwrap().path()));
        }
    } else if sources.extension().is_some_and(|extension| extension == "rs") {
        let text = std::fs::read_to_string(sources).unwrap();
        let names = text.split(CALL).skip(1).filter_map(|rest| rest.split('"').next());
        found.extend(names.map(str::to_owned));
    }
    found
}
