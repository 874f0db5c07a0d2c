//! Verbs that need no machine.

use crate::context;
use kiln_testing::plain;

#[test]
fn version_and_help_print_to_stdout() {
    let context = context();
    assert_eq!(context.kiln(["--version"]).ok(), format!("kiln {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(context.kiln(["version", "--json"]).json()["store_format"], 1);
    let help = context.kiln(["--help"]).ok();
    for verb in [
        "init",
        "build",
        "run",
        "ps",
        "stop",
        "start",
        "pause",
        "resume",
        "rm",
        "exec",
        "shell",
        "ssh",
        "ssh-config",
        "cp",
        "logs",
        "wait",
        "ls",
        "show",
        "tag",
        "template",
        "clone",
        "import",
        "export",
        "doctor",
        "version",
        "completion",
        "schema",
    ] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(verb)), "{verb} in\n{help}");
        assert!(context.kiln([verb, "--help"]).ok().contains("Usage: kiln"), "{verb}");
    }
    assert!(!context.home().exists(), "asking for help makes no store");
}

#[test]
fn bad_usage_is_2() {
    let context = context();
    context.kiln(["no-such-verb"]).fails(2);
    context.kiln(["run"]).fails(2);
    context.kiln(["run", "web!"]).fails(2);
    context.kiln(["run", "-p", "99999:1", "web"]).fails(2);
    context.kiln(["run", "-m", "lots", "web"]).fails(2);
    context.kiln(["run", "-d", "-t", "web"]).fails(2);
}

#[test]
fn empty_lists_are_empty() {
    let context = context();
    insta::assert_snapshot!(context.kiln(["ls"]).ok(), @"TEMPLATE   TAG   REVISION   SIZE   VARIANTS   BUILT");
    insta::assert_snapshot!(context.kiln(["ps"]).ok(), @"NAME   ID   TEMPLATE   PHASE   STARTED   PORTS");
    assert_eq!(context.kiln(["ls", "--json"]).json(), serde_json::json!([]));
    assert_eq!(context.kiln(["ps", "-q"]).ok(), "");
}

#[test]
fn what_is_not_there_is_named_with_what_is() {
    let context = context();
    insta::assert_snapshot!(context.kiln(["run", "web"]).fails(1), @r"
    error: template `web` not found
    try: kiln ls lists what is there; kiln build bakes `web` where its kiln.toml is
    try: kiln catalog ls lists what kiln catalog pull and kiln run fetch
    ");
    insta::assert_snapshot!(context.kiln(["stop", "web"]).fails(1), @r"
    error: machine `web` not found
    try: kiln ps -a lists machines, kiln ls templates
    ");
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
    assert_eq!(context.staged(), Vec::<String>::new());
}

#[test]
fn init_writes_a_recipe_that_parses_and_never_overwrites() {
    let context = context();
    context.kiln(["init", "web"]).ok();
    let file = context.work().join("web/kiln.toml");
    let first = std::fs::read_to_string(&file).unwrap();
    assert!(first.contains("name = \"web\""));
    std::fs::write(&file, "mine").unwrap();
    let error = context.kiln(["init", "web"]).fails(1);
    insta::assert_snapshot!(plain(&context, &error), @r"
    error: [WORK]/web/kiln.toml exists already
    try: use [WORK]/web/kiln.toml as it is, remove it, or name another place: kiln overwrites nothing
    ");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    std::fs::write(&file, first).unwrap();
    context.kiln(["build", "--explain", "web"]).ok();
}

#[test]
fn a_recipe_is_found_from_below_and_its_absence_is_told() {
    let context = context();
    let error = context.kiln(["build"]).fails(1);
    assert!(error.starts_with("error: no kiln.toml in "), "{error}");
    assert!(error.contains("try: kiln init writes one"), "{error}");
    context.kiln(["init", "web"]).ok();
    std::fs::create_dir_all(context.work().join("web/a/b")).unwrap();
    context.kiln(["build", "--explain", "web/a/b"]).ok();
}

#[test]
fn a_bad_recipe_is_bad_usage_and_says_where() {
    let context = context();
    context.write(
        "kiln.toml",
        "name = \"web\"\n[source]\ntype = \"debian\"\nsuite = \"bookworm\"\n[machine]\nmemroy = \"1G\"\n",
    );
    let error = context.kiln(["build"]).fails(2);
    insta::assert_snapshot!(plain(&context, &error), @r"
    error: [WORK]/kiln.toml is not a valid recipe
      because: line 6: unknown key `memroy`, did you mean `memory`?
    try: kiln schema prints every key; docs/formats/recipe.md explains them
    ");
}

#[test]
fn the_schema_is_json_schema() {
    let context = context();
    let schema = context.kiln(["schema"]).json();
    assert_eq!(schema["title"], "kiln.toml");
    assert!(schema["properties"]["source"].is_object());
}

#[test]
fn completions_name_the_verbs() {
    let context = context();
    for shell in ["bash", "zsh", "fish"] {
        assert!(context.kiln(["completion", shell]).ok().contains("doctor"), "{shell}");
    }
}

#[test]
fn a_strange_directory_is_no_store() {
    let context = context();
    std::fs::create_dir_all(context.home()).unwrap();
    std::fs::write(context.home().join("letters.txt"), "dear").unwrap();
    let error = context.kiln(["ls"]).fails(1);
    assert!(error.contains("is not a kiln store: it has no meta.json, but holds `letters.txt`"), "{error}");
    assert_eq!(std::fs::read_dir(context.home()).unwrap().count(), 1);
}

#[test]
fn a_newer_store_is_refused_with_what_to_do() {
    let context = context();
    context.kiln(["ls"]).ok();
    let meta = context.home().join("meta.json");
    let text = std::fs::read_to_string(&meta).unwrap();
    std::fs::write(&meta, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
    let error = context.kiln(["ls"]).fails(1);
    insta::assert_snapshot!(plain(&context, &error), @r"
    error: store [HOME] has format version 2, this kiln knows up to 1
    try: use the newer kiln that wrote it, or set KILN_HOME to another directory
    ");
    let feature = text.replace("\"incompatible\": {}", "\"incompatible\": {\"time-travel\": true}");
    std::fs::write(&meta, feature).unwrap();
    assert!(context.kiln(["ls"]).fails(1).contains("uses the feature `time-travel`"));
}

#[test]
fn init_sets_up_how_a_store_protects_its_artifacts() {
    let context = context();
    let told = context.kiln(["init", "--protect", "none"]);
    assert_eq!(told.code, 0, "{}", told.stderr);
    assert!(told.stderr.contains("are protected by the setting none"), "{}", told.stderr);
    assert!(!context.work().join("kiln.toml").exists(), "no recipe is written");
    let finding = || {
        let findings: serde_json::Value =
            serde_json::from_str(&context.kiln(["doctor", "--json"]).stdout).unwrap();
        findings.as_array().unwrap().iter().find(|f| f["check"] == "protection").unwrap().clone()
    };
    assert_eq!(finding()["detail"], "none for new artifacts, by the setting none");
    context.kiln(["init", "--protect", "always"]).fails(2);
    context.kiln(["init", "--protect", "auto", "web"]).fails(2);
    let asked = context.kiln(["init", "--protect", "verity"]);
    if asked.code == 0 {
        assert_eq!(finding()["detail"], "verity for new artifacts, by the setting verity");
    } else {
        let refused = plain(&context, &asked.stderr);
        assert!(refused.starts_with("error: the kernel or file system has not fs-verity for "), "{refused}");
        assert!(refused.contains("try: kiln init --protect auto"), "{refused}");
        assert_eq!(finding()["detail"], "none for new artifacts, by the setting none", "it stays");
        assert_eq!(context.staged(), Vec::<String>::new());
    }
}

#[test]
fn the_doctor_names_what_mends_a_missing_qemu() {
    let context = context();
    let tools = context.work().join("tools");
    std::fs::create_dir(&tools).unwrap();
    let findings = context.kiln(["doctor", "--json"]);
    let findings: serde_json::Value = serde_json::from_str(&findings.stdout).unwrap();
    let qemu = findings.as_array().unwrap().iter().find(|f| f["check"] == "qemu-system-x86_64").unwrap();
    assert_eq!(qemu["health"], "ok", "{qemu}");
    let kvm = findings.as_array().unwrap().iter().find(|f| f["check"] == "/dev/kvm").unwrap();
    assert!(kvm["health"] == "ok" || kvm["fix"].is_string(), "{kvm}");
}
