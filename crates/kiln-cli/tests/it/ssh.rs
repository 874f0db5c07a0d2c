//! SSH: keys that machines are given, and the ways in.

use crate::context;
use kiln_testing::{TestContext, plain, recipe};
use std::path::Path;
use std::process::{Command, Stdio};

/// Made by `ssh-keygen -t ed25519`.
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me at home";

#[test]
fn a_key_that_is_none_is_refused_with_what_to_give() {
    let context = context();
    let dir = recipe(&context, "web", "[seed]\nuser = \"ubuntu\"\n");
    context.kiln(["build", "-q", "web"]).ok();
    let seed = serde_json::json!({ "type": "nocloud", "user": "ubuntu" });
    assert_eq!(context.kiln(["show", "web", "--json"]).json()["manifest"]["seed"], seed);
    context.write("id", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n");
    context.write("none", "# nothing\n");
    insta::assert_snapshot!(context.kiln(["run", "--ssh-key", "id", "web"]).fails(2), @r"
    error: id holds no public SSH key
      because: this is a private SSH key: a machine is given public ones
    try: --ssh-key id.pub: the public key is beside the private one
    ");
    insta::assert_snapshot!(context.kiln(["run", "--ssh-key", &format!("no-pty {KEY}"), "web"]).fails(2), @r"
    error: options before an SSH key are not taken: a line begins with the key's kind
    try: user_data in [seed] takes keys with options, as cloud-init's ssh_authorized_keys
    ");
    insta::assert_snapshot!(context.kiln(["run", "--ssh-key", "none", "web"]).fails(2), @"error: none is empty");
    context.kiln(["run", "--ssh-key", "absent", "web"]).fails(1);
    context.kiln(["run", "--ssh-key", KEY, "--no-ssh-keys", "web"]).fails(2);
    // Nobody would hear of a key.
    let text = std::fs::read_to_string(dir.join("kiln.toml")).unwrap();
    context.write("web/kiln.toml", text.replace("user = \"ubuntu\"", "type = \"none\""));
    context.kiln(["build", "-q", "web"]).ok();
    insta::assert_snapshot!(context.kiln(["run", "--ssh-key", KEY, "web"]).fails(1), @r"
    error: `web:latest` has no seed: its machines are told no SSH keys
    try: a [seed] in kiln.toml makes one, for an image with cloud-init; kiln build bakes it anew
    ");
    context.write("web/kiln.toml", text.replace("ubuntu", "-l"));
    let error = context.kiln(["build", "web"]).fails(2);
    assert!(error.contains("`seed.user`: `-l` is not the name of a user"), "{error}");
    assert_eq!((context.machine_dirs(), context.staged()), (Vec::new(), Vec::new()));
}

#[test]
fn a_machine_that_is_not_there_has_no_way_in() {
    let context = context();
    context.kiln(["ssh", "web"]).fails(1);
    context.kiln(["ssh-config", "web"]).fails(1);
    assert_eq!(context.kiln(["ssh-config"]).ok(), "");
    assert_eq!(context.kiln(["ssh-config", "--json"]).json(), serde_json::json!([]));
}

#[test]
fn boot_ssh_tells_of_a_guest_without_a_server() {
    let context = context();
    let dir = recipe(&context, "web", "[seed]\nuser = \"ubuntu\"\n");
    context.kiln(["build".as_ref(), "-q".as_ref(), dir.as_os_str()]).ok();
    context.write(".ssh/id_ed25519.pub", format!("{KEY}\n"));
    context.kiln(["run", "-d", "--name", "one", "web"]).ok();
    // kiln's own, made at first need, and the user's.
    let shown = context.kiln(["show", "--machine", "one", "--json"]).json();
    assert_eq!(shown["ssh_keys"], serde_json::json!(["kiln", "me at home"]));
    let mode = |path: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::metadata(context.home().join(path)).unwrap().permissions().mode() & 0o7777
    };
    assert_eq!((mode("ssh"), mode("ssh/id_ed25519")), (0o700, 0o600));
    let script = format!("grep -ac '{KEY}' /dev/vdb");
    assert_eq!(context.kiln(["exec", "one", "--", "sh", "-c", &script]).ok(), "1\n");
    insta::assert_snapshot!(context.kiln(["ssh", "one"]).fails(1), @r"
    error: machine `one` has no SSH server that takes connections: connection refused on port 22
    try: add openssh-server to the template; kiln shell one needs no SSH
    ");
    let config = context.kiln(["ssh-config"]).ok();
    let config = plain(&context, &config);
    let config = config.replace(context.program().to_str().unwrap(), "[kiln]");
    insta::assert_snapshot!(config, @r#"
    Host one
      HostName 127.0.0.1
      ProxyCommand '[kiln]' --home '[HOME]' __dial [ID] 22
      User ubuntu
      IdentityFile "[HOME]/ssh/id_ed25519"
      UserKnownHostsFile "[HOME]/machines/[ID]/known_hosts"
      HostKeyAlias [ID]
      StrictHostKeyChecking accept-new
      CheckHostIP no
    "#);
    // What a guest listens on is reached without a network, and ends as it does there.
    let serve = "(while read -r line && test \"$line\" != end; do echo \"$line\"; done; echo bye) | cat";
    let server = format!("nc -l -p 7 -e sh -c '{serve}' </dev/null >/dev/null 2>&1 &");
    context.kiln(["exec", "one", "--", "sh", "-c", &server]).ok();
    let dialled = |port: &str| context.kiln_with_input(["__dial", "one", port], b"a\nb\nend\n".to_vec());
    context.eventually("the guest listens", || dialled("7").stdout == "a\nb\nbye\n");
    let error = dialled("22").fails(1);
    assert!(error.contains("no SSH server that takes connections"), "{error}");
    context.kiln(["stop", "-t", "0", "one"]).ok();
    let error = context.kiln(["ssh", "one"]).fails(1);
    assert!(error.contains("is stopped") && error.contains("kiln start one"), "{error}");
}

const RECIPE: &str = r#"name = "deb"
[source]
type = "debian"
suite = "bookworm"
variant = "essential"
packages = ["cloud-init", "kmod", "openssh-server", "passwd", "procps", "systemd-sysv", "udev", "ifupdown", "iproute2", "isc-dhcp-client"]
[machine]
memory = "512M"
[seed]
user = "debian"
user_data = "user-data"
[ready]
timeout = "10m"
"#;
const USER_DATA: &str = "#cloud-config\nlocale: C.UTF-8\nresize_rootfs: false\nssh_genkeytypes: [ed25519]\n";

/// Runs the host's ssh with a configuration.
fn ssh(context: &TestContext, config: &Path, more: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new("ssh");
    command.arg("-F").arg(config).args(more).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", context.work());
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// A port of this host that nobody has.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn boot_ssh_into_debian_through_the_agent_and_through_a_port() {
    let context = context();
    context.write("kiln.toml", RECIPE);
    context.write("user-data", USER_DATA);
    context.kiln(["build", "-q"]).ok();
    let port = format!("{}:22", free_port());
    let noise: Vec<u8> = (0_u32..2 << 20).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    // Both come up at once.
    for (name, way) in [("alone", ["--net", "none"]), ("open", ["-p", port.as_str()])] {
        context.kiln(["run", "-d", "--name", name, way[0], way[1], "deb"]).ok();
    }
    for name in ["alone", "open"] {
        // The server comes up after cloud-init knows the keys.
        let output = context.kiln(["ssh", "--wait", "5m", name, "--", "id -un; exit 7"]);
        assert_eq!((output.code, output.stdout.as_str()), (7, "debian\n"), "{}", output.stderr);
        let path = context.work().join("noise");
        std::fs::write(&path, &noise).unwrap();
        let mut cat = context.command(["ssh", name, "--", "cat"]);
        let back = cat.stdin(std::fs::File::open(&path).unwrap()).output().unwrap();
        assert!(back.stdout == noise, "{}", String::from_utf8_lossy(&back.stderr));
        let config = context.write("config", context.kiln(["ssh-config"]).ok());
        let (code, said) = ssh(&context, &config, &[name, "id -un; exit 8"]);
        assert_eq!((code, said.as_str()), (Some(8), "debian\n"));
    }
    // Who has no key that was given is not let in.
    let config = context.kiln(["ssh-config", "alone"]).ok();
    let lines = config.lines().filter(|line| !line.contains("IdentityFile"));
    let config = context.write("config", lines.collect::<Vec<_>>().join("\n"));
    let (code, said) = ssh(&context, &config, &["-o", "BatchMode=yes", "alone", "true"]);
    assert!(code == Some(255) && said.contains("Permission denied"), "{said}");
}
