//! The whole path once on real packages: bake, boot, run.

use crate::context;

#[test]
fn boot_debian_from_real_packages() {
    let context = context();
    let recipe = "name = \"deb\"\n[source]\ntype = \"debian\"\nsuite = \"bookworm\"\nvariant = \"essential\"\npackages = [\"procps\"]\n";
    context.write("kiln.toml", recipe);
    let built = context.kiln(["build"]);
    let id = built.clone().ok().lines().last().unwrap().to_owned();
    let again = context.kiln(["build"]);
    assert!(again.stderr.contains("cache hit"), "{}", again.stderr);
    assert_eq!(again.ok().lines().last(), Some(id.as_str()));
    let output =
        context.kiln(["run", "--rm", "deb", "--", "sh", "-c", "cat /etc/os-release; ps --version; exit 7"]);
    assert_eq!(output.code, 7, "{}", output.stderr);
    assert!(
        output.stdout.contains("VERSION_CODENAME=bookworm") && output.stdout.contains("procps"),
        "{}",
        output.stdout
    );
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
