//! Mirrors in buckets.

use super::mirror::{Publisher, sum};
use crate::context;
use kiln_testing::{BucketServer, FileServer, Output, TestContext};

const DISK: &str = "images/demo/1/amd64/demo-amd64.img";

/// A server with a bucket `site` in a directory of a context.
fn buckets(context: &TestContext) -> BucketServer {
    BucketServer::start(&context.work().join("buckets"), &["site"])
}

/// Mirrors from a host to `s3://site/images`.
fn mirror(host: &TestContext, server: &BucketServer, more: &[&str]) -> Output {
    let endpoint = server.endpoint();
    let args = ["catalog", "mirror", "s3://site/images", "--arch", "x86_64", "--endpoint-url", &endpoint];
    let [id, secret] = server.key();
    let env = [("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)];
    host.kiln_env([&args, more].concat(), &env)
}

fn read(server: &BucketServer, key: &str) -> Option<Vec<u8>> {
    std::fs::read(server.object("site", key)).ok()
}

/// Returns what was written since this was last called, without what is before it.
fn written(server: &BucketServer) -> Vec<String> {
    let asked = server.asked().into_iter();
    asked.filter_map(|asked| Some(asked.strip_prefix("PUT /site/images/")?.to_owned())).collect()
}

#[test]
fn a_mirror_in_a_bucket_is_a_catalog_by_its_address() {
    let publisher = Publisher::new();
    let server = buckets(&publisher.context);
    let report = mirror(&publisher.context, &server, &["demo", "plain:7", "--json"]).json();
    assert_eq!(report["images"][0]["serial"], "20240111T000000Z");
    assert_eq!(report["catalog"], "s3://site/images/catalog.toml");
    // What others rely on comes last.
    let order = written(&server);
    let at = |name: &str| order.iter().position(|written| written == name);
    assert!(at("demo/1/amd64/demo-amd64.img") < at("demo/1/amd64/SHA256SUMS"), "{order:?}");
    assert_eq!(order.last().unwrap(), "catalog.toml");
    for file in ["SHA256SUMS", "SHA256SUMS.gpg", "demo-amd64.img"] {
        let published = std::fs::read(publisher.context.work().join("web/demo/1").join(file)).unwrap();
        assert_eq!(read(&server, &format!("images/demo/1/amd64/{file}")), Some(published), "{file}");
    }

    // All is there: nothing is fetched, and nothing is written.
    publisher.server.asked();
    let told = mirror(&publisher.context, &server, &["demo", "plain"]).stderr;
    assert!(told.contains("s3://site/images/catalog.toml is as it was, with 2 images"), "{told}");
    assert_eq!(written(&server), Vec::<String>::new());
    let asked = publisher.server.asked();
    assert!(!asked.iter().any(|path| path.ends_with(".img") || path.ends_with("vmlinuz")), "{asked:?}");

    // What is missing is fetched and written, and nothing stays on the host.
    std::fs::remove_file(server.object("site", DISK)).unwrap();
    mirror(&publisher.context, &server, &["demo"]).ok();
    assert_eq!(read(&server, DISK).unwrap(), b"first");
    assert_eq!(written(&server), ["demo/1/amd64/demo-amd64.img"]);
    let left = publisher.context.home().join("cache/v1/fetched/mirrors");
    assert_eq!(std::fs::read_dir(left).unwrap().count(), 0);

    // So is what is damaged, whatever its length.
    std::fs::write(server.object("site", "images/demo/1/amd64/SHA256SUMS.gpg"), vec![b'x'; 2 << 20]).unwrap();
    mirror(&publisher.context, &server, &["demo"]).ok();
    assert_eq!(written(&server), ["demo/1/amd64/SHA256SUMS.gpg"]);

    // Whoever reads the bucket over the web has the catalog and its images once the publisher is gone.
    let web = FileServer::start(&publisher.context.work().join("buckets/site"));
    let gpg = &publisher.gpg;
    let site = context();
    site.kiln(["catalog", "add", "--unsigned", "--name", "site", &web.url("images/catalog.toml")]).ok();
    drop(publisher.server);
    site.kiln(["catalog", "mirror", "copy", "--arch", "x86_64", "demo", "plain"]).ok();
    let copy = site.work().join("copy/demo/1/amd64/demo-amd64.img");
    assert_eq!(std::fs::read(copy).unwrap(), b"first");
    let shown = site.kiln(["catalog", "show", "demo"]).stdout;
    assert!(shown.contains(&gpg.fingerprint), "{shown}");
}

#[test]
fn a_mirror_in_a_bucket_moves_forward_only_and_keeps_what_others_put_there() {
    let publisher = Publisher::new();
    let server = buckets(&publisher.context);
    let other = context();
    other.kiln(["catalog", "add", publisher.context.work().join("publisher.toml").to_str().unwrap()]).ok();
    publisher.publish(20, b"second");
    mirror(&other, &server, &["demo"]).ok();
    // Another host, which has seen nothing of it.
    mirror(&publisher.context, &server, &["plain"]).ok();
    let text = String::from_utf8(read(&server, "images/catalog.toml").unwrap()).unwrap();
    assert!(text.contains("name = \"plain\"") && text.contains("name = \"demo\""), "{text}");
    publisher.publish(15, b"old");
    let told = mirror(&publisher.context, &server, &["demo"]).fails(1);
    assert!(told.contains("of 20240116T000000Z is offered, older than that of 20240121T000000Z"), "{told}");
    assert_eq!(read(&server, DISK).unwrap(), b"second");
    mirror(&publisher.context, &server, &["demo", "--allow-older"]).ok();
    assert_eq!(read(&server, DISK).unwrap(), b"old");

    // Somebody writes the catalog between a look at it and its writing.
    publisher.publish(30, b"third");
    std::fs::remove_file(server.object("site", "images/catalog.toml")).unwrap();
    server.refuse("PUT", "catalog.toml", 412);
    mirror(&publisher.context, &server, &["demo"]).ok();
    assert!(read(&server, "images/catalog.toml").is_some());
    std::fs::remove_file(server.object("site", "images/catalog.toml")).unwrap();
    for _ in 0..5 {
        server.refuse("PUT", "catalog.toml", 412);
    }
    let told = mirror(&publisher.context, &server, &["demo"]).fails(1);
    assert!(told.contains("s3://site/images/catalog.toml was changed by somebody else meanwhile"), "{told}");
    // Nor is anything written over a catalog that is none.
    std::fs::write(server.object("site", "images/catalog.toml"), "version = 9").unwrap();
    let told = mirror(&publisher.context, &server, &["demo"]).fails(1);
    assert!(told.contains("s3://site/images/catalog.toml"), "{told}");
    assert_eq!(read(&server, "images/catalog.toml").unwrap(), b"version = 9");
}

#[test]
fn a_signature_over_the_image_itself_is_checked_for_a_bucket_too() {
    let publisher = Publisher::new();
    let (context, gpg) = (&publisher.context, &publisher.gpg);
    let server = buckets(context);
    context.write("web/whole/whole.img", b"a whole disk");
    context.write("web/whole/SHA256SUMS", sum(b"a whole disk", "whole.img"));
    context.write("web/whole/whole.img.sig", gpg.detached(10, b"a whole disk"));
    let base = publisher.server.url("");
    let catalog = format!(
        "version = 1\n[[distribution]]\nname = \"whole\"\ntitle = \"Whole\"\nuser = \"me\"\nformat = \"raw\"\n\
         arch = {{ x86_64 = \"x86_64\" }}\nurl = \"{base}whole\"\ndisk = \"whole.img\"\nchecksums = \"SHA256SUMS\"\n\
         image_signature = \"whole.img.sig\"\nsigners = [\"{}\"]\nkeys = [\"{base}keys/demo.asc\"]\n\
         [[distribution.release]]\nname = \"1\"\n",
        gpg.fingerprint
    );
    context.write("whole.toml", catalog);
    context.kiln(["catalog", "add", "whole.toml"]).ok();
    let report = mirror(context, &server, &["whole", "--json"]).json();
    assert_eq!(report["images"][0]["signer"], gpg.fingerprint.as_str());
    // It is fetched and checked again, and not written again.
    written(&server);
    let report = mirror(context, &server, &["whole", "--json"]).json();
    assert_eq!(report["images"][0]["signer"], gpg.fingerprint.as_str());
    assert_eq!(written(&server), Vec::<String>::new());
    context.write("web/whole/whole.img.sig", gpg.detached(11, b"another disk"));
    mirror(context, &server, &["whole"]).fails(1);
    assert_eq!(written(&server), Vec::<String>::new());
}

#[test]
fn a_bucket_needs_a_key_and_an_address() {
    let publisher = Publisher::new();
    let server = buckets(&publisher.context);
    let context = &publisher.context;
    let args = ["catalog", "mirror", "s3://site/images", "demo"];
    let told =
        context.kiln_env(args, &[("AWS_ACCESS_KEY_ID", "AKID"), ("AWS_SECRET_ACCESS_KEY", "")]).fails(1);
    assert!(told.contains("no key to the bucket is set") && told.contains("AWS_SECRET_ACCESS_KEY"), "{told}");
    for (destination, wanted) in [
        ("s3://UPPER/x", "is no place in a bucket"),
        ("s3://site/../x", "is no place in a bucket"),
        ("gs://site/x", "a directory or in s3://BUCKET/PREFIX"),
    ] {
        let told = context.kiln(["catalog", "mirror", destination, "demo"]).fails(2);
        assert!(told.contains(wanted), "{told}");
    }
    let told = context.kiln(["catalog", "mirror", "directory", "demo", "--region", "x"]).fails(2);
    assert!(told.contains("are for s3://BUCKET/PREFIX"), "{told}");
    let told = mirror(context, &server, &["nothing"]).fails(1);
    assert!(told.contains("no distribution `nothing`"), "{told}");
    let endpoint = server.endpoint();
    let wrong =
        [("AWS_ACCESS_KEY_ID", "AKID"), ("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ENDPOINT_URL", &endpoint)];
    let told = context.kiln_env(args, &wrong).fails(1);
    assert!(
        told.contains("may not be used: SignatureDoesNotMatch") && told.contains("name the key, with"),
        "{told}"
    );
    assert!(!told.contains("wrong"), "{told}");
    assert_eq!(read(&server, "images/catalog.toml"), None);
}
