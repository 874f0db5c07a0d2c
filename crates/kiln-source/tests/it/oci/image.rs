//! Which image, for which platform, and what it says.

use super::make::{Layout, Tar, amd64, digest, layout, listing, merged, scratch};
use kiln_source::oci::{ArchiveKind, Image, OciError};

fn with_platform(mut manifest: serde_json::Value, platform: &str) -> serde_json::Value {
    let parts: Vec<&str> = platform.split('/').collect();
    manifest["platform"] = serde_json::json!({"os": parts[0], "architecture": parts[1]});
    if let Some(variant) = parts.get(2) {
        manifest["platform"]["variant"] = (*variant).into();
    }
    manifest
}

#[test]
fn the_configuration_is_read() {
    let image = layout(&[Tar::new().file("a", "").end()]).open().unwrap();
    assert_eq!(image.config.command, ["/app", "--serve"]);
    assert_eq!(
        image.config.env.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
        ["A=1", "B=x=y"]
    );
    assert_eq!(
        (image.config.workdir.as_deref(), image.config.user.as_deref()),
        (Some("/srv"), Some("1000:7"))
    );
    assert_eq!(image.config.stop_signal.as_deref(), Some("SIGINT"));
}

#[test]
fn a_platform_is_chosen_and_a_missing_one_told_with_those_there_are() {
    let layout = Layout::new();
    let layer = Tar::new().file("a", "").end();
    let made = |arch: &str| layout.manifest(&[(layer.clone(), digest(&layer))], arch);
    let entries = [
        with_platform(made("arm64"), "linux/arm64/v8"),
        with_platform(made("amd64"), "linux/amd64"),
        with_platform(made("riscv64"), "linux/riscv64"),
        with_platform(made("amd64"), "unknown/unknown"),
    ];
    let nested = layout.json(&serde_json::json!({"manifests": entries}));
    layout.index(&[nested]);
    let open = |platform: &str| Image::layout(layout.path(), None, &platform.parse().unwrap());
    assert_eq!(open("linux/amd64").unwrap().id.to_string(), entries[1]["digest"]);
    assert_eq!(open("linux/arm64").unwrap().id.to_string(), entries[0]["digest"]);
    assert_eq!(open("linux/arm64/v8").unwrap().id.to_string(), entries[0]["digest"]);
    assert_eq!(open("linux/amd64/v1").unwrap().id.to_string(), entries[1]["digest"]);
    let error = open("linux/s390x").unwrap_err().to_string();
    assert_eq!(
        error,
        "the image is not for linux/s390x; it is for linux/amd64, linux/arm64/v8, linux/riscv64"
    );
    // A single image for another platform.
    layout.index(&[made("arm64")]);
    assert_eq!(
        open("linux/amd64").unwrap_err().to_string(),
        "the image is not for linux/amd64; it is for linux/arm64"
    );
}

#[test]
fn names_tell_images_of_a_layout_apart() {
    let layout = Layout::new();
    let named = |name: &str, file: &str| {
        let layer = Tar::new().file(file, "").end();
        let mut entry = layout.manifest(&[(layer.clone(), digest(&layer))], "amd64");
        entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
        entry
    };
    layout.index(&[named("one", "1"), named("two", "2")]);
    let open = |name| Image::layout(layout.path(), name, &amd64());
    assert_eq!(listing(&merged(&open(Some("two")).unwrap()).unwrap()), ["2: "]);
    assert!(open(None).unwrap_err().to_string().ends_with("holds one, two; one has to be named"));
    assert!(
        open(Some("three")).unwrap_err().to_string().ends_with("has no image `three`; it holds one, two")
    );
}

/// A tar file of files.
fn archive(files: &[(&str, &[u8])], links: &[(&str, &str)]) -> Vec<u8> {
    let tar = files.iter().fold(Tar::new(), |tar, (name, bytes)| match name.len() {
        ..=100 => tar.entry(name, b'0', "", 0o644, bytes),
        _ => tar.pax(&[("path", name.as_bytes())]).entry("long", b'0', "", 0o644, bytes),
    });
    links.iter().fold(tar, |tar, (name, to)| tar.link(name, to)).end()
}

#[test]
fn archives_of_docker_save_are_read_with_their_links_between_layers() {
    let (one, two) = (Tar::new().file("a", "1").end(), Tar::new().file("b", "2").end());
    let ids = [digest(&one), digest(&two), digest(&one)].map(|id| id.to_string());
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": ids}, "config": null});
    let config = serde_json::to_vec(&config).unwrap();
    let list = br#"[{"Config":"c.json","RepoTags":["app:latest"],"Layers":["1/layer.tar","2/layer.tar","3/layer.tar"]}]"#;
    let files: [(&str, &[u8]); 4] =
        [("c.json", &config), ("1/layer.tar", &one), ("2/layer.tar", &two), ("manifest.json", list)];
    let dir = scratch();
    let path = dir.path().join("app.tar");
    std::fs::write(&path, archive(&files, &[("3/layer.tar", "../1/layer.tar")])).unwrap();
    for name in [None, Some("app"), Some("app:latest")] {
        let image = Image::archive(&path, None, name, &amd64()).unwrap();
        assert_eq!(image.id, digest(&config));
        assert_eq!(listing(&merged(&image).unwrap()), ["a: 1", "b: 2"]);
    }
    let error = Image::archive(&path, None, Some("other"), &amd64()).unwrap_err().to_string();
    assert!(error.ends_with("has no image `other`; it holds app:latest"), "{error}");
    let error = Image::archive(&path, Some(ArchiveKind::Oci), None, &amd64()).unwrap_err().to_string();
    assert!(error.ends_with("it has no oci-layout and index.json"), "{error}");
    // A layer of the archive that is another than the configuration says.
    let swapped: [(&str, &[u8]); 4] = [files[0], ("1/layer.tar", &two), files[2], files[3]];
    std::fs::write(&path, archive(&swapped, &[("3/layer.tar", "../1/layer.tar")])).unwrap();
    let image = Image::archive(&path, None, None, &amd64()).unwrap();
    assert!(matches!(merged(&image), Err(OciError::Digest { .. })));
    // One that it lacks.
    std::fs::write(&path, archive(&files, &[("3/layer.tar", "../../../etc/passwd")])).unwrap();
    let error = Image::archive(&path, None, None, &amd64()).unwrap_err().to_string();
    assert!(error.contains("it has no `3/layer.tar`"), "{error}");
}

#[test]
fn what_is_no_image_is_told_so() {
    let dir = scratch();
    let path = dir.path().join("file");
    std::fs::write(&path, b"not a tar file").unwrap();
    assert!(matches!(Image::archive(&path, None, None, &amd64()), Err(OciError::NotAnImage { .. })));
    std::fs::write(&path, archive(&[("hello", b"x")], &[])).unwrap();
    let error = Image::archive(&path, None, None, &amd64()).unwrap_err().to_string();
    assert!(error.ends_with("it has neither manifest.json nor index.json"), "{error}");
    assert!(matches!(Image::layout(dir.path(), None, &amd64()), Err(OciError::NotAnImage { .. })));
    let old = Layout::new();
    old.index(&[old.json(&serde_json::json!({"schemaVersion": 1, "name": "x"}))]);
    assert!(old.open().unwrap_err().to_string().contains("schema 1"));
}
