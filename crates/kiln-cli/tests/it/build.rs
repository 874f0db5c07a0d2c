//! Baking templates from a directory and a tar file.

use crate::context;
use kiln_testing::{TestContext, plain, recipe};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn equal_inputs_are_baked_once_and_give_one_revision() {
    let context = context();
    let dir = recipe(&context, "web", "");
    let first = context.kiln(["build".as_ref(), dir.as_os_str()]);
    assert!(first.stderr.contains("web:latest baked in"), "{}", first.stderr);
    let first = last_line(&first.ok());
    assert!(first.starts_with("sha256:") && first.len() == 71, "{first}");
    let second = context.kiln(["build".as_ref(), dir.as_os_str()]);
    assert!(second.stderr.contains("cache hit"), "{}", second.stderr);
    assert_eq!(last_line(&second.ok()), first);
    let forced = context.kiln(["build".as_ref(), dir.as_os_str(), "--force".as_ref()]);
    assert!(forced.stderr.contains("baked in"), "{}", forced.stderr);
    assert_eq!(last_line(&forced.ok()), first, "the same inputs give the same bytes");
    let home = context.work().join("other");
    let other = ["--home".as_ref(), home.as_os_str(), "build".as_ref(), dir.as_os_str()];
    assert_eq!(last_line(&context.kiln(other).ok()), first, "in another store too");
    assert_eq!(context.staged(), Vec::<String>::new());
}

#[test]
fn a_changed_input_is_another_revision_and_the_tag_moves() {
    let context = context();
    let dir = recipe(&context, "web", "");
    let first = last_line(&context.kiln(["build".as_ref(), dir.as_os_str()]).ok());
    std::fs::write(context.work().join("rootfs/etc/motd"), "hello").unwrap();
    let second = context.kiln(["build".as_ref(), dir.as_os_str(), "--json".as_ref()]);
    assert!(second.stderr.contains(" are in new blocks ("), "{}", second.stderr);
    let second = second.json();
    let (new, data) = (second["new_block_bytes"].as_u64().unwrap(), second["data_bytes"].as_u64().unwrap());
    assert!((4096..512 << 10).contains(&new) && data > 1 << 20, "{new} of {data}");
    let second = second["revision"].as_str().unwrap();
    assert_ne!(first, second);
    assert_eq!(context.kiln(["show", "web", "--json"]).json()["revision"], second);
    let all = context.kiln(["ls", "-a", "--json"]).json();
    assert_eq!(all.as_array().unwrap().len(), 2);
}

#[test]
fn tags_move_and_revisions_go_with_their_last_tag() {
    let context = context();
    let dir = recipe(&context, "web", "[[variant]]\nname = \"big\"\nmemory = \"1G\"");
    let id = last_line(&context.kiln(["build".as_ref(), dir.as_os_str()]).ok());
    context.kiln(["tag", "web", "web:v1"]).ok();
    context.kiln(["tag", &id[..20], "other:stable"]).ok();
    assert_eq!(context.kiln(["ls", "-q"]).ok(), "other:stable\nweb:latest\nweb:v1\n");
    let shown = context.kiln(["show", "web/big"]).ok();
    assert!(shown.contains("variant big") && shown.contains("1 vcpu, 1.0 GiB memory"), "{shown}");
    assert!(context.kiln(["show", "web/huge"]).fails(1).contains("its variants are big"));
    assert_eq!(context.kiln(["rm", "web:latest"]).ok(), "untagged web:latest\n");
    context.kiln(["rm", "other:stable"]).ok();
    let last = context.kiln(["rm", "web:v1"]).ok();
    assert!(plain(&context, &last).starts_with("untagged web:v1\nremoved sha256:[DIGEST] ("), "{last}");
    assert_eq!(std::fs::read_dir(context.home().join("artifacts")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(context.home().join("indexes")).unwrap().count(), 0);
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
}

#[test]
fn missing_and_wrong_inputs_are_named() {
    let context = context();
    let kernel = kiln_testing::fixtures().join("vmlinuz").display().to_string();
    let build = |source: &str| {
        context.write("kiln.toml", format!("name = \"web\"\n[source]\n{source}\n"));
        let error = context.kiln(["build"]).fails(1);
        assert_eq!(context.staged(), Vec::<String>::new(), "{error}");
        assert_eq!(context.kiln(["ls", "-a", "-q"]).ok(), "", "{error}");
        error
    };
    context.write("garbage", "not a kernel");
    context.write("short.tar", [b'x'; 100]);
    std::fs::create_dir(context.work().join("dir")).unwrap();
    for (source, want) in [
        (format!("type=\"directory\"\npath=\"nowhere\"\nkernel=\"{kernel}\""), "nowhere"),
        (format!("type=\"directory\"\npath=\"garbage\"\nkernel=\"{kernel}\""), "garbage"),
        (format!("type=\"tar\"\npath=\"dir\"\nkernel=\"{kernel}\""), "dir"),
        (format!("type=\"tar\"\npath=\"short.tar\"\nkernel=\"{kernel}\""), "short.tar"),
        ("type=\"directory\"\npath=\"dir\"\nkernel=\"garbage\"".to_owned(), "garbage"),
        ("type=\"directory\"\npath=\"dir\"\nkernel=\"missing\"".to_owned(), "missing"),
    ] {
        let error = build(&source);
        assert!(error.contains("error: ") && error.contains(want), "{source}: {error}");
    }
}

#[test]
fn two_builds_at_once_wait_for_each_other() {
    let context = context();
    let dir = recipe(&context, "web", "");
    let one = context.start(["build".as_ref(), dir.as_os_str()]);
    let two = context.start(["build".as_ref(), dir.as_os_str()]);
    let (one, two) = (one.finish(), two.finish());
    let said = format!("{}{}", one.stderr, two.stderr);
    assert_eq!(last_line(&one.ok()), last_line(&two.ok()));
    assert!(said.contains("cache hit"), "the second found the first's work: {said}");
}

#[test]
fn a_variant_that_no_machine_can_have_is_refused_and_leaves_nothing() {
    let context = context();
    let dir = recipe(&context, "web", "[[variant]]\nname = \"high\"\nmemory = \"1024G\"");
    let id = last_line(&context.kiln(["build".as_ref(), dir.as_os_str()]).ok());
    let told = context.kiln(["run", "--rm", "web/high", "--", "true"]).fails(1);
    assert!(told.contains("memory") && told.contains("try: "), "{told}");
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
    assert_eq!(context.processes(), []);
    for (field, want) in [("vcpus = 65", "vcpus is 65: 1 to 64"), ("memory = \"1025G\"", "memory is 1025G")] {
        recipe(&context, "web", &format!("[[variant]]\nname = \"more\"\n{field}"));
        let told = context.kiln(["build".as_ref(), dir.as_os_str()]).fails(2);
        assert!(told.contains("variant.more") && told.contains(want), "{told}");
    }
    assert_eq!(context.staged(), Vec::<String>::new());
    assert_eq!(context.kiln(["show", "web", "--json"]).json()["revision"], id);
}

/// Runs a shell line in a namespace of its own, where a small file system can be mounted.
pub(crate) fn in_namespace(context: &TestContext, script: &str) -> (i32, String) {
    let output = Command::new("unshare")
        .args(["--mount", "--user", "--map-root-user", "sh", "-c", script])
        .current_dir(context.work())
        .env("KILN", context.program())
        .output()
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap_or_else(|| output.status.signal().unwrap_or(0)), said)
}

#[test]
fn a_full_file_system_is_told_and_leaves_nothing() {
    let context = context();
    recipe(&context, "web", "");
    let script = "mkdir small && mount -t tmpfs -o size=12m tmpfs small && KILN_HOME=$PWD/small/home $KILN build web; \
                  code=$?; ls -A small/home/staging small/home/artifacts small/home/revisions; exit $code";
    let (code, said) = in_namespace(&context, script);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("try: ") && (said.contains("free") || said.contains("space")), "{said}");
    let listed: Vec<&str> =
        said.lines().filter(|line| line.len() >= 16 && !line.contains([' ', '/'])).collect();
    assert!(listed.is_empty(), "nothing is staged or published: {said}");
}
