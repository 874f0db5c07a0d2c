//! Keys: every input changes one, and nothing else does.

use crate::host;
use crate::host::{facts, kernel, scratch, write};
use kiln_build::{AptSource, BuildError, BuildPlan, HostFacts};
use kiln_core::digest::Digest;
use kiln_core::recipe::parse;
use kiln_sys::fs;
use std::path::Path;
use std::time::Instant;

fn planned(text: &str, base: &Path, host: &HostFacts) -> Result<BuildPlan, BuildError> {
    host::planned(&parse(text).unwrap(), base, host)
}

fn debian(source: &str, rest: &str) -> String {
    format!("name = 'demo'\n{rest}\n[source]\ntype = 'debian'\n{source}\n")
}

const BASE: &str = "suite = 'bookworm'\npackages = ['a', 'bc']";

#[test]
fn every_input_of_a_debian_recipe_changes_the_keys() {
    let host = facts();
    let key = |text: &str| planned(text, Path::new("/"), &host).unwrap();
    let base = key(&debian(BASE, ""));
    let different = [
        debian("suite = 'trixie'\npackages = ['a', 'bc']", ""),
        debian("suite = 'bookworm'\npackages = ['ab', 'c']", ""),
        debian("suite = 'bookworm'\npackages = ['a', 'b', 'c']", ""),
        debian(&format!("{BASE}\nvariant = 'essential'"), ""),
        debian(&format!("{BASE}\ncomponents = ['main', 'contrib']"), ""),
        debian(&format!("{BASE}\nmirror = 'file:///m'"), ""),
        debian(&format!("{BASE}\nkernel = 'linux-image-amd64'"), ""),
        debian(&format!("{BASE}\ndocs = true"), ""),
        debian(BASE, "[agent]\ninit = 'agent'"),
        debian(BASE, "[agent]\nmodules = ['overlay']"),
        debian(BASE, "[entrypoint]\ncommand = ['a', 'b']"),
        debian(BASE, "[entrypoint]\ncommand = ['a b']"),
        debian(BASE, "[entrypoint]\ncommand = ['a', 'b']\nuser = 'u'"),
        debian(BASE, "[machine]\ndisk = '4G'"),
    ];
    let mut keys: Vec<Digest> = different.iter().map(|text| key(text).files_key).collect();
    keys.push(base.files_key);
    let count = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), count);
    let same = [
        debian(
            "suite = 'bookworm'\npackages = ['bc', 'a', 'bc']\ncomponents = ['main']\nvariant = 'minbase'",
            "",
        ),
        debian(BASE, "[agent]\ninit = 'auto'").replace("demo", "other"),
    ];
    assert!(same.iter().all(|text| key(text).key == base.key));
}

#[test]
fn the_shape_of_a_machine_changes_the_revision_and_not_the_files() {
    let host = facts();
    let key = |rest: &str| planned(&debian(BASE, rest), Path::new("/"), &host).unwrap();
    let base = key("");
    for rest in [
        "[machine]\nmemory = '1G'",
        "[machine]\nvcpus = 2",
        "[boot]\nargs = ['quiet']",
        "[ready]\ncommand = ['true']",
        "[snapshot]\ndrop_caches = true",
        "[[variant]]\nname = 'big'\nmemory = '2G'",
    ] {
        let other = key(rest);
        assert_eq!(other.files_key, base.files_key, "{rest}");
        assert_ne!(other.key, base.key, "{rest}");
    }
    assert_eq!(
        key("[snapshot]\nauto = true").key,
        base.key,
        "when a snapshot is made is no part of the revision"
    );
    assert_ne!(key("[boot]\nargs = ['a', 'bc']").key, key("[boot]\nargs = ['ab', 'c']").key);
}

#[test]
fn facts_of_the_host_change_the_key() {
    let host = facts();
    let key = |host: &HostFacts| planned(&debian(BASE, ""), Path::new("/"), host).unwrap().key;
    let base = key(&host);
    assert_ne!(base, key(&HostFacts { kiln_version: "99".to_owned(), ..host.clone() }));
    assert_ne!(base, key(&HostFacts { mke2fs_version: "99".to_owned(), ..host.clone() }));
    assert_ne!(base, key(&HostFacts { agent: Digest::of(b"other"), ..host.clone() }));
    let source = AptSource {
        uri: "file:///m".to_owned(),
        suite: "bookworm".to_owned(),
        components: vec!["main".to_owned()],
        signed_by: None,
        trusted: false,
    };
    assert_ne!(base, key(&HostFacts { apt_sources: vec![source.clone()], ..host.clone() }));
    let foreign = AptSource { suite: "noble".to_owned(), ..source };
    let sources = [host.apt_sources.clone(), vec![foreign]].concat();
    assert_eq!(base, key(&HostFacts { apt_sources: sources, ..host.clone() }));
}

#[test]
fn the_explanation_names_what_is_in_the_key() {
    let plan = planned(&debian(BASE, ""), Path::new("/"), &facts()).unwrap();
    let value = |name: &str| plan.explanation.iter().find(|part| part.name == name).unwrap().value.clone();
    assert_eq!(value("packages"), r#"["a","bc"]"#);
    assert_eq!(value("suite"), "\"bookworm\"");
    assert!(value("kernel_package").starts_with("\"linux-image-cloud-"));
    for name in ["agent", "mke2fs", "kiln", "arch", "mirror", "machine", "variants", "boot_args"] {
        assert!(!value(name).is_empty());
    }
}

#[test]
fn a_debian_plan_is_quick() {
    let since = Instant::now();
    planned(&debian(BASE, ""), Path::new("/"), &facts()).unwrap();
    assert!(since.elapsed().as_millis() < 1000, "{:?}", since.elapsed());
}

#[test]
fn files_and_directories_are_known_by_their_identity() {
    let (dir, host) = (scratch(), facts());
    let base = dir.path();
    let root = base.join("root");
    fs::create_dir(&root).unwrap();
    write(&root.join("file"), b"one");
    write(&base.join("kernel"), &kernel());
    write(&base.join("tar"), b"");
    let text = |kind: &str, path: &str, more: &str| {
        format!("name = 'demo'\n[source]\ntype = '{kind}'\npath = '{path}'\nkernel = 'kernel'\n{more}")
    };
    let directory = text("directory", "root", "");
    let key = || planned(&directory, base, &host).unwrap().key;
    let first = key();
    fs::read_limited(&root.join("file"), 10).unwrap();
    assert_eq!(key(), first);
    fs::set_mode(&root.join("file"), 0o644).unwrap();
    let second = key();
    write(&root.join("more"), b"");
    let third = key();
    fs::set_mode(&base.join("kernel"), 0o644).unwrap();
    let mut keys = vec![first, second, third, key()];
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 4);

    let error = |text: &str| planned(text, base, &host).unwrap_err().to_string();
    let at = base.display();
    let tar = text("tar", "tar", "");
    assert!(planned(&tar, base, &host).is_ok());
    let wrong = [
        (text("tar", "root", ""), format!("`source.path` is {at}/root, a directory where a file is wanted")),
        (
            text("directory", "tar", ""),
            format!("`source.path` is {at}/tar, a file where a directory is wanted"),
        ),
        (text("directory", "gone", ""), format!("`source.path` is {at}/gone, which does not exist")),
        (
            text("directory", "root", "modules = 'kernel'"),
            format!("`source.modules` is {at}/kernel, a file where a directory is wanted"),
        ),
    ];
    for (text, message) in wrong {
        assert_eq!(error(&text), message);
    }
    fs::remove_file(&base.join("kernel")).unwrap();
    assert!(matches!(
        planned(&directory, base, &host),
        Err(BuildError::InputMissing { field: "source.kernel", .. })
    ));
}
