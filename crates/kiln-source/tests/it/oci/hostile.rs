//! Layers and layouts of somebody who means harm.

use super::make::{Layout, Tar, amd64, digest, layout, merged, scratch, union};
use kiln_source::oci::{BlobCache, Image, LayerError, OciError, UncompressOptions, limits, uncompress};
use kiln_sys::Cancel;
use std::io::{Read as _, Write as _};

fn refused(layers: &[Tar]) -> LayerError {
    let layers: Vec<Vec<u8>> = layers.iter().map(|layer| layer.clone().end()).collect();
    match union(&layers).unwrap_err() {
        OciError::Layer { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn whiteouts_that_escape_are_refused() {
    assert!(matches!(refused(&[Tar::new().file("../victim/.wh.keep", "")]), LayerError::Name { .. }));
    for name in [".wh...", "a/.wh...", ".wh..", ".wh."] {
        assert!(matches!(refused(&[Tar::new().file(name, "")]), LayerError::Whiteout { .. }), "{name}");
    }
    assert!(matches!(refused(&[Tar::new().dir("x").file("x/.wh.y/z", "")]), LayerError::Name { .. }));
}

#[test]
fn a_whiteout_through_a_link_stays_in_the_image() {
    let dir = scratch();
    let victim = dir.path().join("victim");
    std::fs::write(&victim, "kept").unwrap();
    let target = dir.path().display().to_string();
    let lower = Tar::new().link("link", "/").link("out", "../../../..").dir("etc").file("etc/x", "1");
    let upper = Tar::new().file("link/etc/.wh.x", "").file(&format!("out{target}/.wh.victim"), "");
    let merged = union(&[lower.end(), upper.end()]).unwrap();
    assert_eq!(super::make::listing(&merged), ["etc/", "link -> /", "out -> ../../../.."]);
    assert_eq!(std::fs::read_to_string(victim).unwrap(), "kept");
    // A link and a mark below it in one layer: the mark is of lower layers, which have no such link.
    let both = Tar::new().link("link", "/").file("link/etc/.wh.x", "");
    let merged = union(&[Tar::new().dir("etc").file("etc/x", "1").end(), both.end()]).unwrap();
    assert_eq!(super::make::listing(&merged), ["etc/", "etc/x: 1", "link -> /"]);
}

#[test]
fn names_that_lead_out_or_nowhere_are_refused() {
    for name in ["/../x", "../x", "a/../../x", "a/.."] {
        assert!(matches!(refused(&[Tar::new().file(name, "")]), LayerError::Name { .. }), "{name}");
    }
    let below = [Tar::new().file("f", ""), Tar::new().file("f/x", "")];
    assert!(matches!(refused(&below), LayerError::BelowNonDirectory { .. }));
    let circle = Tar::new().link("a", "b").link("b", "a").file("a/x", "");
    assert!(matches!(refused(&[circle]), LayerError::Links(_)));
    assert!(matches!(refused(&[Tar::new().file("./", "x").file("a", "")]), LayerError::Content { .. }));
    assert!(matches!(refused(&[Tar::new().link(".", "/etc")]), LayerError::Name { .. }));
    assert!(matches!(refused(&[Tar::new().entry("v", b'V', "", 0, b"")]), LayerError::Type { .. }));
    let deep = format!("{}x", "d/".repeat(600));
    let layer = Tar::new().pax(&[("path", deep.as_bytes())]).file("x", "");
    assert!(matches!(refused(&[layer]), LayerError::Name { .. }));
    let long = "n".repeat(256);
    assert!(matches!(
        refused(&[Tar::new().pax(&[("path", long.as_bytes())]).file("x", "")]),
        LayerError::Name { .. }
    ));
}

#[test]
fn links_do_not_make_paths_longer_than_they_may_be() {
    // Through two links of 2,200 bytes each, a short path becomes one that no system takes.
    let deep = |letter: &str| vec![letter.repeat(200); 11].join("/");
    let (a, b) = (deep("a"), deep("b"));
    let layer = Tar::new().pax(&[("linkpath", a.as_bytes())]).link("l", "");
    let layer = layer.file("l/x", "").pax(&[("linkpath", b.as_bytes())]).link("l/m", "").file("l/m/y", "");
    let error = union(&[layer.end()]).unwrap_err();
    assert_eq!(error.to_string(), "the image has more bytes in a path than 4095");
}

#[test]
fn hard_links_to_what_is_no_file_of_the_image_are_refused() {
    for target in ["etc/passwd", "../../etc/passwd", "d", "", "x"] {
        let error = refused(&[Tar::new().dir("d").hard("x", target)]);
        assert!(
            matches!(error, LayerError::HardLink { .. } | LayerError::Name { .. }),
            "{target}: {error:?}"
        );
    }
    // A link out of the image is followed within it.
    let through = Tar::new().link("l", "/etc").hard("x", "l/passwd");
    assert!(matches!(refused(&[through]), LayerError::HardLink { .. }));
}

#[test]
fn headers_that_readers_take_differently_are_refused() {
    let two = Tar::new().pax(&[("path", b"a")]).entry("././@LongLink", b'L', "", 0, b"b\0").file("c", "");
    assert!(matches!(refused(&[two]), LayerError::Header { .. }));
    let global = Tar::new().entry("g", b'g', "", 0, b"9 path=a\n").file("c", "");
    assert!(matches!(refused(&[global]), LayerError::Header { .. }));
    let mut damaged = Tar::new().file("c", "").end();
    damaged[0] = b'd';
    assert!(matches!(union(&[damaged]), Err(OciError::Layer { source: LayerError::Header { .. }, .. })));
    let mut cut = Tar::new().file("c", &"x".repeat(4000)).end();
    cut.truncate(1024);
    assert!(matches!(union(&[cut]), Err(OciError::Layer { source: LayerError::Truncated(_), .. })));
    let many = vec![b'x'; 2 << 20];
    let large = Tar::new().pax(&[("comment", &many)]).file("c", "");
    assert!(matches!(refused(&[large]), LayerError::Header { .. }));
    let owner = Tar::new().pax(&[("uid", b"4294967295")]).file("c", "");
    assert!(matches!(refused(&[owner]), LayerError::Header { .. }));
}

#[test]
fn a_layer_that_lies_about_digest_size_or_content_is_refused() {
    let plain = Tar::new().file("a", "a").end();
    let other = Tar::new().file("b", "b").end();
    let id = digest(&plain);
    // Its file has other bytes than its name says.
    let lying = layout(std::slice::from_ref(&plain));
    std::fs::write(lying.path().join("blobs/sha256").join(id.hex()), &other).unwrap();
    assert!(matches!(merged(&lying.open().unwrap()), Err(OciError::Digest { .. })));
    // Its size is another.
    std::fs::write(lying.path().join("blobs/sha256").join(id.hex()), &plain[..512]).unwrap();
    assert!(matches!(lying.open(), Err(OciError::Size { expected: 2048, actual: 512, .. })));
    // It is not there.
    std::fs::remove_file(lying.path().join("blobs/sha256").join(id.hex())).unwrap();
    assert!(matches!(lying.open(), Err(OciError::BlobMissing { digest, .. }) if digest == id));
    // It uncompresses to something else than the configuration says.
    let diff = Layout::new();
    diff.index(&[diff.manifest(&[(plain.clone(), digest(&other))], "amd64")]);
    let error = merged(&diff.open().unwrap()).unwrap_err();
    assert!(error.to_string().starts_with("layer 1 of the image, uncompressed, sha256:"), "{error}");
    // The manifest has other bytes than the index says, the configuration than the manifest.
    for what in ["manifest", "configuration"] {
        let lying = Layout::new();
        let manifest = lying.manifest(&[(plain.clone(), id.clone())], "amd64");
        lying.index(std::slice::from_ref(&manifest));
        let name = match what {
            "manifest" => manifest["digest"].as_str().unwrap()[7..].to_owned(),
            _ => lying.config(std::slice::from_ref(&id), "amd64")["digest"].as_str().unwrap()[7..].to_owned(),
        };
        let path = lying.path().join("blobs/sha256").join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] = b' ';
        std::fs::write(&path, bytes).unwrap();
        let error = lying.open().unwrap_err();
        assert!(error.to_string().starts_with(&format!("the {what} sha256:")), "{error}");
    }
    // A digest that is a path.
    let path = Layout::new();
    path.index(&[serde_json::json!({"digest": "sha256:../../etc/passwd", "size": 1})]);
    assert!(matches!(path.open(), Err(OciError::Json { .. })));
}

#[test]
fn a_bomb_is_refused_before_it_is_written() {
    // 600 MiB of zeros in about 600 KiB: more than 256 MiB and 256 times its size.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let zeros = vec![0; 1 << 20];
    (0..600).for_each(|_| gzip.write_all(&zeros).unwrap());
    let twice = zstd::encode_all(std::io::repeat(0).take(600 << 20), 1).unwrap();
    for bytes in [gzip.finish().unwrap(), twice] {
        let layout = Layout::new();
        layout.index(&[layout.manifest(&[(bytes, digest(b""))], "amd64")]);
        let error = merged(&layout.open().unwrap()).unwrap_err();
        assert!(matches!(error, OciError::Layer { source: LayerError::Bomb { .. }, .. }), "{error:?}");
    }
}

#[test]
fn all_layers_together_stay_within_the_room_there_is() {
    let plain = Tar::new().file("a", &"x".repeat(1 << 20)).end();
    let stored = zstd::encode_all(plain.as_slice(), 1).unwrap();
    let layout = Layout::new();
    layout.index(&[layout.manifest(&[(stored.clone(), digest(&plain)), (stored, digest(&plain))], "amd64")]);
    let (image, dir, cancel) = (layout.open().unwrap(), scratch(), Cancel::new().unwrap());
    let options = UncompressOptions { directory: dir.path(), bytes_max: 3 << 19, cancel: &cancel };
    let error = uncompress(&image.layers, &options).unwrap_err();
    assert_eq!(
        error.to_string(),
        "its layers, uncompressed, take up more than the 1.5 MiB there is room for"
    );
}

#[test]
fn a_stored_layer_has_a_largest_size() {
    let layout = Layout::new();
    let id = digest(b"");
    let layer = serde_json::json!({"digest": id.to_string(), "size": limits::LAYER_BYTES_MAX + 1});
    let config = layout.config(&[id], "amd64");
    layout.index(&[layout.json(&serde_json::json!({"config": config, "layers": [layer]}))]);
    assert_eq!(
        layout.open().unwrap_err().to_string(),
        "the image has more bytes in a layer than 274877906944"
    );
}

#[test]
fn an_archive_s_entries_are_limited() {
    let dir = scratch();
    let path = dir.path().join("many.tar");
    let one = Tar::new().file("a", "").end();
    let entries = usize::try_from(limits::ARCHIVE_ENTRIES_MAX).unwrap() + 1;
    std::fs::write(&path, one[..512].repeat(entries)).unwrap();
    let error = Image::archive(&path, None, None, &amd64()).unwrap_err();
    assert_eq!(error.to_string(), "the image has more entries in its archive than 65536");
}

#[test]
fn ten_thousand_layers_are_refused() {
    let empty = Vec::new();
    let layout = Layout::new();
    let layers: Vec<_> = (0..10_000).map(|_| (empty.clone(), digest(&empty))).collect();
    layout.index(&[layout.manifest(&layers, "amd64")]);
    assert_eq!(layout.open().unwrap_err().to_string(), "the image has more layers than 1024");
    let layout = Layout::new();
    layout.index(&[layout.manifest(&layers[..limits::LAYERS_MAX], "amd64")]);
    layout.open().unwrap();
}

#[test]
fn documents_indexes_and_their_depth_are_limited() {
    let layout = Layout::new();
    let big = layout.blob(&vec![b' '; 5 << 20]);
    layout.index(&[big]);
    assert_eq!(layout.open().unwrap_err().to_string(), "the image has more bytes of manifest than 4194304");
    let manifest = layout.manifest(&[], "amd64");
    let many = vec![manifest.clone(); limits::INDEX_ENTRIES_MAX + 1];
    layout.index(&many);
    assert!(layout.open().unwrap_err().to_string().contains("manifests in an index"));
    let nested = |depth| {
        (0..depth).fold(manifest.clone(), |inner, _| layout.json(&serde_json::json!({"manifests": [inner]})))
    };
    layout.index(&[nested(limits::INDEX_DEPTH_MAX)]);
    layout.open().unwrap();
    layout.index(&[nested(limits::INDEX_DEPTH_MAX + 1)]);
    assert!(layout.open().unwrap_err().to_string().contains("indexes within one another"));
    let config = layout.blob(&vec![b' '; 9 << 20]);
    layout.index(&[layout.json(&serde_json::json!({"config": config, "layers": []}))]);
    assert!(layout.open().unwrap_err().to_string().contains("bytes of configuration"));
}

#[test]
fn what_comes_on_standard_input_lies_under_its_digest() {
    let dir = scratch();
    let cache = BlobCache::open(dir.path()).unwrap();
    let taken = cache.take(&b"content"[..], &Cancel::new().unwrap()).unwrap();
    assert_eq!(taken, digest(b"content"));
    assert_eq!(std::fs::read(cache.path(&taken)).unwrap(), b"content");
    assert!(matches!(
        Image::archive(&cache.path(&taken), None, None, &amd64()),
        Err(OciError::NotAnImage { .. })
    ));
}
