//! Images of the catalog: from a real server, signed by GnuPG.

use crate::context;
use kiln_core::catalog::Fingerprint;
use kiln_testing::{Gpg, Nginx, TestContext, fixtures};
use std::path::Path;
use std::process::Command;

/// A publisher: a server, a key, and a catalog that says so.
pub(crate) struct Site {
    pub(crate) nginx: Nginx,
    gpg: Gpg,
    key: Fingerprint,
}

impl Site {
    pub(crate) fn new() -> Self {
        let gpg = Gpg::new();
        let key = gpg.key("Demo Images <demo@example.org>", "ed25519", "sign", "never");
        Self { nginx: Nginx::start(false), gpg, key }
    }

    /// Publishes an image, and on a day signs its checksums.
    pub(crate) fn publish(&self, image: &[u8], day: u64) {
        self.nginx.put("1/demo.img", image);
        let sum = Command::new("sha256sum").arg(self.nginx.file("1/demo.img")).output().unwrap();
        let sum = String::from_utf8(sum.stdout).unwrap();
        self.sign(&format!("{} *demo.img\n", sum.split(' ').next().unwrap()), day);
    }

    fn sign(&self, sums: &str, day: u64) {
        self.nginx.put("1/SHA256SUMS", sums.as_bytes());
        let signature = self.gpg.run(day, &["--batch", "--output", "-", "--detach-sign"], sums.as_bytes());
        self.nginx.put("1/SHA256SUMS.gpg", &signature);
    }

    /// Adds a catalog with the distribution `demo` to a store.
    pub(crate) fn add_to(&self, context: &TestContext, format: &str) {
        context.kiln(["ls"]).ok();
        self.nginx.put("key.gpg", &self.gpg.export());
        let text = format!(
            "version = 1\n[[distribution]]\nname = \"demo\"\ntitle = \"Demo\"\naliases = [\"demonstration\"]\nuser = \"demo\"\n\
             arch = {{ x86_64 = \"amd64\", aarch64 = \"arm64\" }}\nformat = \"{format}\"\nurl = \"{}\"\n\
             disk = \"demo.img\"\nchecksums = \"SHA256SUMS\"\nsignature = \"SHA256SUMS.gpg\"\nsigners = [\"{}\"]\n\
             keys = [\"{}\"]\n[[distribution.release]]\nname = \"1\"\naliases = [\"first\"]\n\
             end_of_life = \"2025-12-31\"\n",
            self.nginx.url("/{release}"),
            self.key,
            self.nginx.url("/key.gpg"),
        );
        let dir = context.home().join("catalogs");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("demo.toml"), text).unwrap();
    }
}

/// Makes a small image: ext4 without a partition table, with a kernel and one file of its own.
pub(crate) fn image(context: &TestContext, word: &str) -> Vec<u8> {
    let root = context.work().join(format!("root-{word}"));
    for dir in ["boot", "etc", "sbin"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    std::fs::copy(fixtures().join("vmlinuz"), root.join("boot/vmlinuz")).unwrap();
    std::fs::write(root.join("etc/word"), word).unwrap();
    let disk = root.with_extension("img");
    let made = Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .args([&root, &disk])
        .arg("64M")
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::read(disk).unwrap()
}

fn facts(context: &TestContext, reference: &str) -> serde_json::Value {
    context.kiln(["show", reference, "--json"]).json()["build"]["facts"].clone()
}

/// Returns what is in the cache of images, downloads that broke off too.
fn cached(context: &TestContext) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(context.home().join("cache/v1/fetched/images")) else {
        return Vec::new();
    };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn boot_an_image_of_the_catalog_is_pulled_checked_and_run_by_its_name() {
    let (context, site) = (context(), Site::new());
    site.add_to(&context, "qcow2");
    site.publish(&std::fs::read(fixtures().join("alpine.qcow2")).unwrap(), 30);
    let told = context.kiln(["run", "--rm", "Demo", "--", "sh", "-c", ". /etc/os-release; echo $ID; exit 3"]);
    assert_eq!((told.code, told.stdout.as_str()), (3, "alpine\n"), "{}", told.stderr);
    let facts = facts(&context, "demo:1");
    assert_eq!(facts["image"], "demo:1");
    assert_eq!(facts["image_url"], site.nginx.url("/1/demo.img"));
    assert_eq!(facts["image_verified"], "signature");
    assert_eq!(facts["image_serial"], "20240131T000000Z");
    assert_eq!(facts["image_signer"], site.key.to_string());
    assert_eq!(facts["image_user"], "demo");
    assert!(facts["image_digest"].as_str().unwrap().starts_with("sha256:"), "{facts}");
    // What was published is not kept twice.
    assert_eq!(cached(&context), Vec::<String>::new());
}

#[test]
fn what_was_pulled_is_used_without_the_network_until_it_is_moved() {
    let (context, mut site) = (context(), Site::new());
    site.add_to(&context, "raw");
    site.publish(&image(&context, "one"), 30);
    let first = context.kiln(["catalog", "pull", "demo:first"]).ok();
    assert_eq!(context.kiln(["ls", "-q"]).ok(), "demo:1\n");
    let later = image(&context, "two");
    site.nginx.end();
    for name in ["demo", "DEMO:1", "demonstration:first"] {
        assert_eq!(context.kiln(["catalog", "pull", name]).ok(), first);
        assert_eq!(context.kiln(["catalog", "pull", "--offline", name]).ok(), first);
    }
    let told = context.kiln(["catalog", "outdated"]).fails(1);
    assert!(told.contains("cannot be fetched") && told.contains("1 of 1 failed"), "{told}");
    site.nginx.start_again();
    let current = context.kiln(["catalog", "outdated", "--json"]).json();
    assert_eq!(current[0]["outdated"], false);
    // A new image under the old name moves nobody who did not ask.
    site.publish(&later, 40);
    assert_eq!(context.kiln(["catalog", "pull", "demo"]).ok(), first);
    let outdated = context.kiln(["catalog", "outdated"]);
    assert_eq!(outdated.code, 1);
    assert!(
        outdated.stdout.contains("outdated   20240131T000000Z   20240210T000000Z"),
        "{}",
        outdated.stdout
    );
    let told = context.kiln(["catalog", "update"]);
    assert!(
        told.stderr.contains("demo:1 moved from 20240131T000000Z to 20240210T000000Z in"),
        "{}",
        told.stderr
    );
    let second = context.kiln(["catalog", "pull", "-q", "demo"]).ok();
    assert_ne!(first, second);
    // The first is an old one with holes that are known by now.
    site.publish(&std::fs::read(context.work().join("root-one.img")).unwrap(), 30);
    let told = context.kiln(["catalog", "update"]).fails(1);
    assert!(told.contains("older than that of 20240210T000000Z") && told.contains("--allow-older"), "{told}");
    assert_eq!(context.kiln(["catalog", "pull", "-q", "demo"]).ok(), second);
    let told = context.kiln(["catalog", "update", "--verify", "checksum"]).fails(1);
    assert!(told.contains("offered without a signature"), "{told}");
    context.kiln(["catalog", "update", "--allow-older"]).ok();
    assert_eq!(context.kiln(["catalog", "pull", "-q", "demo"]).ok(), first);
    assert_eq!(cached(&context), Vec::<String>::new());
}

#[test]
fn what_its_publisher_did_not_sign_is_refused_and_leaves_nothing() {
    let (context, site) = (context(), Site::new());
    site.add_to(&context, "raw");
    let good = image(&context, "good");
    site.publish(&good, 30);
    let nothing = |told: &str| {
        assert_eq!(context.kiln(["ls", "-q"]).ok(), "", "{told}");
        assert_eq!(cached(&context), Vec::<String>::new(), "{told}");
        assert_eq!(context.staged(), Vec::<String>::new(), "{told}");
    };
    let refused = |want: &str| {
        let told = context.kiln(["catalog", "pull", "demo"]).fails(1);
        assert!(told.contains("image `demo:1`") && told.contains(want), "{want}: {told}");
        nothing(&told);
    };
    // Other checksums, with the signature of those before.
    let sums = std::fs::read_to_string(site.nginx.file("1/SHA256SUMS")).unwrap();
    site.nginx.put("1/SHA256SUMS", format!("{} *demo.img\n", "a".repeat(64)).as_bytes());
    refused("is false: data or signature were changed");
    // Good checksums without their signature.
    site.nginx.put("1/SHA256SUMS", sums.as_bytes());
    std::fs::remove_file(site.nginx.file("1/SHA256SUMS.gpg")).unwrap();
    refused("/1/SHA256SUMS.gpg answered with status 404");
    // A stranger's signature.
    let stranger = Gpg::new();
    stranger.key("Demo Images <demo@example.org>", "ed25519", "sign", "never");
    let by_stranger = stranger.run(30, &["--batch", "--output", "-", "--detach-sign"], sums.as_bytes());
    site.nginx.put("1/SHA256SUMS.gpg", &by_stranger);
    refused("not signed by a pinned key");
    // The stranger's key in place of the publisher's.
    site.nginx.put("key.gpg", &stranger.export());
    refused("the keyring has no key that is pinned");
    site.nginx.put("key.gpg", &site.gpg.export());
    // Lines that are none, or contradict each other.
    for (sums, want) in [
        ("nonsense\n", "line 1 is no checksum"),
        (&format!("{sums}{sums}"), "demo.img"),
        (&sums.replace("demo", "other"), "are of other files"),
    ] {
        site.sign(sums, 31);
        refused(want);
    }
    // Signed checksums, and another image.
    site.sign(&sums, 31);
    site.nginx.put("1/demo.img", &image(&context, "evil"));
    refused("was expected");
    // Whoever says that the server's word is enough gets what it has.
    site.publish(&good, 30);
    std::fs::remove_file(site.nginx.file("1/SHA256SUMS.gpg")).unwrap();
    context.kiln(["catalog", "pull", "--verify", "checksum", "demo"]).ok();
    let found = facts(&context, "demo:1");
    assert_eq!(
        (&found["image_verified"], &found["image_signer"]),
        (&"checksum".into(), &serde_json::Value::Null)
    );
}

#[test]
fn nothing_is_checked_only_where_that_is_asked_for() {
    let (context, site) = (context(), Site::new());
    site.add_to(&context, "raw");
    site.nginx.put("1/demo.img", &image(&context, "any"));
    context.kiln(["catalog", "pull", "demo"]).fails(1);
    context.kiln(["catalog", "pull", "--verify", "none", "demo"]).ok();
    let found = facts(&context, "demo:1");
    assert_eq!(found["image_verified"], "nothing");
    assert!(found["image_digest"].as_str().unwrap().starts_with("sha256:"), "{found}");
}

#[test]
fn a_damaged_file_of_the_cache_is_fetched_again() {
    let (context, site) = (context(), Site::new());
    site.add_to(&context, "raw");
    site.publish(&image(&context, "one"), 30);
    context.kiln(["catalog", "pull", "--keep-original", "demo"]).ok();
    let kept = cached(&context);
    assert_eq!(kept.len(), 1, "{kept:?}");
    let path = context.home().join("cache/v1/fetched/images").join(&kept[0]);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"damaged").unwrap();
    let first = context.kiln(["show", "demo:1", "--json"]).json()["revision"].clone();
    context.kiln(["rm", "--force", "demo:1"]).ok();
    context.kiln(["gc", "--grace", "0s"]).ok();
    context.kiln(["catalog", "pull", "demo"]).ok();
    assert_eq!(context.kiln(["show", "demo:1", "--json"]).json()["revision"], first);
}

#[test]
fn a_recipe_names_an_image_and_its_lock_pins_it() {
    let (context, site) = (context(), Site::new());
    site.add_to(&context, "raw");
    site.publish(&image(&context, "one"), 30);
    context.write("web/kiln.toml", "name = \"web\"\n[source]\ntype = \"catalog\"\nimage = \"Demo\"\n");
    context.kiln(["lock", "web"]).ok();
    let lock = std::fs::read_to_string(context.work().join("web/kiln.lock")).unwrap();
    assert!(lock.contains("\"demo:1\" = \"sha256:") && lock.contains("serial=20240131T000000Z"), "{lock}");
    let first = context.kiln(["build", "-q", "web"]).ok();
    // The lock holds where the publisher goes on, as long as the image can be had: here it is in the cache.
    site.publish(&image(&context, "two"), 40);
    assert_eq!(context.kiln(["build", "-q", "--locked", "--offline", "web"]).ok(), first);
    context.kiln(["gc", "--cache"]).ok();
    let told = context.kiln(["build", "-q", "--force", "web"]).fails(1);
    assert!(told.contains("is pinned to sha256:") && told.contains("kiln update"), "{told}");
    let told = context.kiln(["update", "web"]).ok();
    assert!(told.contains("demo:1"), "{told}");
    assert_ne!(context.kiln(["build", "-q", "web"]).ok(), first);
    site.publish(&std::fs::read(context.work().join("root-one.img")).unwrap(), 30);
    let told = context.kiln(["update", "web"]).fails(1);
    assert!(told.contains("older than that of 20240210T000000Z"), "{told}");
}

#[test]
fn names_that_mean_nothing_say_what_there_is_and_write_nothing() {
    let context = context();
    context.kiln(["ls"]).ok();
    let before = tree(&context.home());
    for (args, want) in [
        (["catalog", "pull", "ubunto"], "did you mean `ubuntu`?"),
        (["catalog", "pull", "ubuntu:3"], "ubuntu has no release `3`; there are "),
        (["catalog", "show", "fedora:../x"], "is not an image"),
        (["catalog", "pull", "../ubuntu"], "is not an image"),
    ] {
        let told = context.kiln(args);
        assert!(told.code != 0 && told.stderr.contains(want), "{args:?}: {}", told.stderr);
    }
    let told = context.kiln(["run", "ubuntu:3"]).fails(1);
    assert!(told.contains("ubuntu has no release `3`") && told.contains("kiln catalog ls"), "{told}");
    let after = tree(&context.home());
    let new: Vec<&String> = after.iter().filter(|path| !before.contains(path)).collect();
    // Locks, and the empty directory that downloads would begin in.
    let work = |path: &&String| !path.ends_with(".lock") && !path.ends_with("cache/v1/fetched");
    assert_eq!(new.into_iter().filter(work).collect::<Vec<_>>(), Vec::<&String>::new());
    let told = context.kiln(["run", "--offline", "ubuntu:24.04"]).fails(1);
    assert!(told.contains("kiln is offline") && told.contains("kiln catalog pull ubuntu:24.04"), "{told}");
}

fn tree(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(tree(&path));
        }
        all.push(path.to_string_lossy().into_owned());
    }
    all
}

#[test]
fn a_name_of_ones_own_is_not_taken_for_an_image() {
    let (context, site) = (context(), Site::new());
    site.add_to(&context, "raw");
    site.publish(&image(&context, "one"), 30);
    let own = kiln_testing::recipe(&context, "web", "");
    context.kiln(["build".as_ref(), "-q".as_ref(), own.as_os_str()]).ok();
    context.kiln(["tag", "web", "demo:1"]).ok();
    let told = context.kiln(["catalog", "pull", "demo"]).fails(1);
    assert!(
        told.contains("which was not made of the catalog's image") && told.contains("kiln untag"),
        "{told}"
    );
    context.kiln(["untag", "demo:1"]).ok();
    context.kiln(["catalog", "pull", "demo"]).ok();
}

#[test]
fn the_catalog_is_listed_searched_and_shown() {
    let (context, site) = (context(), Site::new());
    site.add_to(&context, "raw");
    site.publish(&image(&context, "one"), 30);
    let all = context.kiln(["catalog", "ls", "--all", "-q"]).ok();
    for name in [
        "ubuntu:24.04",
        "debian:12",
        "fedora:",
        "rocky:",
        "almalinux:",
        "arch:",
        "alpine:",
        "opensuse:",
        "demo:1",
    ] {
        assert!(all.contains(name), "{name}: {all}");
    }
    // It is not looked after any more.
    assert!(!context.kiln(["catalog", "ls", "-q"]).ok().contains("demo:1"));
    context.kiln(["catalog", "pull", "demo"]).ok();
    let listed = context.kiln(["catalog", "ls", "--json"]).json();
    let demo = listed.as_array().unwrap().iter().find(|line| line["name"] == "demo:1").unwrap().clone();
    assert_eq!((&demo["over"], &demo["pulled"]["serial"]), (&true.into(), &"20240131T000000Z".into()));
    assert_eq!(context.kiln(["catalog", "search", "-q", "monstra"]).ok(), "demo:1\n");
    let shown = context.kiln(["catalog", "show", "demo"]).ok();
    assert!(shown.contains(&site.key.to_string()) && shown.contains("/1/demo.img"), "{shown}");
}

#[test]
fn two_that_pull_at_once_fetch_once() {
    let (context, site) = (context(), Site::new());
    site.add_to(&context, "raw");
    site.publish(&image(&context, "one"), 30);
    let both =
        [context.start(["catalog", "pull", "-q", "demo"]), context.start(["catalog", "pull", "-q", "demo"])];
    let [one, other] = both.map(|running| running.finish().ok());
    assert_eq!(one, other);
    let Site { nginx, .. } = site;
    // Checksums, signature, keys and the image, each once. The image comes by several connections, but for the first in
    // parts.
    let whole = nginx.answered().into_iter().filter(|line| line.starts_with("200 "));
    assert_eq!(whole.count(), 4);
}
