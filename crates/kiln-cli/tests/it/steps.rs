//! Templates made of others, step by step, in real machines.

use crate::context;
use kiln_testing::{Output, TestContext, plain, recipe};

/// Writes a recipe of steps and builds it.
fn build(context: &TestContext, steps: &[&str], more: &str, options: &[&str]) -> Output {
    let steps: String = steps.iter().map(|step| format!("[[step]]\n{step}\n")).collect();
    let text = format!(
        "name = \"web\"\n[source]\ntype = \"template\"\nfrom = \"base\"\nnetwork = false\n{more}\n{steps}"
    );
    context.write("web/kiln.toml", text);
    let args: Vec<&str> = [&["build", "web"], options].concat();
    context.kiln(args)
}

fn base(context: &TestContext) {
    let dir =
        recipe(context, "base", "[entrypoint]\ncommand = [\"sh\", \"-c\", \"echo > /ran; sleep 1000\"]\n");
    std::fs::write(context.work().join("rootfs/etc/machine-id"), "00000000000000000000000000000001\n")
        .unwrap();
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
}

/// Returns the numbers of the steps that were done.
fn done(output: &Output) -> Vec<String> {
    let lines = output.stderr.lines().filter_map(|line| line.split_once("  step ")?.1.split_once('/'));
    lines.map(|(number, _)| number.to_owned()).collect()
}

#[test]
fn boot_steps_are_layers_and_only_what_changed_is_done_again() {
    let context = context();
    base(&context);
    context.write("web/app/x", "content");
    let last = "run = \"cat /srv/app/x; echo five >> /order\"";
    let mut steps = vec![
        "run = \"test ! -e /ran && echo one > /order\"",
        "copy = \"app\"\nto = \"/srv/\"",
        "env = { COLOUR = \"blue\" }",
        "workdir = \"/srv/app\"",
        "run = \"echo $COLOUR $(pwd) >> /order\"",
        "user = \"nobody\"",
        "run = [\"sh\", \"-c\", \"id -u > /tmp/u; echo 1 > /tmp/.hidden; test $(id -u) = 65534\"]",
        "user = \"root\"",
        last,
    ];
    let first = build(&context, &steps, "", &[]);
    assert_eq!(done(&first), ["1", "2", "5", "7", "9"], "{}", first.stderr);
    let log = std::fs::read_to_string(context.home().join("cache/v1/logs/web.log")).unwrap();
    assert!(log.starts_with("# step 1: run test ! -e") && log.ends_with("\ncontent"), "{log}");
    let first = first.ok().lines().last().unwrap().to_owned();
    assert!(build(&context, &steps, "", &[]).stderr.contains("cache hit"));
    assert_eq!(context.machine_dirs(), Vec::<String>::new());

    let shown =
        context.kiln(["run", "--rm", "web", "--", "sh", "-c", "cat /order; ls -A /tmp; cat /etc/machine-id"]);
    let shown = shown.ok();
    assert!(shown.starts_with("one\nblue /srv/app\nfive\n"), "{shown}");
    assert!(!shown.contains("00000000000000000000000000000001"), "{shown}");
    assert!(!shown.contains("hidden"), "{shown}");

    steps[8] = "run = \"echo other >> /order\"";
    let second = build(&context, &steps, "", &[]);
    assert_eq!(done(&second), ["9"], "{}", second.stderr);
    assert_ne!(second.ok().lines().last().unwrap(), first);
    // Another shape is another revision of the same disk.
    let shape = build(&context, &steps, "[machine]\nvcpus = 2", &[]);
    assert_eq!(done(&shape), Vec::<String>::new(), "{}", shape.stderr);
    shape.ok();
    // A copied file that changed: what comes after it is done again.
    context.write("web/app/x", "changed");
    assert_eq!(done(&build(&context, &steps, "", &[])), ["2", "5", "7", "9"]);
    // Layers stay over a collection, for as long as they are the last build's.
    context.kiln(["gc"]).ok();
    steps[8] = last;
    assert_eq!(done(&build(&context, &steps, "", &[])), ["9"]);
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
    assert_eq!(context.staged(), Vec::<String>::new());
    assert_eq!(context.processes(), []);
}

#[test]
fn boot_a_step_that_fails_leaves_nothing_unless_it_is_to() {
    let context = context();
    base(&context);
    let before = build(&context, &["run = \"echo 1 > /a\""], "", &["-q"]).ok();
    let failing = ["run = \"echo 1 > /a\"", "run = \"echo 2 > /b; echo so bad >&2; exit 3\""];
    let error = plain(&context, &build(&context, &failing, "", &["-q"]).fails(1));
    insta::assert_snapshot!(error, @r"
    error: step 2 (run echo 2 > /b; echo so bad >&2; exit 3) failed: it ended with code 3: so bad
    try: kiln build --shell-on-error opens a shell where it failed
    try: all that steps said: [HOME]/cache/v1/logs/web.log
    ");
    let log = std::fs::read_to_string(context.home().join("cache/v1/logs/web.log")).unwrap();
    assert!(log.ends_with("so bad\n"), "{log}");
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
    assert_eq!(context.processes(), []);
    assert_eq!(context.kiln(["show", "web", "--json"]).json()["revision"], before.trim(), "the tag stays");

    let hanging = ["run = \"echo 1 > /a\"", "run = [\"sleep\", \"1000\"]\ntimeout = \"1s\""];
    let error = build(&context, &hanging, "", &[]).fails(1);
    assert!(error.contains("step 2 (run sleep 1000) failed: it did not end within 1 s"), "{error}");
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
    let full = ["run = \"/bin/busybox fallocate -l 2G /x\""];
    let error = build(&context, &full, "", &[]).fails(1);
    assert!(error.contains("No space left") && error.contains("try: name a larger `disk`"), "{error}");

    let error = build(&context, &failing, "", &["--keep-failed"]).fails(1);
    let name = context.kiln(["ps", "-q"]).ok().trim().to_owned();
    assert!(error.contains(&format!("try: kiln shell {name} looks at it")), "{error}");
    assert_eq!(context.kiln(["exec", &name, "--", "cat", "/b"]).ok(), "2\n");
    context.kiln(["rm", "-f", &name]).ok();
    let error = build(&context, &failing, "", &["--shell-on-error"]).fails(1);
    assert!(error.contains("step 2 failed; this is "), "{error}");
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
    assert_eq!(context.staged(), Vec::<String>::new());
    assert_eq!(context.kiln(["show", "web", "--json"]).json()["revision"], before.trim(), "the tag stays");
}

#[test]
fn a_base_that_is_not_there_is_named() {
    let context = context();
    let error = build(&context, &[], "", &[]).fails(1);
    assert!(error.contains("`base`") || error.contains("base:latest"), "{error}");
    base(&context);
    let error = build(&context, &["copy = \"no\"\nto = \"/x\""], "", &[]).fails(1);
    assert!(error.contains("`step.copy` is ") && error.contains("does not exist"), "{error}");
    let error = build(&context, &[], "[agent]\nmodules = [\"loop\"]", &[]).fails(1);
    assert!(error.contains("module `loop` is asked for"), "{error}");
}

#[test]
fn boot_a_step_that_forks_away_ends_and_leaves_no_process_to_the_next() {
    let context = context();
    base(&context);
    let steps = [
        // One that keeps the step's output open, and one that is of another session.
        "run = \"sleep 1000 & echo $! > /one; /bin/busybox setsid sleep 1000 > /dev/null 2>&1 & echo $! > /two\"\ntimeout = \"100s\"",
        "run = \"for name in one two; do [ ! -e /proc/$(cat /$name) ] || { echo $name is left; exit 9; }; done\"",
    ];
    build(&context, &steps, "", &["-q"]).ok();
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
    assert_eq!(context.staged(), Vec::<String>::new());
    assert_eq!(context.processes(), []);
}
