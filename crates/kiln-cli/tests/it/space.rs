//! Tags moved back, space freed, and what keeps what.

use crate::context;
use kiln_testing::{TestContext, plain, recipe};

/// Builds `web` twice with other content; returns the two revisions.
fn two_revisions(context: &TestContext) -> [String; 2] {
    let dir = recipe(context, "web", "");
    ["one", "two"].map(|content| {
        std::fs::write(context.work().join("rootfs/etc/content"), content).unwrap();
        context.kiln(["build".as_ref(), "-q".as_ref(), dir.as_os_str()]).ok().trim().to_owned()
    })
}

fn revision(context: &TestContext, reference: &str) -> String {
    context.kiln(["show", reference, "--json"]).json()["revision"].as_str().unwrap().to_owned()
}

#[test]
fn a_tag_goes_back_and_forth_and_comes_back_when_removed() {
    let context = context();
    let [one, two] = two_revisions(&context);
    assert_eq!(revision(&context, "web"), two);
    context.kiln(["rollback", "web"]).ok();
    assert_eq!(revision(&context, "web"), one);
    context.kiln(["rollback", "web"]).ok();
    assert_eq!(revision(&context, "web"), two);
    context.kiln(["rollback", "web", "--to", &one]).ok();
    let moves = context.kiln(["history", "web", "--json"]).json();
    let moves: Vec<_> = moves.as_array().unwrap().iter().map(|step| step["by"].as_str().unwrap()).collect();
    assert_eq!(moves, ["rollback", "rollback", "rollback", "build", "build"]);
    context.kiln(["tag", "web", "web:v1"]).ok();
    let alone = context.kiln(["rollback", "web:v1"]).fails(1);
    insta::assert_snapshot!(plain(&context, &alone), @r"
    error: tag `web:v1` has no former revision
    try: kiln history web:v1 shows its moves; kiln tag moves it elsewhere
    ");
    let strange = context.kiln(["rollback", "web:v1", "--to", &two]).fails(1);
    assert!(strange.contains("was never one of template `web`"), "{strange}");
    assert_eq!(context.kiln(["untag", "web:v1"]).ok(), "web:v1\n");
    assert!(context.kiln(["show", "web:v1"]).fails(1).contains("has no tag `v1`"));
    assert!(context.kiln(["history", "web:v1"]).stderr.contains("kiln rollback web:v1 brings it back"));
    context.kiln(["rollback", "web:v1"]).ok();
    assert_eq!(revision(&context, "web:v1"), one);
    assert!(context.kiln(["untag", "web:v9"]).fails(1).contains("has no tag `v9`"));
    assert_eq!(context.kiln(["untag"]).code, 2);
}

#[test]
fn a_damaged_tag_is_a_line_and_can_be_removed() {
    let context = context();
    let [_, two] = two_revisions(&context);
    context.kiln(["tag", "web", "web:v1"]).ok();
    std::fs::write(context.home().join("templates/web/tags/v1.json"), "{").unwrap();
    let listed = context.kiln(["ls", "--json"]).json();
    assert_eq!((&listed[0]["revision"], &listed[0]["damaged"]), (&two.as_str().into(), &false.into()));
    assert_eq!((&listed[1]["tag"], &listed[1]["damaged"]), (&"v1".into(), &true.into()));
    assert_eq!(context.kiln(["ls", "-q"]).ok(), "web:latest\nweb:v1\n");
    assert_eq!(context.kiln(["doctor", "--json"]).code, 1);
    let stopped = context.kiln(["gc", "--keep-last", "1"]).fails(1);
    assert!(stopped.contains("try: kiln untag web:v1 sets it aside"), "{stopped}");
    assert_eq!(context.kiln(["untag", "web:v1"]).ok(), "web:v1\n");
    context.kiln(["tag", "web", "web:v1"]).ok();
    assert_eq!(revision(&context, "web:v1"), two);
}

#[test]
fn space_is_freed_and_nothing_that_is_kept() {
    let context = context();
    let [one, two] = two_revisions(&context);
    let short = one[.."sha256:".len() + 12].to_owned();
    // As listings show it.
    assert_eq!(revision(&context, short.trim_start_matches("sha256:")), one);
    let why = context.kiln(["why", &one]).ok();
    assert!(why.ends_with("<- tag web:latest, one revision ago\n"), "{why}");
    assert_eq!(context.kiln(["gc", "-q", "--dry-run"]).ok(), "");
    let planned = context.kiln(["gc", "--dry-run", "--keep-last", "1", "--json"]).json();
    assert_eq!(planned["revisions"][0]["revision"], one);
    let exclusive = planned["revisions"][0]["exclusive_bytes"].as_u64().unwrap();
    assert_eq!(planned["freed_bytes"], exclusive);
    assert!(exclusive > 1 << 20);
    let before = context.kiln(["df", "--json"]).json();
    assert_eq!(before["templates"][0]["revisions"], 2);
    let of = |usage: &serde_json::Value, what: &str| usage["templates"][0][what].as_u64().unwrap();
    let [apparent, allocated] = ["apparent_bytes", "allocated_bytes"].map(|what| of(&before, what));
    assert!(allocated <= apparent && allocated == before["artifact_bytes"].as_u64().unwrap(), "{before}");
    assert_eq!((of(&before, "shared_bytes"), of(&before, "exclusive_bytes")), (0, allocated), "{before}");
    context.kiln(["tag", "web", "also"]).ok();
    let both = context.kiln(["df", "--json"]).json();
    assert_eq!(both["templates"][0]["template"], "also");
    assert_eq!((of(&both, "shared_bytes"), of(&both, "exclusive_bytes")), (of(&both, "allocated_bytes"), 0));
    context.kiln(["untag", "also"]).ok();
    assert_eq!(revision(&context, &short), one, "a dry run changes nothing");
    // What a machine has stays, and its name is said.
    let rootfs = context.kiln(["show", &one, "--json"]).json()["manifest"]["artifacts"][2]["digest"].clone();
    assert_eq!(context.kiln(["gc", "-q", "--keep-last", "1"]).ok(), format!("{one}\n"));
    assert!(context.kiln(["show", &short]).fails(1).contains("not found"));
    assert!(context.kiln(["why", rootfs.as_str().unwrap()]).fails(1).contains("not found"));
    let rolled = context.kiln(["rollback", "web"]).fails(1);
    assert!(rolled.contains("not found"), "{rolled}");
    assert_eq!(revision(&context, "web"), two, "a rollback to what is gone moves nothing");
    let after = context.kiln(["df", "--json"]).json();
    assert!(after["trash_bytes"].as_u64().unwrap() >= exclusive);
    assert_eq!(after["reclaimable_bytes"], 0);
    context.kiln(["gc", "--grace", "0"]).ok();
    assert_eq!(context.kiln(["df", "--json"]).json()["trash_bytes"], 0);
    assert_eq!(context.kiln(["verify", "--all", "--json"]).json()["whole"], true);
    let kernel = context.kiln(["show", &two, "--json"]).json()["manifest"]["artifacts"][1]["digest"].clone();
    let why = context.kiln(["why", kernel.as_str().unwrap()]).ok();
    assert!(why.starts_with("kernel of revision ") && why.ends_with(" <- tag web:latest\n"), "{why}");
    assert_eq!(context.kiln(["gc", "--keep-last", "0"]).code, 2);
    assert_eq!(context.kiln(["gc", "--older-than", "soon"]).code, 2);
}

#[test]
fn a_tag_that_cannot_be_read_is_a_line_and_keeps_everything() {
    let context = context();
    let [one, two] = two_revisions(&context);
    context.kiln(["tag", &one, "web:v1"]).ok();
    std::fs::write(context.home().join("templates/web/tags/latest.json"), "{").unwrap();
    let list = context.kiln(["ls", "--json"]);
    assert!(list.stderr.contains("latest.json") && list.stderr.contains("is damaged"), "{}", list.stderr);
    let lines = list.json();
    let line = |at: usize| (&lines[at]["tag"], &lines[at]["revision"], &lines[at]["damaged"]);
    assert_eq!(line(0), (&"latest".into(), &serde_json::Value::Null, &true.into()));
    assert_eq!(line(1), (&"v1".into(), &one.clone().into(), &false.into()));
    let used = context.kiln(["df", "--json"]);
    assert!(used.stderr.contains("latest.json"), "{}", used.stderr);
    assert_eq!(used.json()["reclaimable_bytes"], serde_json::Value::Null);
    assert!(context.kiln(["df"]).stdout.contains("unknown"));
    for command in [&["gc", "--keep-last", "1"][..], &["gc", "--dry-run"], &["why", &two]] {
        assert!(context.kiln(command).fails(1).contains("latest.json"));
    }
    assert_eq!(revision(&context, &two), two, "it stays");
    let told = context.kiln(["show", "web"]).fails(1);
    assert!(told.contains("try: kiln untag web:latest sets it aside; kiln ls -a lists"), "{told}");
    context.kiln(["untag", "web:latest"]).ok();
    context.kiln(["tag", &two, "web:latest"]).ok();
    assert_eq!(revision(&context, "web"), two);
}

#[test]
fn boot_what_a_machine_runs_is_kept() {
    let context = context();
    let [one, _] = two_revisions(&context);
    context.kiln(["run", "-d", "--name", "w", &one]).ok();
    assert_eq!(context.kiln(["gc", "-q", "--keep-last", "1", "--grace", "0"]).ok(), "");
    assert!(context.kiln(["why", &one]).ok().contains("<- machine w\n"));
    context.kiln(["stop", "w"]).ok();
    context.kiln(["start", "w"]).ok();
    assert_eq!(context.kiln(["exec", "w", "--", "cat", "/etc/content"]).ok(), "one");
    context.kiln(["rm", "-f", "w"]).ok();
    assert_eq!(context.kiln(["gc", "-q", "--keep-last", "1"]).ok(), format!("{one}\n"));
}
