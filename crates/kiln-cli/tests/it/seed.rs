//! The disk that tells a guest's cloud-init who its machine is.

use crate::context;
use kiln_testing::{TestContext, recipe};
use std::collections::BTreeSet;

/// Returns what a built template's machines tell cloud-init.
fn seed(context: &TestContext, name: &str) -> serde_json::Value {
    context.kiln(["show", name, "--json"]).json()["manifest"]["seed"].clone()
}

#[test]
fn a_seed_is_there_where_the_image_has_cloud_init_or_the_recipe_says_so() {
    let context = context();
    let dir = recipe(&context, "web", "");
    let plain = std::fs::read_to_string(dir.join("kiln.toml")).unwrap();
    let build = |extra: &str| {
        context.write("web/kiln.toml", format!("{plain}{extra}"));
        context.kiln(["build", "-q", "web"]).ok();
        seed(&context, "web")
    };
    assert!(build("").is_null());
    assert_eq!(build("[seed]\n"), serde_json::json!({ "type": "nocloud" }));
    let text = "#cloud-config\nruncmd: [[sh, -c, 'echo a: b # c']]\n";
    context.write("web/user-data", text);
    let asked = build("[seed]\nuser_data = \"user-data\"\n");
    assert_eq!(asked, serde_json::json!({ "type": "nocloud", "user_data": text }));
    let explained = context.kiln(["build", "--explain", "web"]).ok();
    assert!(explained.contains("seed"), "{explained}");

    // Where nothing is said, the image says it.
    let config = context.work().join("rootfs/etc/cloud");
    std::fs::create_dir_all(&config).unwrap();
    std::fs::write(config.join("cloud.cfg"), "users: [default]\n").unwrap();
    assert_eq!(build(""), serde_json::json!({ "type": "nocloud" }));
    assert!(build("[seed]\ntype = \"none\"\n").is_null());
    std::fs::write(config.join("cloud-init.disabled"), "").unwrap();
    assert!(build("").is_null());
}

#[test]
fn user_data_that_cloud_init_would_not_take_is_refused() {
    let context = context();
    let dir = recipe(&context, "web", "[seed]\nuser_data = \"user-data\"\n");
    let refused = || context.kiln(["build", "web"]).fails(1);
    let error = refused();
    assert!(error.contains("user-data") && error.contains("seed.user_data"), "{error}");
    context.write("web/user-data", "packages: [nginx]\n");
    let error = refused();
    assert!(error.contains("user-data cannot be user data"), "{error}");
    assert!(error.contains("user data begins with `packages: [nginx]`"), "{error}");
    assert!(error.contains("try: begin it with #cloud-config"), "{error}");
    context.write("web/user-data", b"#!\xff\xfe");
    assert!(refused().contains("is not text in UTF-8"));
    context.write("web/user-data", "#!".repeat(40_000));
    assert!(refused().contains("more than 65536"));
    std::fs::write(dir.join("kiln.toml"), "name = \"web\"\n[source]\ntype = \"directory\"\npath = \"x\"\n[seed]\ntype = \"none\"\nuser_data = \"user-data\"\n").unwrap();
    let error = context.kiln(["build", "web"]).fails(2);
    assert!(error.contains("`seed.user_data`: a seed of type `none` has no user data"), "{error}");
    assert_eq!(context.kiln(["ls", "-aq"]).ok(), "");
    assert_eq!(context.staged(), Vec::<String>::new());
}

#[test]
fn boot_each_machine_has_a_seed_of_its_own() {
    let context = context();
    context.write("web/user-data", "#!/bin/sh\necho for the guest\n");
    let dir = recipe(&context, "web", "[machine]\ndata_disk = \"8M\"\n[seed]\nuser_data = \"user-data\"\n");
    context.kiln(["build".as_ref(), "-q".as_ref(), "--snapshot".as_ref(), dir.as_os_str()]).ok();
    let sh = |machine: &str, script: &str| context.kiln(["exec", machine, "--", "sh", "-c", script]).ok();
    // The last disk, only read.
    let instance = |machine: &str| {
        let script = "cat /sys/block/vdc/serial; echo; cat /sys/block/vdc/ro; grep -ac 'echo for the guest' /dev/vdc; \
                      grep -ao '\"local-hostname\":\"[^\"]*\"' /dev/vdc; grep -ao '\"instance-id\":\"[^\"]*\"' /dev/vdc";
        let said = sh(machine, script);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[..4], ["seed", "1", "1", &format!("\"local-hostname\":\"{machine}\"")], "{said}");
        lines[4].to_owned()
    };
    context.kiln(["run", "-d", "--name", "booted", "--restore", "never", "web"]).ok();
    context.kiln(["run", "-d", "--name", "restored", "--restore", "require", "web"]).ok();
    context.kiln(["run", "-d", "--name", "other", "--restore", "require", "web"]).ok();
    let of_restored = instance("restored");
    let fork = context.kiln(["fork", "-q", "other"]).ok().trim().to_owned();
    let all = [instance("booted"), of_restored.clone(), instance("other"), instance(&fork)];
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{all:?}");
    // It stays the machine's own over an end, a suspension and a return.
    context.kiln(["suspend", "restored"]).ok();
    context.kiln(["resume", "restored"]).ok();
    assert_eq!(instance("restored"), of_restored);
    let snapshot = context.kiln(["snapshot", "create", "-q", "restored"]).ok().trim().to_owned();
    context.kiln(["stop", "-t", "0", "restored"]).ok();
    context.kiln(["snapshot", "restore", "--in-place", "restored", &snapshot]).ok();
    context.kiln(["start", "restored"]).ok();
    assert_eq!(instance("restored"), of_restored);
}
