use super::*;

mod built_in;

const ONE: &str = r#"
version = 1
[[distribution]]
name = "demo"
title = "Demo"
aliases = ["d"]
user = "me"
arch = { x86_64 = "amd64", aarch64 = "arm64" }
format = "qcow2"
url = ["https://one.example/{codename}/", "http://two.example/x"]
disk = "demo-{release}-{arch}.img"
checksums = "SHA256SUMS"
signature = "SHA256SUMS.gpg"
signers = ["0123 4567 89ab cdef 0123  4567 89ab cdef 0123 4567"]
keys = ["https://keys.example/k?search={release}", "key.asc", """
-----BEGIN PGP PUBLIC KEY BLOCK-----

{not a word}
-----END PGP PUBLIC KEY BLOCK-----
"""]
[[distribution.release]]
name = "2"
aliases = ["new", "latest"]
codename = "second"
end_of_life = "2029-05-31"
[[distribution.release]]
name = "1"
codename = "first"
kernel = "vmlinuz-{arch}"
initrd = "boot/initrd-{release}"
boot = "direct"
seed = "none"
arch = { x86_64 = "x86" }
format = "raw"
signature = "inline"
"#;

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

#[test]
fn a_release_says_what_it_does_not_share() {
    let catalog = Catalog::parse(ONE).unwrap();
    let new = catalog.image(&name("demo"), Arch::Aarch64).unwrap();
    assert_eq!(
        new.urls,
        ["https://one.example/second/demo-2-arm64.img", "http://two.example/x/demo-2-arm64.img"]
    );
    assert_eq!(
        (new.format, new.checksums.as_str()),
        (DiskFormat::Qcow2, "https://one.example/second/SHA256SUMS")
    );
    let signature = new.signature.as_ref().unwrap();
    assert_eq!(signature.signers[0].to_string(), "0123456789ABCDEF0123456789ABCDEF01234567");
    let [KeySource::Address(first), KeySource::Address(second), KeySource::Armoured(armoured)] =
        &signature.keys[..]
    else {
        panic!("{:?}", signature.keys);
    };
    assert_eq!([first, second], ["https://keys.example/k?search=2", "https://one.example/second/key.asc"]);
    assert!(armoured.contains("{not a word}"), "nothing is filled in: {armoured}");
    assert_eq!((&new.kernel, &new.initrd), (&None, &None));
    assert_eq!((new.boot, new.seed), (ImageBoot::Auto, Some(SeedKind::NoCloud)));
    let old = catalog.image(&name("D:1"), Arch::X86_64).unwrap();
    assert_eq!(
        (old.urls[0].as_str(), old.format),
        ("https://one.example/first/demo-1-x86.img", DiskFormat::Raw)
    );
    assert_eq!(old.signature.as_ref().unwrap().place, SignaturePlace::Inline);
    let places = |name: &str| {
        Some(vec![format!("https://one.example/first/{name}"), format!("http://two.example/x/{name}")])
    };
    assert_eq!(old.kernel, places("vmlinuz-x86"));
    assert_eq!(old.initrd, places("boot/initrd-1"));
    assert_eq!((old.boot, old.seed), (ImageBoot::Direct, None));
    let (_, release) = catalog.find(&name("demo:NEW")).unwrap();
    assert!(
        !release.is_over("2029-05-31".parse().unwrap()) && release.is_over("2029-06-01".parse().unwrap())
    );
}

#[test]
fn what_is_not_listed_is_told_with_what_is() {
    let catalog = Catalog::parse(ONE).unwrap();
    let why = |text: &str, arch| catalog.image(&name(text), arch).unwrap_err().to_string();
    assert_eq!(why("demmo:2", Arch::X86_64), "no distribution `demmo`, did you mean `demo`?; there are demo");
    assert_eq!(why("demo:3", Arch::X86_64), "demo has no release `3`; there are 2, 1");
    assert_eq!(why("demo:1", Arch::Aarch64), "demo:1 has no image for aarch64; there are images for x86_64");
}

#[test]
fn names_of_images_are_plain_words_in_any_case() {
    assert_eq!(name("Ubuntu:24.04"), name("ubuntu:24.04"));
    assert_eq!(name("Ubuntu:24.04").to_string(), "ubuntu:24.04");
    let long = "a".repeat(WORD_BYTES_MAX + 1);
    for text in ["", ":1", "a:", "../x", "a:../x", "a/b", "a:b:c", "-a", ".", "a:..", "\u{fc}b", &long] {
        assert!(text.parse::<ImageName>().is_err(), "{text}");
    }
    name(&long[1..]);
}

#[test]
fn a_later_catalog_replaces_releases_by_name() {
    let more = ONE.replace("title = \"Demo\"", "title = \"Mine\"").replace("name = \"1\"", "name = \"3\"");
    let more = more.replace("one.example", "mirror.example");
    let catalog = Catalog::parse(ONE).unwrap().extended_by(Catalog::parse(&more).unwrap());
    let demo = catalog.distributions().next().unwrap();
    let names: Vec<&str> = demo.releases.iter().map(|release| release.name.as_str()).collect();
    assert_eq!((demo.title.as_str(), names), ("Mine", vec!["2", "3", "1"]));
    let urls = |text: &str| catalog.image(&name(text), Arch::X86_64).unwrap().urls[0].clone();
    assert!(urls("demo:2").starts_with("https://mirror.example"));
    assert!(urls("demo:1").starts_with("https://one.example"));
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    for (from, to, wanted) in [
        ("version = 1", "version = 2", "catalog has version 2, this kiln reads 1"),
        ("name = \"demo\"", "name = \"../x\"", "../x: `name`: `../x` is not 1 to 63"),
        ("\"latest\"]", "\"1\"]", "demo: `release`: `1` means two releases"),
        (
            "disk = \"demo-{release}",
            "disk = \"../{release}",
            "demo:2: `disk`: `../2-arm64.img` is not a file below `url`",
        ),
        ("{codename}/", "{nothing}/", "demo:2: `url`: {nothing} is none of {release}, {codename}, {arch}"),
        ("https://one", "file://one", "does not begin with https:// or http://"),
        ("2029-05-31", "2029-02-31", "demo:2: `end_of_life`: `2029-02-31` is not a day"),
        ("signers = [\"0123", "signers = [\"x", "is not the fingerprint of a key"),
        ("format = \"qcow2\"", "format = \"iso\"", "demo:2: `format`: raw, qcow2, vmdk or vhdx is wanted"),
        ("user = \"me\"", "", "demo:2: `user`: is wanted, here or in the distribution"),
        ("codename = \"second\"", "", "demo:2: `codename`: is wanted"),
        ("signature = \"SHA256SUMS.gpg\"", "", "`signers`: they sign nothing"),
        ("boot = \"direct\"", "boot = \"bios\"", "demo:1: `boot`: auto, direct or firmware is wanted"),
        ("boot = \"direct\"", "boot = \"firmware\"", "demo:1: `kernel`: firmware starts none from outside"),
        ("seed = \"none\"", "seed = \"yes\"", "demo:1: `seed`: nocloud or none is wanted"),
        ("kernel = \"vmlinuz-{arch}\"", "", "demo:1: `initrd`: it belongs to a kernel: `kernel` is wanted"),
        (
            "\"vmlinuz-{arch}\"",
            "\"https://x/k\"",
            "demo:1: `kernel`: `https://x/k` is not a file below `url`",
        ),
        ("boot/initrd", "../initrd", "demo:1: `initrd`: `../initrd-1` is not a file below `url`"),
        (
            "signature = \"SHA256SUMS.gpg\"",
            "kernel = \"k\"\nimage_signature = \"i\"",
            "demo:2: `kernel`: `image_signature` says nothing of it",
        ),
        ("-----END PGP", "-----TO PGP", "demo:2: `keys`: the armoured key is ASCII and ends with `-----END"),
        ("{not a word}", "\u{fc}", "demo:2: `keys`: the armoured key is ASCII"),
        ("aarch64 =", "sparc =", "unknown architecture `sparc`"),
        ("aarch64 =", "amd64 =", "demo:2: `arch`: x86_64 is given twice"),
        (
            "user = \"me\"",
            "user = \"me\"\nend_of_life = \"2029-05-31\"",
            "demo: `end_of_life`: each release has its own",
        ),
        (
            "codename = \"first\"",
            "codename = \"first\"\ntitle = \"x\"",
            "demo:1: `title`: is a distribution's to say",
        ),
    ] {
        assert!(ONE.contains(from), "{from}");
        let error = Catalog::parse(&ONE.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let unknown = Catalog::parse(&ONE.replacen("format =", "fromat =", 1)).unwrap_err();
    assert!(crate::text::chain(&unknown).contains("unknown field `fromat`"));
}

#[test]
fn catalogs_are_limited() {
    let long = format!("{ONE}{}", "#".repeat(CATALOG_BYTES_MAX));
    assert!(matches!(Catalog::parse(&long), Err(CatalogError::TooLarge(_))));
    let why = |text: &str| Catalog::parse(text).unwrap_err().to_string();
    let url = |count: usize| ONE.replacen("url = [", &format!("url = [{}", "\"http://a\",".repeat(count)), 1);
    Catalog::parse(&url(MIRRORS_MAX - 2)).unwrap();
    assert!(why(&url(MIRRORS_MAX - 1)).contains("`url`: 17, more than 16"));
    let releases = |count: usize| {
        let more: String = (0..count)
            .map(|n| format!("[[distribution.release]]\nname = \"r{n}\"\ncodename = \"c\"\n"))
            .collect();
        format!("{ONE}{more}")
    };
    Catalog::parse(&releases(RELEASES_MAX - 2)).unwrap();
    assert!(why(&releases(RELEASES_MAX - 1)).contains("257, more than 256"));
    let distribution = |n: usize| {
        let table = &ONE[ONE.find("[[distribution]]").unwrap()..];
        table.replacen("\"demo\"", &format!("\"demo{n}\""), 1)
    };
    let many = |count: usize| format!("version = 1\n{}", (0..count).map(distribution).collect::<String>());
    Catalog::parse(&many(DISTRIBUTIONS_MAX)).unwrap();
    assert!(why(&many(DISTRIBUTIONS_MAX + 1)).contains("257, more than 256"));
    let signers = |count: usize| {
        let list = format!("signers = [{}", "\"0123456789abcdef0123456789abcdef01234567\",".repeat(count));
        ONE.replacen("signers = [", &list, 1)
    };
    Catalog::parse(&signers(SIGNERS_MAX - 1)).unwrap();
    assert!(why(&signers(SIGNERS_MAX)).contains("`signers`: 17, more than 16"));
    let key = |len: usize| ONE.replacen("{not a word}", &"x".repeat(len), 1);
    let around = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n\n-----END PGP PUBLIC KEY BLOCK-----\n".len();
    Catalog::parse(&key(KEY_BYTES_MAX - around)).unwrap();
    assert!(
        why(&key(KEY_BYTES_MAX - around + 1))
            .contains("`keys`: the armoured key has 65537 bytes, more than 65536")
    );
    let disk = |len: usize| ONE.replacen("demo-{release}-{arch}.img", &"x".repeat(len), 1);
    Catalog::parse(&disk(1000)).unwrap();
    assert!(why(&disk(URL_BYTES_MAX + 1)).contains("1 to 2048 visible ASCII"));
}

fn place(text: &str) -> CatalogPlace {
    text.parse().unwrap()
}

#[test]
fn a_relative_address_counts_from_where_the_catalog_is() {
    let relative = ONE.replace("\"http://two.example/x\"", "\"images/{codename}\"");
    let second = |from: &str| {
        let catalog = Catalog::parse_from(&relative, &place(from)).unwrap();
        catalog.image(&name("demo:2"), Arch::X86_64).unwrap().urls[1].clone()
    };
    assert_eq!(second("https://e.example/k/c.toml"), "https://e.example/k/images/second/demo-2-amd64.img");
    assert_eq!(second("/srv/my k/c.toml"), "file:///srv/my%20k/images/second/demo-2-amd64.img");
    assert!(Catalog::parse(&relative).is_err(), "from nowhere");
    for wrong in ["../x", "/x", "a//b", "a/./b", "file:///srv", "ftp://e/x", "x?y"] {
        let text = ONE.replace("http://two.example/x", wrong);
        assert!(Catalog::parse_from(&text, &place("https://e.example/c.toml")).is_err(), "{wrong}");
    }
    let local = ONE.replace("http://two.example/x", "file:///srv/x");
    Catalog::parse_from(&local, &place("/srv/c.toml")).unwrap();
    assert!(Catalog::parse(&local).is_err());
}

#[test]
fn all_that_comes_with_kiln_can_be_mirrored_and_read_again() {
    let (catalog, place) = (Catalog::built_in(), place("/srv/mirror/catalog.toml"));
    let mut releases = Vec::new();
    for distribution in catalog.distributions() {
        for release in &distribution.releases {
            let arches: Vec<Arch> = release.images.keys().copied().collect();
            let mirrored = release.mirrored(distribution, &arches, &place).unwrap();
            for (arch, image) in &mirrored.images {
                let published = &release.images[arch];
                let below = format!("file:///srv/mirror/{}/{}/", distribution.name, release.name);
                assert_eq!(image.urls.len(), 1);
                let files = [&image.urls[0], &image.checksums];
                assert!(files.iter().all(|file| file.starts_with(&below)), "{files:?}");
                let file = |url: &str| url.rsplit('/').next().unwrap().to_owned();
                assert_eq!(file(&image.urls[0]), file(&published.urls[0]), "by its own name");
                assert_eq!(file(&image.checksums), file(&published.checksums));
                let signers = |image: &Image| image.signature.clone().map(|signature| signature.signers);
                assert_eq!(signers(image), signers(published));
            }
            releases.push((distribution, mirrored));
        }
    }
    let mirror = Catalog::of(releases);
    assert_eq!(Catalog::parse_from(&mirror.text(), &place).unwrap().text(), mirror.text());
    let again = Catalog::parse_from(&mirror.text(), &place).unwrap();
    for distribution in mirror.distributions() {
        let known = again.distributions().find(|known| known.name == distribution.name).unwrap();
        for (release, read) in distribution.releases.iter().zip(&known.releases) {
            assert_eq!((&read.name, &read.images), (&release.name, &release.images));
        }
    }
}

#[test]
fn a_mirror_has_the_architectures_of_earlier_runs() {
    let (catalog, place) = (Catalog::parse(ONE).unwrap(), place("/srv/catalog.toml"));
    let (demo, release) = catalog.find(&name("demo:2")).unwrap();
    let one = release.mirrored(demo, &[Arch::X86_64], &place).unwrap();
    let other = release.mirrored(demo, &[Arch::Aarch64], &place).unwrap();
    assert_eq!(one.images.len(), 1);
    let both = Catalog::of([(demo, one.with_arches_of(&other))]);
    let read = Catalog::parse_from(&both.text(), &place).unwrap();
    assert_eq!(read.find(&name("demo")).unwrap().1.images.len(), 2);
    let elsewhere = read.image(&name("demo"), Arch::Aarch64).unwrap();
    assert_eq!(elsewhere.urls, ["file:///srv/demo/2/arm64/demo-2-arm64.img"]);
    let keys = &elsewhere.signature.as_ref().unwrap().keys;
    assert!(matches!(&keys[2], KeySource::Armoured(_)));
    assert!(Catalog::parse_from(&both.text(), &place).is_ok(), "{}", both.text());
}

#[test]
fn names_that_a_later_catalog_gives_another_meaning_are_known() {
    let catalog = Catalog::parse(ONE).unwrap();
    let more = ONE.replace("aliases = [\"new\", \"latest\"]", "").replace("name = \"2\"", "name = \"3\"");
    let later = Catalog::parse(&more).unwrap().named(&"site".parse().unwrap());
    let changed = catalog.overridden_by(&later);
    let wanted = [("demo", "demo:3"), ("demo:1", "demo:1"), ("d", "demo:3"), ("d:1", "demo:1")];
    let wanted: Vec<(String, String)> =
        wanted.iter().map(|(name, now)| ((*name).to_owned(), (*now).to_owned())).collect();
    assert_eq!(changed, wanted, "`demo:2` and `demo:new` are what they were");
}
