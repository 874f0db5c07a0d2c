//! Snapshots as users see them: listed, shown, removed, and named by every verb that meets them or their files. They are
//! committed to the store here, no machine runs.

mod rewarm;
mod shop;

use kiln_core::Digest;
use kiln_core::snapshot::SnapshotKeep;
use kiln_testing::plain;
use shop::{FILE_BYTES, Shop};
use std::os::unix::fs::PermissionsExt as _;

#[test]
fn snapshots_are_listed_with_what_they_are_and_what_continues_them() {
    let shop = Shop::new();
    assert_eq!(shop.context.kiln(["snapshot", "ls", "-q"]).ok(), "");
    let warm = shop.snapshot(Some("warm"), "disk", Some("state"), SnapshotKeep::Always, 3);
    let disks = shop.snapshot(None, "rootfs", None, SnapshotKeep::Revision, 2);
    let broken = shop.snapshot(Some("broken"), "other", Some("other state"), SnapshotKeep::Always, 1);
    shop.machine("w1", warm);
    shop.machine("w2", warm);
    shop.spoil(&broken);
    let listed = shop.context.kiln(["snapshot", "ls"]);
    insta::assert_snapshot!(plain(&shop.context, &listed.stdout), @r"
    SNAPSHOT       NAME   OF           VMM           MEMORY      ON DISK     CREATED   KEEP       MACHINES
    [ID]   -      damaged      -             -           -           -         -          -
    [ID]   warm   web:latest   qemu 7.2.22   256.0 MiB   128.0 KiB   3 h ago   always     w1,w2
    [ID]   -      web:latest   -             disk only   64.0 KiB    2 h ago   revision   -
    ");
    insta::assert_snapshot!(plain(&shop.context, &listed.stderr), @r"
    error: [HOME]/snapshots/[DIGEST].json is damaged: its content has another digest
    try: kiln snapshot rm [ID] removes the snapshot
    ");
    // One that cannot be read comes first: nobody knows when it was made.
    assert_eq!(shop.context.kiln(["snapshot", "ls", "-q"]).ok(), format!("{broken}\n{warm}\n{disks}\n"));
    let lines = shop.context.kiln(["snapshot", "ls", "--json"]).json();
    let of = |at: usize, field: &str| lines[at][field].clone();
    assert_eq!((of(0, "snapshot"), of(0, "damaged")), (broken.to_string().into(), true.into()));
    assert_eq!(
        (of(1, "name"), of(1, "keep"), of(1, "damaged")),
        ("warm".into(), "always".into(), false.into())
    );
    assert_eq!((of(1, "vmm"), of(1, "vmm_version")), ("qemu".into(), "7.2.22".into()));
    assert_eq!(
        (of(1, "machines"), of(1, "tags")),
        (["w1", "w2"].to_vec().into(), ["web:latest"].to_vec().into())
    );
    assert_eq!(of(1, "apparent_bytes"), 2 * FILE_BYTES);
    assert_eq!((of(2, "memory_bytes"), of(2, "vmm")), (serde_json::Value::Null, serde_json::Value::Null));
    let other = shop.commit("another rootfs");
    assert_eq!(shop.context.kiln(["snapshot", "ls", "-q", &other.to_string()]).ok(), "");
    let of_web = shop.context.kiln(["snapshot", "ls", "-q", "web"]).ok();
    assert_eq!(of_web, format!("{warm}\n{disks}\n"));
    assert!(shop.context.kiln(["snapshot", "ls", "wep"]).fails(1).contains("did you mean `web`?"));
    assert_eq!(shop.context.kiln(["snapshot"]).code, 2);
}

#[test]
fn a_snapshot_is_shown_with_all_it_has() {
    let shop = Shop::new();
    let warm = shop.snapshot(Some("warm"), "disk", Some("state"), SnapshotKeep::Always, 3);
    let shown = shop.context.kiln(["snapshot", "show", "warm"]).ok();
    insta::assert_snapshot!(plain(&shop.context, &shown), @r"
    SNAPSHOT
    snapshot            sha256:[DIGEST]
    name                warm
    revision            sha256:[DIGEST]
    tags                web:latest
    machines
    keep                until kiln snapshot rm
    arch                x86_64
    machine             1 vcpu, 256.0 MiB memory, board pc
    boot args           quiet
    disk                sha256:[DIGEST]  64.0 KiB, 64.0 KiB on disk
    state               sha256:[DIGEST]  64.0 KiB, 64.0 KiB on disk
    created             3 h ago
    captured from       web-1a2b
    stood still         45.6 ms
    took                1.2 s
    needs vmm           qemu
    needs vmm_version   7.2.22
    ");
    let json = shop.context.kiln(["snapshot", "show", &warm.hex()[..8], "--json"]).json();
    assert_eq!(json["snapshot"], warm.to_string());
    assert_eq!(json["manifest"]["memory"]["compatibility"][0]["name"], "vmm");
    assert_eq!(
        (&json["files"][1]["role"], &json["files"][1]["apparent_bytes"]),
        (&"state".into(), &FILE_BYTES.into())
    );
    assert_eq!(json["record"]["paused_us"], 45_678);
    let disks = shop.snapshot(None, "rootfs", None, SnapshotKeep::Revision, 2);
    let told = shop.context.kiln(["snapshot", "show", &disks.to_string()]).ok();
    assert!(told.contains("none: disks only"), "{told}");
    // A file that is gone is no reason not to show the rest.
    std::fs::remove_file(shop.store.artifact_path(&shop.file_of(&warm, "state"))).unwrap();
    assert!(shop.context.kiln(["snapshot", "show", "warm"]).ok().contains("64.0 KiB, missing\n"));
    // The revision names its snapshots.
    let shown = shop.context.kiln(["show", "web"]).ok();
    let lines: Vec<&str> = shown.lines().filter(|line| line.starts_with("snapshot ")).collect();
    insta::assert_snapshot!(plain(&shop.context, &lines.join("\n")), @r"
    snapshot     [ID], disk only, 2 h ago
    snapshot     warm, [ID], qemu 7.2.22, 3 h ago
    ");
    let json = shop.context.kiln(["show", "web", "--json"]).json();
    assert_eq!(
        (&json["snapshots"][1]["name"], &json["snapshots"][1]["vmm"]),
        (&"warm".into(), &"qemu".into())
    );
    let shown = |wanted: &str| shop.context.kiln(["snapshot", "show", wanted]).fails(1);
    let told = [shown("wram"), shown("abcdef")].concat();
    shop.spoil(&warm);
    let told = told + &shown(&warm.hex()[..12]);
    insta::assert_snapshot!(plain(&shop.context, &told), @r"
    error: snapshot `wram` not found
    try: did you mean `warm`? kiln snapshot ls lists all
    error: snapshot `abcdef` not found
    try: kiln snapshot ls lists what is there
    error: [HOME]/snapshots/[DIGEST].json is damaged: its content has another digest
    try: kiln snapshot rm [ID] removes the snapshot
    ");
}

#[test]
fn what_a_test_found_is_shown_with_its_snapshot() {
    use kiln_core::template_test::{Check, CheckName, CheckStatus, SnapshotTest, TEST_VERSION, TestedClone};
    let shop = Shop::new();
    let warm = shop.snapshot(Some("warm"), "disk", Some("state"), SnapshotKeep::Always, 3);
    assert!(shop.context.kiln(["snapshot", "show", "warm", "--json"]).json()["test"].is_null());
    let check = |name, status, detail: &str| Check::new(name, status, detail);
    let test = SnapshotTest {
        version: TEST_VERSION,
        tested_unix_ms: kiln_sys::clock::now_unix_ms() - 5000 * 1000,
        elapsed_ms: 3000,
        clones: vec![TestedClone { name: "web-1a2b".to_owned(), ready_after_ms: 500 }],
        checks: vec![
            check(CheckName::Restore, CheckStatus::Passed, "1 clone in at most 500 ms each"),
            check(CheckName::Mac, CheckStatus::NotApplicable, "the guest has none"),
            check(CheckName::Exec, CheckStatus::NotChecked, "web-1a2b: the guest has no sh"),
            check(CheckName::Clock, CheckStatus::Failed, "web-1a2b: its clock is late"),
        ],
    };
    shop.store.save_snapshot_test(&warm, &test).unwrap();
    let shown = shop.context.kiln(["snapshot", "show", "warm"]).ok();
    let lines: Vec<&str> =
        shown.lines().filter(|line| line.contains("ed ") && line.contains("clo")).collect();
    insta::assert_snapshot!(plain(&shop.context, &lines.join("\n")), @r"
    tested              1 h ago: 1 passed, 1 FAILED, 1 not applicable, 1 not checked with 1 clone
    failed clock        web-1a2b: its clock is late
    ");
    let json = shop.context.kiln(["snapshot", "show", "warm", "--json"]).json();
    assert_eq!(
        json["test"]["checks"][3],
        serde_json::json!({"name": "clock", "status": "failed", "detail": "web-1a2b: its clock is late"})
    );
}

#[test]
fn a_template_without_a_snapshot_of_its_memory_cannot_be_tested() {
    let shop = Shop::new();
    shop.snapshot(None, "disk", None, SnapshotKeep::Always, 3);
    let refused = shop.context.kiln(["template", "test", "web"]).fails(1);
    insta::assert_snapshot!(plain(&shop.context, &refused), @r"
    error: `web:latest` has no snapshot with memory
    try: kiln build --snapshot in its recipe's directory, or kiln snapshot create web:latest, makes one
    ");
    for number in ["1", "17", "x"] {
        shop.context.kiln(["template", "test", "-n", number, "web"]).fails(2);
    }
    shop.context.kiln(["template"]).fails(2);
    assert!(shop.context.kiln(["template", "test", "wep"]).fails(1).contains("did you mean `web`?"));
}

#[test]
fn a_snapshot_is_removed_when_no_machine_continues_it() {
    let shop = Shop::new();
    let warm = shop.snapshot(Some("warm"), "disk", Some("state"), SnapshotKeep::Always, 3);
    let cold = shop.snapshot(Some("cold"), "disk", Some("colder"), SnapshotKeep::Always, 2);
    shop.machine("w1", warm);
    let refused = shop.context.kiln(["snapshot", "rm", "warm"]).fails(1);
    insta::assert_snapshot!(plain(&shop.context, &refused), @r"
    error: snapshot [ID] is in use by w1
    try: kiln rm -f w1 removes what continues it
    ");
    let some = shop.context.kiln(["snapshot", "rm", "cold", "warm", "cool"]);
    assert_eq!(some.code, 1);
    // The disk is the other's too.
    assert_eq!(some.stdout, format!("removed {cold} (64.0 KiB freed)\n"));
    insta::assert_snapshot!(plain(&shop.context, &some.stderr), @r"
    error: snapshot [ID] is in use by w1
    try: kiln rm -f w1 removes what continues it
    error: snapshot `cool` not found
    try: kiln snapshot ls lists what is there
    error: 2 of 3 failed
    ");
    let refused = shop.context.kiln(["rm", "web"]).fails(1);
    assert!(refused.contains("is in use by w1"), "{refused}");
    shop.context.kiln(["rm", "-f", "w1"]).ok();
    let refused = shop.context.kiln(["rm", "web"]).fails(1);
    insta::assert_snapshot!(plain(&shop.context, &refused), @r"
    error: revision [ID] is kept by the snapshot warm
    try: kiln snapshot rm warm; kiln untag takes only a tag away
    ");
    // Two of one name are told apart by their ids; one that is damaged is removed by its own.
    let twin = shop.snapshot(Some("warm"), "disk", Some("twin"), SnapshotKeep::Always, 1);
    let told = shop.context.kiln(["snapshot", "rm", "warm"]).fails(1);
    insta::assert_snapshot!(plain(&shop.context, &told), @r"
    error: `warm` fits 2 snapshots
      | sha256:[DIGEST]
      | sha256:[DIGEST]
    try: name it by more digits of its id; kiln snapshot ls lists all
    ");
    shop.spoil(&twin);
    let stopped = shop.context.kiln(["snapshot", "show", &twin.to_string()]).fails(1);
    assert!(stopped.contains(&format!("try: kiln snapshot rm {} removes", twin.short())), "{stopped}");
    assert_eq!(
        shop.context.kiln(["snapshot", "rm", &twin.short()]).ok(),
        format!("removed {twin} (0 B freed)\n")
    );
    assert_eq!(
        shop.context.kiln(["snapshot", "rm", "warm"]).ok(),
        format!("removed {warm} (128.0 KiB freed)\n")
    );
    assert_eq!(shop.context.kiln(["snapshot", "ls", "-q"]).ok(), "");
    shop.context.kiln(["rm", "web"]).ok();
    assert_eq!(shop.context.kiln(["snapshot", "rm"]).code, 2);
}

#[test]
fn what_keeps_a_snapshot_and_its_files_is_told() {
    let shop = Shop::new();
    let warm = shop.snapshot(Some("warm"), "disk", Some("state"), SnapshotKeep::Always, 3);
    let built = shop.snapshot(None, "rootfs", Some("state of the build"), SnapshotKeep::Revision, 2);
    let forked = shop.snapshot(None, "forked disk", None, SnapshotKeep::Machines, 1);
    shop.machine("w1", warm);
    let digests = [
        shop.revision,
        warm,
        shop.file_of(&warm, "state"),
        shop.file_of(&built, "disk"),
        shop.file_of(&built, "state"),
        forked,
    ];
    let told: String =
        digests.iter().map(|digest| shop.context.kiln(["why", &digest.to_string()]).ok() + "\n").collect();
    insta::assert_snapshot!(plain(&shop.context, &told), @r"
    revision [ID] <- tag web:latest
    revision [ID] <- machine w1
    revision [ID] <- snapshot warm

    snapshot warm of revision [ID] <- whoever made it, until kiln snapshot rm
    snapshot warm of revision [ID] <- machine w1

    state of snapshot warm of revision [ID] <- whoever made it, until kiln snapshot rm
    state of snapshot warm of revision [ID] <- machine w1

    rootfs of revision [ID] <- tag web:latest
    rootfs of revision [ID] <- machine w1
    rootfs of revision [ID] <- snapshot warm
    disk of snapshot [ID] of revision [ID] <- tag web:latest
    disk of snapshot [ID] of revision [ID] <- machine w1
    disk of snapshot [ID] of revision [ID] <- snapshot warm

    state of snapshot [ID] of revision [ID] <- tag web:latest
    state of snapshot [ID] of revision [ID] <- machine w1
    state of snapshot [ID] of revision [ID] <- snapshot warm

    snapshot [ID] of revision [ID]: nothing keeps it
    ");
    let json = shop.context.kiln(["why", &digests[2].to_string(), "--json"]).json();
    assert_eq!((&json[0]["snapshot"], &json[0]["role"]), (&warm.to_string().into(), &"state".into()));
    assert_eq!(json[0]["revision"], shop.revision.to_string());
    assert!(shop.context.kiln(["why", &Digest::of(b"nothing").to_string()]).fails(1).contains("not found"));
}

#[test]
fn collections_tell_the_snapshots_that_go() {
    let shop = Shop::new();
    let forked = shop.snapshot(None, "disk", Some("state"), SnapshotKeep::Machines, 3);
    let broken = shop.snapshot(Some("broken"), "disk", Some("other state"), SnapshotKeep::Always, 2);
    let json = shop.context.kiln(["gc", "--dry-run", "--json"]).json();
    assert_eq!(json["snapshots"][0]["snapshot"], forked.to_string());
    assert_eq!(json["snapshots"][0]["revision"], shop.revision.to_string());
    // The disk stays with the other.
    assert_eq!(json["snapshots"][0]["exclusive_bytes"], FILE_BYTES);
    assert_eq!(json["freed_bytes"], FILE_BYTES);
    shop.spoil(&broken);
    let stopped = shop.context.kiln(["gc", "--dry-run"]);
    insta::assert_snapshot!(plain(&shop.context, &stopped.stderr), @r"
    snapshot [ID] cannot be read: no artifact is collected while it is there; kiln snapshot rm [ID] removes it
    0 revisions, 1 snapshot and 0 artifacts (0 B) would go to the trash
    1 revision (320.0 KiB) stays; 0 B deleted, 0 B in the trash
    ");
    let json = shop.context.kiln(["gc", "--dry-run", "--json"]).json();
    assert_eq!(json["unreadable_snapshots"][0], broken.to_string());
    assert_eq!((&json["unreadable"], &json["artifacts"]), (&serde_json::json!([]), &serde_json::json!([])));
    shop.context.kiln(["snapshot", "rm", &broken.to_string()]).ok();
    let went = shop.context.kiln(["gc"]);
    insta::assert_snapshot!(plain(&shop.context, &went.stdout), @r"
    snapshot [ID] of [ID] made 3 h ago, 128.0 KiB of its own
    ");
    // The third artifact is what the damaged one had.
    let told = went.stderr.lines().next();
    assert_eq!(told, Some("0 revisions, 1 snapshot and 3 artifacts (192.0 KiB) went to the trash"));
    assert_eq!(shop.context.kiln(["snapshot", "ls", "-q"]).ok(), "");
}

#[test]
fn what_snapshots_take_up_is_told_beside_templates_and_adds_up() {
    let shop = Shop::new();
    assert_eq!(shop.context.kiln(["df", "--json"]).json()["snapshots"], serde_json::json!([]));
    shop.snapshot(Some("warm"), "disk", Some("state"), SnapshotKeep::Always, 3);
    shop.snapshot(Some("cold"), "disk", Some("colder"), SnapshotKeep::Always, 2);
    // Its disk is the template's.
    shop.snapshot(None, "rootfs", Some("state of the build"), SnapshotKeep::Revision, 1);
    let used = shop.context.kiln(["df", "--json"]).json();
    let of = |what: &str, field: &str| used[what][0][field].as_u64().unwrap();
    let file = FILE_BYTES as u64;
    assert_eq!((used["snapshots"].as_array().unwrap().len(), of("snapshots", "snapshots")), (1, 3));
    assert_eq!((of("snapshots", "allocated_bytes"), of("snapshots", "shared_bytes")), (5 * file, file));
    assert_eq!((of("templates", "allocated_bytes"), of("templates", "shared_bytes")), (2 * file, file));
    let own = of("snapshots", "exclusive_bytes") + of("templates", "exclusive_bytes");
    assert_eq!(used["artifact_bytes"], own + file, "what is shared counts once");
    assert_eq!(used["snapshots"][0]["template"], "web");
    assert_eq!(used["reclaimable_bytes"], 0);
    let told = shop.context.kiln(["df"]).ok();
    let section: Vec<&str> = told.lines().skip_while(|line| !line.starts_with("SNAPSHOTS")).take(2).collect();
    insta::assert_snapshot!(plain(&shop.context, &section.join("\n")), @r"
    SNAPSHOTS OF   REVISION       COUNT   APPARENT    ALLOCATED   SHARED     EXCLUSIVE
    web            [ID]   3       320.0 KiB   320.0 KiB   64.0 KiB   256.0 KiB
    ");
}

#[test]
fn damage_names_the_snapshot_it_is_in() {
    let shop = Shop::new();
    let warm = shop.snapshot(Some("warm"), "disk", Some("state"), SnapshotKeep::Always, 3);
    let broken = shop.snapshot(None, "rootfs", Some("other state"), SnapshotKeep::Revision, 1);
    assert_eq!(shop.context.kiln(["verify", "--all", "--json"]).json()["whole"], true);
    let path = shop.store.artifact_path(&shop.file_of(&warm, "state"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&path, vec![1; FILE_BYTES]).unwrap();
    shop.context.kiln(["verify", "web"]).ok();
    let found = shop.context.kiln(["verify", "--all", "--repair", "-q"]);
    assert_eq!(found.code, 1);
    let line = plain(&shop.context, &found.stdout);
    assert!(
        line.starts_with("[ID] damaged (snapshot warm state): 1 segment differs (bytes 0-65536)"),
        "{line}"
    );
    assert!(line.ends_with("; not repaired: what a snapshot captured cannot be made again\n"), "{line}");
    shop.spoil(&broken);
    std::fs::remove_file(shop.store.artifact_path(&shop.file_of(&warm, "disk"))).unwrap();
    let found = shop.context.kiln(["verify", "--all", "-q"]);
    insta::assert_snapshot!(plain(&shop.context, &found.stdout), @r"
    [ID] missing (snapshot warm state)
    [ID] missing (snapshot warm disk)
    snapshot [ID] unreadable: [HOME]/snapshots/[DIGEST].json is damaged: its content has another digest
    ");
    insta::assert_snapshot!(plain(&shop.context, &found.stderr), @r"
    error: 2 artifacts and 1 snapshot are not whole
    try: kiln snapshot rm [ID] warm: what they captured is lost
    ");
    let json: serde_json::Value =
        serde_json::from_str(&shop.context.kiln(["verify", "--all", "--json"]).stdout).unwrap();
    assert_eq!(json["snapshots"][0]["snapshot"], broken.to_string());
    shop.context.kiln(["snapshot", "rm", "warm", &broken.to_string()]).ok();
    assert_eq!(shop.context.kiln(["verify", "--all", "--json"]).json()["whole"], true);
}
