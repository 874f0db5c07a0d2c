//! The whole path once on real packages: bake, boot, run.

use crate::context;

const RECIPE: &str = r#"name = "deb"
[source]
type = "debian"
suite = "bookworm"
variant = "essential"
packages = ["cloud-init", "ifupdown", "iproute2", "isc-dhcp-client", "kmod", "procps", "systemd-sysv", "udev"]
[machine]
memory = "512M"
[seed]
user_data = "user-data"
[ready]
file = "/run/cloud-init/result.json"
timeout = "10m"
"#;
/// Commands that a writer of YAML without quotes would turn into something else.
const USER_DATA: &str = r##"#cloud-config
locale: C.UTF-8
resize_rootfs: false
write_files: [{ path: /etc/motd, content: "a: b # c\n" }]
runcmd: [[sh, -c, 'echo "x: y # z" > /root/said']]
"##;

#[test]
fn boot_debian_from_real_packages_with_its_cloud_init() {
    let context = context();
    context.write("kiln.toml", RECIPE);
    context.write("user-data", USER_DATA);
    let built = context.kiln(["build"]);
    let id = built.clone().ok().lines().last().unwrap().to_owned();
    let again = context.kiln(["build"]);
    assert!(again.stderr.contains("cache hit"), "{}", again.stderr);
    assert_eq!(again.ok().lines().last(), Some(id.as_str()));
    context.kiln(["run", "-d", "--name", "one", "--net", "user", "deb"]).ok();
    let output = context.kiln(["exec", "one", "--", "sh", "-c", "cat /etc/os-release; ps --version; exit 7"]);
    assert_eq!(output.code, 7, "{}", output.stderr);
    assert!(
        output.stdout.contains("VERSION_CODENAME=bookworm") && output.stdout.contains("procps"),
        "{}",
        output.stdout
    );
    let sh = |script: &str| context.kiln(["exec", "one", "--", "sh", "-c", script]).ok();
    assert_eq!(sh("cat /root/said /etc/motd"), "x: y # z\na: b # c\n");
    let result: serde_json::Value = serde_json::from_str(&sh("cat /run/cloud-init/result.json")).unwrap();
    assert_eq!(result["v1"]["errors"], serde_json::json!([]), "{result}");
    assert!(result["v1"]["datasource"].as_str().unwrap().contains("NoCloud"), "{result}");
    let machines = context.kiln(["ps", "--json"]).json();
    let machine = &machines[0];
    assert_eq!(
        sh("cat /var/lib/cloud/data/instance-id").trim(),
        machine["id"].as_str().unwrap(),
        "{machines}"
    );
    assert_eq!(sh("cat /etc/hostname"), "one\n");
    // By its hardware address, whatever it is called.
    let card = sh("ip -o link | grep -v ' lo:' | cut -d: -f2").trim().to_owned();
    assert!(sh("cat /etc/network/interfaces.d/*").contains(&format!("iface {card} inet dhcp")));
}

#[test]
fn bake_debian_in_two_stores_is_one_revision() {
    let context = context();
    let recipe =
        "name = \"deb\"\n[source]\ntype = \"debian\"\nsuite = \"bookworm\"\nvariant = \"essential\"\n";
    context.write("kiln.toml", recipe);
    // The archive may move on between the two.
    context.kiln(["lock"]).ok();
    let bake = |home: &str| {
        let built = context.kiln(["--home", home, "build", "--locked"]);
        assert!(built.stderr.contains("baked in"), "{}", built.stderr);
        built.ok().lines().last().unwrap().to_owned()
    };
    assert_eq!(bake("one"), bake("two"));
}

#[test]
fn an_unknown_package_is_named() {
    let context = context();
    let recipe = "name = \"deb\"\n[source]\ntype = \"debian\"\nsuite = \"bookworm\"\nvariant = \"essential\"\npackages = [\"no-such-package-at-all\"]\n";
    context.write("kiln.toml", recipe);
    let error = context.kiln(["build"]).fails(1);
    assert!(error.contains("no-such-package-at-all"), "{error}");
    assert_eq!(context.kiln(["ls", "-aq"]).ok(), "");
    assert_eq!(context.staged(), Vec::<String>::new());
}
