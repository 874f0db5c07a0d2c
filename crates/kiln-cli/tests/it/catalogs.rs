//! Catalogs that are added, and mirrors.

mod bucket;
mod gpg;
mod mirror;

use crate::context;
use gpg::Gpg;
use kiln_testing::{FileServer, TestContext};
use std::path::PathBuf;

/// A catalog of one release that nobody signs, below its own directory.
fn catalog(release: &str) -> String {
    format!(
        r#"version = 1
[[distribution]]
name = "demo"
title = "Demo"
user = "demo"
arch = {{ x86_64 = "amd64", aarch64 = "arm64" }}
format = "raw"
url = "images/{{release}}"
disk = "demo-{{arch}}.img"
checksums = "SHA256SUMS"
[[distribution.release]]
name = "{release}"
"#
    )
}

fn added(context: &TestContext) -> Vec<String> {
    context.kiln(["catalog", "sources", "-q"]).ok().lines().skip(1).map(str::to_owned).collect()
}

/// What is there of catalogs, with its content.
fn files(context: &TestContext) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<(PathBuf, Vec<u8>)> = std::fs::read_dir(context.home().join("catalogs"))
        .map(|entries| entries.map(|entry| entry.unwrap().path()))
        .into_iter()
        .flatten()
        .filter(|path| !path.ends_with(".lock"))
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_catalog_of_a_file_is_copied_and_removed() {
    let context = context();
    let path = context.write("Site.toml", catalog("1"));
    let output = context.kiln(["catalog", "add", "Site.toml"]);
    assert!(output.stderr.contains("catalog site added: 1 image, copied from"), "{}", output.stderr);
    assert_eq!(output.ok(), "site\n");
    std::fs::remove_file(&path).unwrap();
    let shown = context.kiln(["catalog", "show", "demo", "--json"]).json();
    assert_eq!(shown["source"], "site");
    let below = format!("file://{}/images/1/demo-amd64.img", path.parent().unwrap().display());
    assert_eq!(shown["images"][0]["urls"][0], below, "the directory it was in counts");
    assert!(context.kiln(["catalog", "show", "ubuntu"]).ok().contains("built-in"));
    let sources = context.kiln(["catalog", "sources", "--json"]).json();
    assert_eq!(sources[0]["name"], "built-in");
    assert_eq!((&sources[1]["name"], &sources[1]["serial"]), (&"site".into(), &serde_json::Value::Null));
    assert!(context.kiln(["catalog", "update", "--catalogs"]).ok().is_empty(), "nowhere to look");

    let told = context.kiln(["catalog", "add", "--name", "site", "other.toml"]).fails(1);
    assert!(told.contains("other.toml"), "{told}");
    context.write("other.toml", catalog("2"));
    let told = context.kiln(["catalog", "add", "--name", "site", "other.toml"]).fails(1);
    assert!(told.contains("there is a catalog `site` already"), "{told}");
    assert_eq!(context.kiln(["catalog", "rm", "site"]).ok(), "site\n");
    assert_eq!(files(&context), []);
    context.kiln(["catalog", "show", "demo"]).fails(1);
    let told = context.kiln(["catalog", "rm", "site"]).fails(1);
    assert!(told.contains("no catalog `site` was added"), "{told}");
}

#[test]
fn names_that_mean_something_else_are_told() {
    let context = context();
    let text = catalog("24.04").replace("name = \"demo\"", "name = \"ubuntu\"");
    context.write("mine.toml", text);
    let added = context.kiln(["catalog", "add", "mine.toml", "--json"]).json();
    assert_eq!(added["overridden"]["ubuntu"], "ubuntu:24.04");
    assert_eq!(added["overridden"]["ubuntu:24.04"], "ubuntu:24.04");
    assert!(added["overridden"].get("ubuntu:22.04").is_none());
    let shown = context.kiln(["catalog", "show", "ubuntu", "--json"]).json();
    assert_eq!(shown["source"], "mine");
    // A catalog of a later name goes over it, and so one of an earlier name changes nothing.
    context.write("a.toml", catalog("24.04").replace("name = \"demo\"", "name = \"ubuntu\""));
    let added = context.kiln(["catalog", "add", "a.toml", "--json"]).json();
    assert_eq!(added["overridden"], serde_json::json!({}));
}

#[test]
fn what_is_no_catalog_or_sends_where_it_may_not_is_not_added() {
    let context = context();
    context.write("bad.toml", "version = 1\nfoo = 2\n");
    assert!(context.kiln(["catalog", "add", "bad.toml"]).fails(1).contains("is not a catalog"));
    context.write("v2.toml", "version = 2\n");
    assert!(context.kiln(["catalog", "add", "v2.toml"]).fails(1).contains("has version 2"));
    context.kiln(["catalog", "add", "--name", "built-in", "bad.toml"]).fails(2);
    context.kiln(["catalog", "add", "--key", "k", "bad.toml"]).fails(2);
    let local = catalog("1").replace("images/{release}", "file:///srv/images");
    context.write("web/local.toml", &local);
    let server = FileServer::start(&context.work().join("web"));
    let told = context.kiln(["catalog", "add", "--unsigned", &server.url("local.toml")]).fails(1);
    assert!(told.contains("only a catalog that was added from a local file sends to local files"), "{told}");
    context.write("web/up.toml", catalog("1").replace("images/{release}", "../images"));
    let told = context.kiln(["catalog", "add", "--unsigned", &server.url("up.toml")]).fails(1);
    assert!(told.contains("is not a file below `url`"), "{told}");
    assert_eq!(files(&context), []);
    context.kiln(["catalog", "add", "web/local.toml"]).ok();
    assert_eq!(added(&context), ["local"]);
    // Somebody put it there: nobody knows where a relative address would count from.
    std::fs::write(context.home().join("catalogs/hand.toml"), catalog("1")).unwrap();
    let told = context.kiln(["catalog", "ls"]).fails(1);
    assert!(told.contains("hand.toml is not a catalog"), "{told}");
}

/// A catalog on a server, and who signs it.
struct Site {
    context: TestContext,
    gpg: Gpg,
    server: FileServer,
}

impl Site {
    fn new() -> Self {
        let (context, gpg) = (context(), Gpg::new());
        context.write("web/site.toml.key", gpg.key());
        let server = FileServer::start(&context.work().join("web"));
        Self { context, gpg, server }
    }

    fn detached(&self, days: u64, text: &str) {
        self.context.write("web/site.toml", text);
        self.context.write("web/site.toml.asc", self.gpg.detached(days, text.as_bytes()));
    }

    fn add(&self, more: &[&str]) -> kiln_testing::Output {
        let url = self.server.url("site.toml");
        self.context.kiln([&["catalog", "add", &url, "--signer", &self.gpg.fingerprint], more].concat())
    }

    fn record(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.context.home().join("catalogs/site.json")).unwrap())
            .unwrap()
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.context.home().join("catalogs/site.toml")).unwrap()
    }
}

#[test]
fn a_signed_catalog_of_the_web_is_added_and_moves_forward_only() {
    let site = Site::new();
    site.detached(10, &catalog("1"));
    let told = site.add(&[]).stderr;
    assert!(told.contains(&format!("signed by {}", site.gpg.fingerprint)), "{told}");
    assert_eq!(site.text(), catalog("1"));
    let record = site.record();
    assert_eq!((&record["version"], &record["serial"]), (&1.into(), &"20240111T000000Z".into()));
    assert_eq!(record["signer"], site.gpg.fingerprint.as_str());
    let shown = site.context.kiln(["catalog", "show", "demo", "--json"]).json();
    assert_eq!(shown["images"][0]["urls"][0], site.server.url("images/1/demo-amd64.img"));

    // Clear-signed, and newer; the key is the one that was there when it was added.
    std::fs::remove_file(site.context.work().join("web/site.toml.key")).unwrap();
    site.context.write("web/site.toml", site.gpg.clear(20, catalog("2").as_bytes()));
    let told = site.context.kiln(["catalog", "update", "--catalogs"]);
    assert!(told.stderr.contains("catalog site of 20240121T000000Z is new"), "{}", told.stderr);
    assert_eq!(site.text().trim_end(), catalog("2").trim_end());
    site.context.kiln(["catalog", "show", "demo:2"]).ok();

    let before = files(&site.context);
    site.detached(15, &catalog("3"));
    let told = site.context.kiln(["catalog", "update"]).fails(1);
    assert!(told.contains("of 20240116T000000Z is offered, older than that of 20240121T000000Z"), "{told}");
    assert_eq!(files(&site.context), before);
}

#[test]
fn an_update_that_was_killed_is_finished_by_the_next() {
    let site = Site::new();
    site.detached(10, &catalog("1"));
    site.add(&[]).ok();
    let old = site.text();
    site.detached(20, &catalog("2"));
    site.context.kiln(["catalog", "update", "--catalogs"]).ok();
    // The record was written, its text was not.
    std::fs::write(site.context.home().join("catalogs/site.toml"), &old).unwrap();
    let sources = site.context.kiln(["catalog", "sources", "--json"]).json();
    assert_eq!(sources[1]["serial"], serde_json::Value::Null, "that is of another text");
    let url = site.server.url("images/1/demo-amd64.img");
    let shown = site.context.kiln(["catalog", "show", "demo", "--json"]).json();
    assert_eq!(shown["images"][0]["urls"][0], url, "and is whole");
    site.detached(15, &catalog("3"));
    site.context.kiln(["catalog", "update", "--catalogs"]).fails(1);
    site.detached(20, &catalog("2"));
    site.context.kiln(["catalog", "update", "--catalogs"]).ok();
    assert_eq!(site.text(), catalog("2"));
    let sources = site.context.kiln(["catalog", "sources", "--json"]).json();
    assert_eq!(sources[1]["serial"], "20240121T000000Z");
    // A removal that was killed leaves a record, which is nothing.
    std::fs::remove_file(site.context.home().join("catalogs/site.toml")).unwrap();
    assert_eq!(added(&site.context), Vec::<String>::new());
    site.add(&[]).ok();
}

#[test]
fn what_is_not_signed_as_it_has_to_be_leaves_nothing() {
    let site = Site::new();
    let url = site.server.url("site.toml");
    let add = |args: &[&str]| site.context.kiln([&["catalog", "add", &url], args].concat());
    site.detached(1, &catalog("1"));
    let told = add(&[]).fails(1);
    assert!(told.contains("nobody is named who signs it") && told.contains("--unsigned"), "{told}");
    let stranger = "0123456789ABCDEF0123456789ABCDEF01234567";
    let told = add(&["--signer", stranger]).fails(1);
    assert!(told.contains("the keyring has no key that is pinned"), "{told}");
    let other = Gpg::new();
    site.context.write("other.key", other.key());
    let told = add(&["--signer", &other.fingerprint, "--key", "other.key"]).fails(1);
    assert!(told.contains("not signed by a pinned key"), "{told}");
    site.context.write("web/site.toml", catalog("2"));
    assert!(site.add(&[]).fails(1).contains("data or signature were changed"));
    std::fs::remove_file(site.context.work().join("web/site.toml.asc")).unwrap();
    let told = site.add(&[]).fails(1);
    assert!(told.contains("site.toml is not signed"), "{told}");
    let clear = String::from_utf8(site.gpg.clear(1, catalog("1").as_bytes())).unwrap();
    site.context.write("web/site.toml", clear.replace("Demo", "Omed"));
    assert!(site.add(&[]).fails(1).contains("data or signature were changed"));
    assert_eq!(files(&site.context), []);
    // Whoever asks for no signature gets what was signed, and whoever asks for one by a file gets that.
    let told = add(&["--unsigned"]).stderr;
    assert!(told.contains("signed by nobody"), "{told}");
    assert!(!site.text().contains("PGP"));
}

#[test]
fn catalogs_that_are_added_are_limited() {
    let context = context();
    context.write("one.toml", catalog("1").replace("images/{release}", "https://e.example/x"));
    context.kiln(["catalog", "add", "one.toml"]).ok();
    let directory = context.home().join("catalogs");
    for number in 1..64 {
        std::fs::copy(directory.join("one.toml"), directory.join(format!("c{number}.toml"))).unwrap();
    }
    assert_eq!(added(&context).len(), 64);
    let add = ["catalog", "add", "one.toml", "--name", "more"];
    assert!(context.kiln(add).fails(1).contains("more than 64 catalogs"));
    std::fs::copy(directory.join("one.toml"), directory.join("more.toml")).unwrap();
    assert!(context.kiln(["catalog", "ls"]).fails(1).contains("more than 64 catalogs"));
    std::fs::remove_file(directory.join("more.toml")).unwrap();
    std::fs::remove_file(directory.join("c1.toml")).unwrap();

    let signers: Vec<String> = (0..17).map(|number| format!("--signer={number:040}")).collect();
    let signers: Vec<&str> = signers.iter().map(String::as_str).collect();
    let told = context.kiln([&add[..], &signers].concat()).fails(1);
    assert!(told.contains("more than 16 signers or keys"), "{told}");
    let record = directory.join("one.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let refused = |text: String| {
        std::fs::write(&record, text).unwrap();
        context.kiln(["catalog", "sources"]).fails(1)
    };
    assert!(refused(text.replace("\"version\": 1", "\"version\": 2")).contains("it has version 2"));
    let keys = format!("\"keys\": [{}]", vec!["\"k\""; 17].join(", "));
    assert!(refused(text.replace("\"keys\": []", &keys)).contains("more than 16 signers or keys"));
    let long = format!("\"more\": \"{}\", \"keys\"", "x".repeat(2 << 20));
    assert!(refused(text.replace("\"keys\"", &long)).contains("one.json"));
    assert!(refused("{}".to_owned()).contains("is not a record of a catalog"));
    std::fs::write(&record, text.replace("\"keys\"", "\"newer\": 1, \"keys\"")).unwrap();
    context.kiln(["catalog", "sources"]).ok();
}

#[test]
fn help_says_what_is_taken() {
    let context = context();
    let usage = |verb: &str| {
        let help = context.kiln(["catalog", verb, "--help"]).ok();
        let lines = help.lines().skip_while(|line| !line.starts_with("Usage"));
        let lines = lines.take_while(|line| !line.starts_with("Global")).map(str::trim);
        lines.filter(|line| line.starts_with('-') || line.starts_with("Usage")).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(usage("add"), @r"
    Usage: kiln catalog add [OPTIONS] <FILE|URL>
    --name <NAME>
    --signer <FINGERPRINT>
    --key <FILE|URL>
    --unsigned
    --json
    -q, --quiet
    -h, --help
    ");
    insta::assert_snapshot!(usage("mirror"), @r"
    Usage: kiln catalog mirror [OPTIONS] <DEST> [IMAGE]...
    --all
    --arch <ARCH>
    --sign <KEYID>
    --allow-older
    --endpoint-url <URL>
    --region <REGION>
    --limit-rate <SIZE>
    --json
    -q, --quiet
    -h, --help
    ");
    insta::assert_snapshot!(usage("sources"), @r"
    Usage: kiln catalog sources [OPTIONS]
    --json
    -q, --quiet
    -h, --help
    ");
}
