//! Locks beside recipes, what a build says of its inputs, and whether it can be done again.

use crate::context;
use kiln_testing::{TestContext, busybox_rootfs, plain, recipe};
use std::path::PathBuf;

/// Writes a recipe whose kernel is a package: a name of the outside world.
fn packaged(context: &TestContext, extra: &str) -> PathBuf {
    let root = context.work().join("rootfs");
    if !root.exists() {
        busybox_rootfs(context, "rootfs");
    }
    let text =
        format!("name = \"web\"\n[source]\ntype = \"directory\"\npath = \"{}\"\n{extra}\n", root.display());
    context.write("web/kiln.toml", text);
    context.work().join("web")
}

fn lock(context: &TestContext, arch: &str, more: &str) {
    let text = format!(
        "version = 1\n[inputs]\nsource = '\"directory\"'\nkernel = 'null'\n[pins.{arch}.builder]\nkiln = \"0.0.1\"\nmke2fs = \"1.0\"\n{more}"
    );
    context.write("web/kiln.lock", text);
}

#[test]
fn a_build_that_is_to_keep_to_a_lock_does_or_says_why_not() {
    let context = context();
    let dir = packaged(&context, "");
    let refused = |options: &[&str]| {
        let args: Vec<&str> = [&["build", dir.to_str().unwrap(), "--offline", "-q"], options].concat();
        plain(&context, &context.kiln(args).fails(1))
    };
    insta::assert_snapshot!(refused(&["--locked"]), @r"
    error: [WORK]/web/kiln.lock is not there, and the build was to keep to it
    try: kiln lock [WORK]/web/kiln.toml makes it
    ");
    insta::assert_snapshot!(refused(&[]), @r"
    error: kernel packages come from the network, which an offline build may not ask
    try: build it once without --offline
    ");
    lock(&context, "x86_64", "");
    insta::assert_snapshot!(refused(&["--locked"]), @r"
    error: builder `kiln` is 0.1.0 now and 0.0.1 in the lock, and 1 other moved too
    try: kiln update shows and pins what is here now; a build without --locked takes it as it is
    ");
    lock(&context, "mips", "");
    insta::assert_snapshot!(refused(&[]), @r"
    error: [WORK]/web/kiln.lock says nothing for x86_64
    try: kiln lock [WORK]/web/kiln.toml makes it anew
    ");
    lock(&context, "x86_64", "[pins.x86_64.moon]\na = 'b'");
    insta::assert_snapshot!(refused(&[]), @r"
    error: [WORK]/web/kiln.lock is not a valid lock
      because: unknown variant `moon`, expected one of `package`, `kernel`, `archive`, `oci`, `nix`, `image`, `template`, `builder`
    try: kiln lock [WORK]/web/kiln.toml makes it anew
    ");
    lock(&context, "x86_64", "");
    packaged(&context, "kernel_package = \"linux-image-other\"");
    insta::assert_snapshot!(refused(&[]), @r"
    error: [WORK]/web/kiln.lock does not fit the recipe: kernel changed since it was made
    try: kiln lock [WORK]/web/kiln.toml makes it anew
    ");
    assert_eq!(context.kiln(["ls", "-aq"]).ok(), "");
    assert_eq!(context.staged(), Vec::<String>::new());
}

#[test]
fn bake_a_lock_is_made_kept_to_and_moved() {
    let context = context();
    let dir = packaged(&context, "");
    let of = |verb: &str, options: &[&str]| {
        let args: Vec<&str> = [&[verb, dir.to_str().unwrap()], options].concat();
        context.kiln(args)
    };
    let made = of("lock", &["--json"]).json();
    assert_eq!((&made["changed"], &made["moved"][0]["kind"]), (&true.into(), &"kernel".into()), "{made}");
    let text = std::fs::read_to_string(dir.join("kiln.lock")).unwrap();
    assert!(text.contains("linux-image-cloud-amd64 = \"linux-image-"), "{text}");
    assert!(of("lock", &[]).stderr.contains("stays as it is"), "a lock that fits stays");
    let id = of("build", &["--locked", "-q"]).ok();
    assert!(of("build", &["--locked", "--offline"]).stderr.contains("cache hit"));

    // The archive has another version than the lock says.
    let old = text.replace("-cloud-amd64=", "-cloud-amd64=0.");
    assert_ne!(old, text);
    std::fs::write(dir.join("kiln.lock"), &old).unwrap();
    let error = of("build", &[]).fails(1);
    assert!(error.contains("error: kernel `linux-image-cloud-amd64` is linux-image-"), "{error}");
    assert!(error.contains("kiln update --dry-run shows all that moved"), "{error}");
    assert_eq!(context.kiln(["ls", "-q", "--json"]).json()[0]["revision"], id.trim(), "the tag stays");
    let moved = of("update", &["--dry-run"]);
    assert!(moved.stdout.lines().count() == 2 && moved.stdout.contains("=0."), "{}", moved.stdout);
    assert_eq!(std::fs::read_to_string(dir.join("kiln.lock")).unwrap(), old, "nothing is written");
    of("update", &["-q"]).ok();
    assert_eq!(std::fs::read_to_string(dir.join("kiln.lock")).unwrap(), text);
    assert_eq!(context.staged(), Vec::<String>::new());
}

#[test]
fn what_changed_since_the_last_build_is_named() {
    let context = context();
    let dir = recipe(&context, "web", "");
    let explain = || context.kiln(["build".as_ref(), dir.as_os_str(), "--explain".as_ref()]);
    let told = |stderr: &str| stderr.lines().last().unwrap_or_default().to_owned();
    assert_eq!(told(&explain().stderr), "nothing is known of an earlier build");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    assert!(told(&explain().stderr).starts_with("the cache knows the result: "));
    std::fs::write(context.work().join("rootfs/etc/motd"), "hello").unwrap();
    recipe(&context, "web", "[machine]\nvcpus = 2");
    let changed = explain();
    assert!(told(&changed.stderr).ends_with(": content, machine"), "{}", changed.stderr);
    assert!(changed.stdout.contains("AT THE LAST BUILD") && changed.stdout.contains("\"vcpus\":1"));
    let json =
        context.kiln(["build".as_ref(), dir.as_os_str(), "--explain".as_ref(), "--json".as_ref()]).json();
    let inputs = json["inputs"].as_array().unwrap();
    let names: Vec<&str> = inputs
        .iter()
        .filter(|input| input["changed"] == true)
        .map(|input| input["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["content", "machine"]);
}

#[test]
fn a_forced_build_tells_whether_it_gave_the_same_again() {
    let context = context();
    let dir = recipe(&context, "web", "");
    let build = |options: &[&str]| {
        let args: Vec<&str> = [&["build", dir.to_str().unwrap()], options].concat();
        context.kiln(args)
    };
    let first = build(&["--force"]);
    assert!(!first.stderr.contains("reproducible"), "nothing was there before: {}", first.stderr);
    let first = first.ok().lines().last().unwrap().to_owned();
    let again = build(&["--force"]);
    assert!(again.stderr.contains("reproducible: yes\n"), "{}", again.stderr);

    // The cache says that the inputs of now gave what others did.
    std::fs::write(context.work().join("rootfs/etc/motd"), "hello").unwrap();
    let key = build(&["--explain", "--json"]).json()["key"].as_str().unwrap().replace("sha256:", "");
    std::fs::write(context.home().join("cache/v1/builds").join(key), format!("{first}\n")).unwrap();
    let other = build(&["--force"]);
    let told = "reproducible: no, first difference: /etc/motd of the root file system (kiln diff ";
    assert!(other.stderr.contains(told), "{}", other.stderr);
    let key = build(&["--explain", "--json"]).json()["key"].as_str().unwrap().replace("sha256:", "");
    std::fs::write(context.home().join("cache/v1/builds").join(key), format!("{first}\n")).unwrap();
    let json = build(&["--force", "--json"]).json();
    assert_eq!(json["reproduced"]["reproducible"], false);
    assert_eq!(json["reproduced"]["before"], first);
}
