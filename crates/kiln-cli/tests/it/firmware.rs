//! Disk images that firmware boots: a whole disk, with an agent that its cloud-init brings. It is suspended and forked as
//! any.

use crate::cloud_image::{USER_DATA, cloud_image};
use crate::context;

#[test]
fn boot_a_cloud_image_by_firmware_with_an_agent_from_its_seed() {
    let context = context();
    let image = cloud_image();
    context.write("user-data", format!("{USER_DATA}runcmd: [[sh, -c, 'echo mine > /root/said']]\n"));
    context.write(
        "kiln.toml",
        format!(
            "name = \"cloud\"\n[source]\ntype = \"disk\"\npath = \"{}\"\n[machine]\nmemory = \"640M\"\n\
             [seed]\nuser_data = \"user-data\"\n[ready]\nfile = \"/root/said\"\ntimeout = \"15m\"\n",
            image.display()
        ),
    );
    let built = context.kiln(["build"]);
    assert!(built.stderr.contains("firmware boots the whole disk"), "{}", built.stderr);
    built.ok();
    let manifest = &context.kiln(["show", "cloud", "--json"]).json()["manifest"];
    let formats: Vec<&str> = manifest["artifacts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["format"].as_str().unwrap())
        .collect();
    assert_eq!(formats, ["firmware", "disk"]);

    context.kiln(["run", "-d", "--name", "one", "--net", "user", "cloud"]).ok();
    let sh = |script: &str| context.kiln(["exec", "one", "--", "sh", "-c", script]).ok();
    assert_eq!(
        sh("cat /root/said; findmnt -no FSTYPE /"),
        "mine\nbtrfs\n",
        "it has its own root, and the user's words"
    );
    assert_eq!(sh("systemctl is-enabled kiln-agent; systemctl is-active kiln-agent"), "enabled\nactive\n");
    assert_eq!(sh("hostname; test -d /sys/firmware/efi && echo firmware"), "one\nfirmware\n");
    // Another agent leaves the host to the one that serves it.
    let second = context.kiln(["exec", "one", "--", "/usr/local/bin/kiln-agent", "serve", "--port"]);
    assert_eq!(second.code, 0, "{}", second.stderr);
    assert!(second.stderr.contains("another agent serves the host"), "{}", second.stderr);
    let told = context.kiln(["exec", "one", "--", "sh", "-c", "exit 3"]);
    assert_eq!(told.code, 3, "{}", told.stderr);
    // The keys of the seed let kiln in as the user whom the image's cloud-init makes.
    let told = context.kiln(["ssh", "-l", "debian", "one", "--", "id", "-un"]);
    assert_eq!(told.stdout, "debian\n", "{}", told.stderr);
    // It goes on where it stood, and so does a fork, by a name of its own.
    context.kiln(["suspend", "one"]).ok();
    context.kiln(["resume", "one"]).ok();
    assert_eq!(sh("hostname; cat /root/said"), "one\nmine\n");
    let fork = context.kiln(["fork", "-q", "-n", "1", "one"]).ok();
    let id = "hostname; cat /etc/machine-id";
    let other = context.kiln(["exec", fork.trim(), "--", "sh", "-c", id]).ok();
    assert!(other.starts_with(&fork) && other.lines().nth(1) != sh(id).lines().nth(1), "{other}");
}
