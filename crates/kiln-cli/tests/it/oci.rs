//! Templates of OCI images, made by umoci and moved by skopeo.

use crate::build::in_namespace;
use crate::context;
use kiln_core::Digest;
use kiln_testing::{Registry, TestContext, busybox_rootfs, fixtures};
use serde_json::{Value, json};
use std::io::Read as _;
use std::path::PathBuf;
use std::process::Command;

fn run(program: &str, args: &[&str], directory: &std::path::Path) {
    let output = Command::new(program).args(args).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes an image of a static busybox, `img:v1` in OCI layout in the working directory.
fn image(context: &TestContext) {
    let root = busybox_rootfs(context, "root");
    std::fs::create_dir(root.join("srv")).unwrap();
    let work = context.work();
    let umoci = |args: &[&str]| run("umoci", args, &work);
    umoci(&["init", "--layout", "img"]);
    umoci(&["new", "--image", "img:v1"]);
    umoci(&["insert", "--image", "img:v1", "root", "/"]);
    let script = "echo greeting $GREETING; echo in $(pwd); echo as $(id -u); echo recipe $OWN";
    umoci(&[
        "config",
        "--image",
        "img:v1",
        "--config.entrypoint",
        "/bin/sh",
        "--config.entrypoint",
        "-c",
        "--config.cmd",
        script,
        "--config.env",
        "GREETING=hello",
        "--config.env",
        "OWN=image",
        "--config.user",
        "65534",
        "--config.workingdir",
        "/srv",
        "--config.stopsignal",
        "SIGINT",
    ]);
}

fn recipe(context: &TestContext, image: &str, extra: &str) -> PathBuf {
    let fixtures = fixtures();
    let (kernel, modules) = (fixtures.join("vmlinuz"), fixtures.join("modules"));
    let text = format!(
        "name = \"box\"\n[source]\ntype = \"oci\"\nimage = \"{image}\"\nkernel = \"{}\"\nmodules = \"{}\"\n{extra}",
        kernel.display(),
        modules.display()
    );
    context.write("kiln.toml", text)
}

fn built(context: &TestContext, image: &str, extra: &str) -> String {
    let recipe = recipe(context, image, extra);
    let said = context.kiln(["build".as_ref(), recipe.as_os_str()]).ok();
    said.lines().last().unwrap().to_owned()
}

#[test]
fn boot_an_image_runs_its_entry_point_as_it_says_and_the_recipe_wins() {
    let context = context();
    image(&context);
    built(&context, "oci-layout:img:v1", "[entrypoint]\nenv = { OWN = \"wins\" }\n");
    let output = context.kiln(["run", "--rm", "box"]);
    for line in ["greeting hello", "in /srv", "as 65534", "recipe wins"] {
        assert!(output.stdout.lines().any(|said| said.trim() == line), "{line}: {}", output.stdout);
    }
    let shown = context.kiln(["show", "box"]).ok();
    assert!(shown.contains("image_stop_signal") && shown.contains("SIGINT"), "{shown}");
}

#[test]
fn one_image_is_one_revision_in_every_store_and_from_every_place() {
    let (one, two) = (context(), context());
    image(&one);
    let first = built(&one, "oci-layout:img:v1", "");
    let from = format!("oci:{}:v1", one.work().join("img").display());
    for to in ["oci-archive:img.tar:v1", "docker-archive:saved.tar:box:v1"] {
        run("skopeo", &["--insecure-policy", "copy", &from, to], &two.work());
    }
    assert_eq!(built(&two, "oci-archive:img.tar", ""), first);
    assert_eq!(built(&two, "docker-archive:saved.tar:box:v1", ""), first);
    // Moved elsewhere, it is the same image, and nothing is to be done.
    std::fs::rename(two.work().join("saved.tar"), two.work().join("moved.tar")).unwrap();
    let recipe = recipe(&two, "docker-archive:moved.tar", "");
    let again = two.kiln(["build".as_ref(), recipe.as_os_str()]);
    assert!(again.stderr.contains("cache hit"), "{}", again.stderr);
}

#[test]
fn an_image_comes_on_standard_input() {
    let context = context();
    image(&context);
    let layout = built(&context, "oci-layout:img:v1", "");
    run(
        "skopeo",
        &["--insecure-policy", "copy", "oci:img:v1", "docker-archive:saved.tar:box:v1"],
        &context.work(),
    );
    let saved = std::fs::read(context.work().join("saved.tar")).unwrap();
    let recipe = recipe(&context, "-", "");
    let output = context.kiln_with_input(["build".as_ref(), recipe.as_os_str()], saved);
    assert_eq!(output.ok().lines().last(), Some(layout.as_str()));
    let nothing =
        context.kiln_with_input(["build".as_ref(), recipe.as_os_str(), "--force".as_ref()], Vec::new());
    let said = nothing.fails(1);
    assert!(said.contains("it has neither manifest.json nor index.json"), "{said}");
}

#[test]
fn what_is_wrong_with_an_image_is_told_and_the_tag_stays() {
    let context = context();
    image(&context);
    let good = built(&context, "oci-layout:img:v1", "");
    let fails = |image: &str, extra: &str| {
        let recipe = recipe(&context, image, extra);
        context.kiln(["build".as_ref(), recipe.as_os_str()]).fails(1)
    };
    let missing = fails("oci-layout:img:v2", "");
    assert!(missing.contains("has no image `v2`; it holds v1") && missing.contains("try:"), "{missing}");
    let other = fails("oci-layout:img:v1", "platform = \"linux/386\"\n");
    assert!(other.contains("the image is not for linux/386; it is for linux/amd64"), "{other}");
    let arm = fails("oci-layout:img:v1", "platform = \"linux/arm64\"\n");
    assert!(arm.contains("programs for linux/arm64 do not run in a guest of x86_64"), "{arm}");
    let nowhere = fails("oci-archive:none.tar", "");
    assert!(nowhere.contains("none.tar"), "{nowhere}");
    let name = recipe(&context, "Not a name", "");
    let said = context.kiln(["build".as_ref(), name.as_os_str()]).fails(2);
    assert!(said.contains("`source.image`") || said.contains("source.image"), "{said}");
    // A layer that is not what it is named by: nothing is left, and the tag stays.
    let blobs = std::fs::read_dir(context.work().join("img/blobs/sha256")).unwrap();
    let layer =
        blobs.map(|entry| entry.unwrap().path()).max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&layer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&layer, bytes).unwrap();
    let recipe = recipe(&context, "oci-layout:img:v1", "");
    let said = context.kiln(["build".as_ref(), recipe.as_os_str(), "--force".as_ref()]).fails(1);
    assert!(said.contains("layer 1 of the image"), "{said}");
    assert_eq!(context.staged(), Vec::<String>::new());
    assert_eq!(context.kiln(["show", "box", "--json"]).json()["revision"], good.as_str());
}

/// A layout made by hand, of one image.
struct Layout(PathBuf);

impl Layout {
    fn new(context: &TestContext) -> Self {
        let dir = context.work().join("bad");
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self(dir)
    }

    fn blob(&self, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        std::fs::write(self.path(&digest), bytes).unwrap();
        json!({"mediaType": "application/x", "digest": digest.to_string(), "size": bytes.len()})
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.0.join("blobs/sha256").join(digest.hex())
    }

    /// Adds the image of these layers, for a platform.
    fn image(&self, layers: &[Value], ids: &[Digest], arch: &str) {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let config = json!({"architecture": arch, "os": "linux", "rootfs": {"diff_ids": ids}, "config": {}});
        let config = self.blob(&serde_json::to_vec(&config).unwrap());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        let mut manifest = self.blob(&serde_json::to_vec(&manifest).unwrap());
        manifest["mediaType"] = "application/vnd.oci.image.manifest.v1+json".into();
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        std::fs::write(self.0.join("index.json"), index.to_string()).unwrap();
    }
}

/// A tar file of an empty file of this name.
fn tar(name: &str) -> Vec<u8> {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    for (at, number) in
        [(100, "0000644"), (108, "0000000"), (116, "0000000"), (124, "00000000000"), (136, "00000000000")]
    {
        header[at..at + number.len()].copy_from_slice(number.as_bytes());
    }
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    [&header[..], &[0; 1024]].concat()
}

#[test]
fn images_of_who_means_harm_are_refused_by_name_and_leave_nothing() {
    let context = context();
    image(&context);
    let good = built(&context, "oci-layout:img:v1", "");
    let good_recipe = std::fs::read_to_string(context.work().join("kiln.toml")).unwrap();
    context.write("kiln.toml", good_recipe.replace("oci-layout:img:v1", "oci-layout:bad"));
    let victim = context.write("victim", "kept");
    let refused = |want: &str| {
        let told = context.kiln(["build"]).fails(1);
        let told: Vec<&str> = told.lines().collect();
        assert!(told.iter().any(|line| line.contains("image `oci-layout:bad` cannot be used")), "{told:?}");
        assert!(told.iter().any(|line| line.contains(want)), "{want}: {told:?}");
        assert_eq!(context.staged(), Vec::<String>::new());
        assert_eq!(context.kiln(["show", "box", "--json"]).json()["revision"], good.as_str());
    };
    let plain = tar("a");
    let id = Digest::of(&plain);

    let layout = Layout::new(&context);
    layout.image(&[layout.blob(&plain)], &[id], "s390x");
    refused("the image is not for linux/amd64; it is for linux/s390x");

    let layout = Layout::new(&context);
    layout.image(&[layout.blob(&plain)], &[id], "amd64");
    std::fs::write(layout.path(&id), tar("b")).unwrap();
    refused(&format!("{id} has the digest {}", Digest::of(&tar("b"))));
    std::fs::write(layout.path(&id), &plain[..512]).unwrap();
    refused("has 512 bytes and not the 1536 it is said to have");

    let layout = Layout::new(&context);
    let bomb = zstd::encode_all(std::io::repeat(0).take(400 << 20), 1).unwrap();
    layout.image(&[layout.blob(&bomb)], &[id], "amd64");
    refused("bytes and becomes more than");

    for name in ["../victim/.wh.keep", "../../.wh.victim", ".wh..."] {
        let layout = Layout::new(&context);
        let plain = tar(name);
        layout.image(&[layout.blob(&plain)], &[Digest::of(&plain)], "amd64");
        refused("layer 1 of the image cannot be used");
    }
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "kept");

    let layout = Layout::new(&context);
    layout.image(&vec![layout.blob(&plain); 10_000], &vec![id; 10_000], "amd64");
    refused("the image has more layers than 1024");
}

#[test]
fn layers_larger_than_the_free_space_are_told_as_that_and_leave_nothing() {
    let context = context();
    let layout = Layout::new(&context);
    let layer = zstd::encode_all(std::io::repeat(0).take(100 << 20), 1).unwrap();
    layout.image(&[layout.blob(&layer)], &[Digest::of(b"")], "amd64");
    recipe(&context, "oci-layout:bad", "");
    let script = "mkdir small && mount -t tmpfs -o size=100m tmpfs small && KILN_HOME=$PWD/small/home $KILN build; \
                  code=$?; ls -A small/home/staging small/home/artifacts small/home/revisions; exit $code";
    let (code, said) = in_namespace(&context, script);
    assert_eq!(code, 1, "{said}");
    for want in [
        "small/home/staging",
        "became full",
        "image `oci-layout:bad` cannot be used",
        "take up more than the",
        "try: kiln rm",
    ] {
        assert!(said.contains(want), "{want}: {said}");
    }
    let left: Vec<&str> =
        said.lines().filter(|line| line.len() >= 16 && !line.contains([' ', '/'])).collect();
    assert!(left.is_empty(), "nothing is staged or published: {said}");
}

#[test]
fn an_image_of_a_registry_is_pinned_moved_and_built_without_the_network() {
    let context = context();
    image(&context);
    let registry = Registry::start();
    let layout = context.work().join("img");
    registry.push(&layout, Some("v1"), "team/box:stable");
    let name = format!("{}/team/box:stable", registry.host());
    recipe(&context, &name, "");
    let of = |args: &[&str]| context.kiln(args);
    let locked = of(&["lock", "--json"]).json();
    assert_eq!(
        (&locked["moved"][0]["kind"], &locked["moved"][0]["name"]),
        (&"oci".into(), &name.as_str().into())
    );
    let first = of(&["build", "--locked", "-q"]).ok();
    assert_eq!(first.trim(), built(&context_of(&context), "oci-layout:img:v1", ""));

    // The tag moves: builds keep to what was locked until it is updated.
    let umoci = |args: &[&str]| run("umoci", args, &context.work());
    umoci(&["config", "--image", "img:v1", "--tag", "v2", "--config.env", "GREETING=again"]);
    registry.push(&layout, Some("v2"), "team/box:stable");
    assert_eq!(of(&["build", "--force", "-q"]).ok(), first);
    let moved = of(&["update", "--dry-run", "--json"]).json();
    assert_eq!((&moved["changed"], moved["moved"].as_array().unwrap().len()), (&true.into(), 1), "{moved}");
    assert_eq!(moved["moved"][0]["before"], locked["moved"][0]["after"]);
    assert!(of(&["build"]).stderr.contains("cache hit"));
    of(&["update", "-q"]).ok();
    let second = of(&["build", "-q"]).ok();
    assert_ne!(second, first);

    // A layer that is damaged in the cache is fetched anew.
    let blobs = std::fs::read_dir(context.home().join("cache/v1/fetched/oci/v1/blobs/sha256")).unwrap();
    let layer =
        blobs.map(|entry| entry.unwrap().path()).max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let whole = std::fs::read(&layer).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::remove_file(&layer).unwrap();
    std::fs::write(&layer, damaged).unwrap();
    assert_eq!(of(&["build", "--force", "-q"]).ok(), second);
    assert_eq!(std::fs::read(&layer).unwrap(), whole);

    // What is pinned and was fetched needs nobody.
    drop(registry);
    assert_eq!(of(&["build", "--force", "--offline", "-q"]).ok(), second);
    let gone = of(&["gc", "--cache", "--dry-run", "--json"]).json();
    assert!(gone["fetched_bytes"].as_u64().unwrap() > 1 << 20, "{gone}");
    assert_eq!(of(&["build", "--force", "--offline", "-q"]).ok(), second, "nothing went");
    of(&["gc", "--cache"]).ok();
    let error = of(&["build", "--force", "--offline"]).fails(1);
    assert!(error.contains(&name), "{error}");
    std::fs::remove_file(context.work().join("kiln.lock")).unwrap();
    let error = of(&["build", "--offline"]).fails(1);
    assert!(error.contains(&name) && error.contains("try:"), "{error}");
}

/// Returns a context whose working directory has the same image.
fn context_of(other: &TestContext) -> TestContext {
    let context = context();
    run("cp", &["-a", "img", context.work().to_str().unwrap()], &other.work());
    context
}
