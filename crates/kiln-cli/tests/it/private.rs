//! Environment and secrets of a machine: what is refused, who sees them, and where their values are.

use crate::context;
use kiln_testing::{TestContext, plain, recipe};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

const MEMORY: &str = "[machine]\nmemory = \"128M\"\n";
/// What a program in the guest says of both.
const WHO: &str = "echo \"$COLOR\"; cat /run/kiln/secrets/token; ls /run/kiln/secrets | wc -l";

fn built(context: &TestContext, name: &str, extra: &str) {
    let dir = recipe(context, name, &format!("{MEMORY}{extra}"));
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
}

/// Returns the files of the store that hold any of these texts.
fn holding(context: &TestContext, texts: &[&str]) -> Vec<PathBuf> {
    let mut grep = std::process::Command::new("grep");
    grep.args(["-rlaF", "--null", "-e", &texts.join("\n")]).arg(context.home());
    let output = grep.output().unwrap();
    // 2 also where a file went away meanwhile.
    assert!(output.status.code().is_some_and(|code| code <= 2), "{output:?}");
    let paths = String::from_utf8(output.stdout).unwrap();
    let mut found: Vec<PathBuf> = paths.split_terminator('\0').map(PathBuf::from).collect();
    found.sort();
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn what_cannot_be_given_is_told_before_anything_is_made() {
    let context = context();
    context.write("vars", "# colours\nCOLOR=hunter2\nNO NAME=hunter2\n");
    context.write("twice", "COLOR=hunter2\n");
    let long = format!("A={}", "x".repeat(12_286));
    let cases: [(&[&str], i32); 11] = [
        (&["-e", "UNSET_HERE"], 2),
        (&["-e", "A-B=hunter2"], 2),
        (&["-e", &long], 2),
        (&["--env-file", "vars"], 2),
        (&["--env-file", "twice", "--env-file", "twice"], 2),
        (&["--env-file", "absent"], 1),
        (&["--secret", "token=absent"], 1),
        (&["--secret", "id=token"], 2),
        (&["--secret", "a=-", "--secret", "b=-"], 2),
        (&["--secret", "a=/dev/null"], 1),
        (&["--identity", "skip", "-e", "A=hunter2"], 2),
    ];
    let told: Vec<String> = cases
        .iter()
        .map(|(words, code)| context.kiln([&["run"], *words, &["web"]].concat()).fails(*code))
        .collect();
    let told = told.concat();
    assert!(!told.contains("hunter2"), "{told}");
    insta::assert_snapshot!(plain(&context, &told), @r#"
    error: --env gives `UNSET_HERE` no value, and kiln's own environment has none
    try: UNSET_HERE=VALUE sets it here, export UNSET_HERE in your shell
    error: --env names no variable
      because: variable name "A-B" is not 1 to 128 letters, digits or '_', the first no digit
    error: the environment has 12289 bytes, more than 12288
    try: kiln cp brings larger files into a machine that runs
    error: vars line 3 names no variable
      because: variable name "NO NAME" is not 1 to 128 letters, digits or '_', the first no digit
    error: variable `COLOR` is given twice: by twice line 1 and by twice line 1
    try: give each variable once
    error: cannot open absent
      because: No such file or directory (os error 2)
    error: cannot open absent
      because: No such file or directory (os error 2)
    error: invalid value 'id=token' for '--secret <NAME=FILE>': not NAME=FILE, and not id=NAME,src=FILE

    For more information, try '--help'.
    error: standard input can be one secret, and `a` and `b` want it
    try: put the other into a file
    error: cannot open /dev/null
      because: not a regular file
    try: --secret NAME=- reads what is no regular file from standard input
    error: --identity skip leaves out what --env, --env-file and --secret give
    "#);
    context.kiln(["fork", "-e", "UNSET_HERE", "web"]).fails(2);
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
    assert_eq!(context.staged(), Vec::<String>::new());
}

#[test]
fn help_tells_of_both() {
    let context = context();
    for verb in ["run", "fork"] {
        let help = context.kiln([verb, "--help"]).ok();
        let from = help.find("  -e, --env").unwrap();
        let to = from + help[from..].find("/NAME").unwrap() + "/NAME".len();
        insta::allow_duplicates! {
            insta::assert_snapshot!(&help[from..to], @r"
              -e, --env <NAME[=VALUE]>
                      Set a variable of its environment; without =VALUE, to what kiln's own environment has

                  --env-file <FILE>
                      Set the variables of a file: lines like those of --env, which goes over them, and comments

                  --secret <NAME=FILE>
                      Put a file's content, or standard input's (-), into the guest's /run/kiln/secrets/NAME
            ");
        }
    }
}

#[test]
fn boot_a_machine_has_its_environment_and_secrets_at_every_start() {
    let context = context();
    // The readiness command is a program in the machine like any other.
    built(
        &context,
        "web",
        "[ready]\ncommand = [\"sh\", \"-c\", \"test -n \\\"$COLOR\\\"\"]\ntimeout = \"60s\"\n",
    );
    let (color, token) = ("azure-5f1c83d07a", "swordfish-90b2e7746d\n");
    context.write("token", token);
    context.write("vars", format!("COLOR={color}\nHOME=/tmp\n"));
    let run = ["run", "-d", "--name", "w", "--env-file", "vars", "--secret", "token=token", "web"];
    context.kiln(run).ok();
    let exec = |words: &[&str]| context.kiln([&["exec"], words].concat()).ok();
    let who = format!("{color}\n{token}1\n");
    let token_hex = hex(token.as_bytes());
    let holds = [color, token.trim(), &token_hex];
    let file = context.home().join("machines").join(&context.machine_dirs()[0]).join("private.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    for start in ["run", "start"] {
        assert_eq!(exec(&["w", "--", "sh", "-c", WHO]), who, "{start}");
        let modes = "stat -c %a /run/kiln/env /run/kiln/secrets /run/kiln/secrets/token; echo $HOME";
        assert_eq!(exec(&["w", "--", "sh", "-c", modes]), "600\n700\n400\n/tmp\n");
        assert_eq!(exec(&["-e", "COLOR=exec", "w", "--", "sh", "-c", "echo $COLOR"]), "exec\n");
        for listed in
            [context.kiln(["ps", "--json"]).json()[0].clone(), context.kiln(["show", "w", "--json"]).json()]
        {
            assert_eq!(listed["environment"], serde_json::json!(["COLOR", "HOME"]));
            assert_eq!(listed["secrets"], serde_json::json!(["token"]));
        }
        exec(&["w", "--", "sh", "-c", "busybox sync"]);
        assert_eq!(holding(&context, &holds), std::slice::from_ref(&file), "{start}");
        context.kiln(["stop", "w"]).ok();
        assert_eq!(holding(&context, &holds), std::slice::from_ref(&file), "after {start}");
        if start == "run" {
            context.kiln(["start", "w"]).ok();
        }
    }
    std::fs::write(&file, "{}").unwrap();
    let told = context.kiln(["start", "w"]).fails(1);
    assert!(told.contains("private.json is damaged"), "{told}");
    context.kiln(["rm", "-f", "w"]).ok();
    assert_eq!(holding(&context, &holds), Vec::<PathBuf>::new());
}

#[test]
fn boot_a_restored_machine_has_its_own_and_not_its_siblings() {
    let context = context();
    built(&context, "web", "");
    context.kiln(["snapshot", "create", "--name", "warm", "web"]).ok();
    let restored = |name: &str, options: &[&str], input: &str| {
        let words = [&["run", "-d", "--restore", "require", "--name", name], options, &["web"]].concat();
        context.kiln_with_input(words, input.as_bytes().to_vec()).ok();
    };
    let exec = |name: &str, script: &str| context.kiln(["exec", name, "--", "sh", "-c", script]).ok();
    restored("one", &["-e", "COLOR=azure-one", "--secret", "id=token,src=-"], "swordfish-one\n");
    restored("two", &["-e", "COLOR=azure-two", "--secret", "token=-"], "swordfish-two\n");
    restored("none", &[], "");
    let both = [("one", "azure-one\nswordfish-one\n1\n"), ("two", "azure-two\nswordfish-two\n1\n")];
    for (name, who) in both {
        assert_eq!(exec(name, WHO), who);
    }
    assert_eq!(exec("none", "echo \"$COLOR\"; ls /run/kiln"), "\nepoch\n");
    for value in ["azure-one", "swordfish-one"] {
        let holding = holding(&context, &[value, &hex(value.as_bytes())]);
        let names: Vec<_> = holding.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, ["private.json"], "{value}");
    }
    // It boots now, where another message tells it.
    context.kiln(["stop", "one"]).ok();
    context.kiln(["start", "one"]).ok();
    assert_eq!(exec("one", WHO), both[0].1);
    context.kiln(["fork", "-n", "2", "--name", "f", "-e", "COLOR=forked", "web"]).ok();
    for name in ["f-1", "f-2"] {
        assert_eq!(exec(name, "echo $COLOR; test -e /run/kiln/secrets; echo $?"), "forked\n1\n", "{name}");
    }
}

#[test]
fn boot_an_entrypoint_has_them_when_it_begins() {
    let context = context();
    let script = "echo from $WHO in $PLACE; cat /run/kiln/secrets/token > /dev/console; exit 5";
    let extra = format!(
        "[entrypoint]\ncommand = [\"sh\", \"-c\", \"{script}\"]\nenv = {{ WHO = \"recipe\", PLACE = \"guest\" }}"
    );
    built(&context, "job", &extra);
    context.write("token", "swordfish\n");
    let output = context.kiln(["run", "--rm", "-e", "WHO=machine", "--secret", "token=token", "job"]);
    assert_eq!(output.code, 5, "{}\n{}", output.stdout, output.stderr);
    assert!(output.stdout.contains("from machine in guest"), "{}", output.stdout);
    assert!(output.stdout.contains("swordfish"), "{}", output.stdout);
    let missing = "[entrypoint]\ncommand = [\"no-such-program\"]\n";
    built(&context, "none", missing);
    let told = context.kiln(["run", "--rm", "-e", "A=x", "none"]).fails(1);
    assert!(told.contains("cannot start the entry point no-such-program"), "{told}");
}
