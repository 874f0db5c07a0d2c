use super::*;
use crate::arch::Arch;
use proptest::prelude::*;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn registry(text: &str) -> String {
    text.parse::<RegistryReference>().map_or_else(|error| error.to_string(), |it| it.to_string())
}

#[test]
fn short_names_mean_what_docker_means() {
    for (given, meant) in [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("docker.io/library/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
        ("user/app", "docker.io/user/app:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("[::1]:5000/x/y:v1", "[::1]:5000/x/y:v1"),
        ("ghcr.io/a/b", "ghcr.io/a/b:latest"),
        ("quay.io/a/b__c-d.e:V_1", "quay.io/a/b__c-d.e:V_1"),
    ] {
        assert_eq!(registry(given), meant);
        assert_eq!(registry(meant), meant);
    }
}

#[test]
fn a_tag_beside_a_digest_stays_out_of_the_repository() {
    let reference: RegistryReference = format!("ghcr.io/a/b:v1@sha256:{HEX}").parse().unwrap();
    assert_eq!((reference.repository(), reference.tag()), ("a/b", Some("v1")));
    assert_eq!(reference.digest().unwrap().hex(), HEX);
    let bare: RegistryReference = format!("ghcr.io/a/b@sha256:{HEX}").parse().unwrap();
    assert_eq!(bare.tag(), None);
}

#[test]
fn what_is_no_reference_is_refused() {
    for text in [
        "",
        "/x",
        "a//b",
        "A/b/../c",
        "a/..",
        "UPPER",
        "a:b:c/d",
        "a@sha256:12",
        "a@md5:x",
        "-x/y.z",
        "a b",
        "x:",
        "a___b",
        "x.-y",
        "localhost:70000/x",
        "exa_mple.com/x",
        "https://ghcr.io/a",
        "--help",
    ] {
        assert!(text.parse::<RegistryReference>().is_err(), "{text}");
    }
}

#[test]
fn names_of_a_registry_are_limited() {
    let accepted = |text: String| text.parse::<RegistryReference>().is_ok();
    assert!(
        accepted(format!("ghcr.io/{}", "a".repeat(255))) && !accepted(format!("ghcr.io/{}", "a".repeat(256)))
    );
    assert!(accepted(format!("a:{}", "t".repeat(128))) && !accepted(format!("a:{}", "t".repeat(129))));
}

#[test]
fn loopback_is_told_from_other_hosts() {
    let loopback = |text: &str| text.parse::<RegistryReference>().unwrap().is_loopback();
    assert!(loopback("localhost:5000/x") && loopback("127.0.0.1:5000/x") && loopback("[::1]:5000/x"));
    assert!(!loopback("alpine") && !loopback("127.0.0.1.example.com/x") && !loopback("10.0.0.1:5000/x"));
}

#[test]
fn places_are_told_apart_by_their_prefix() {
    for text in
        ["-", "oci-layout:dir", "oci-layout:dir:v1", "oci-archive:/a/b.tar", "docker-archive:x.tar:alpine:3"]
    {
        assert_eq!(text.parse::<ImageName>().unwrap().to_string(), text);
    }
    for text in ["oci-layout:", "oci-layout:x:", "docker-archive::x"] {
        assert!(text.parse::<ImageName>().is_err(), "{text}");
    }
    assert!(matches!("x".repeat(5000).parse::<ImageName>(), Err(InvalidImageName::TooLong)));
}

#[test]
fn digests_hold_nothing_but_digits() {
    assert_eq!(
        format!("sha256:{HEX}").parse::<ContentDigest>().unwrap().to_string(),
        format!("sha256:{HEX}")
    );
    assert!(format!("sha512:{HEX}{HEX}").parse::<ContentDigest>().is_ok());
    for text in
        ["sha256:../../etc/passwd", "sha256:", "sha512:00", HEX, &format!("sha256:{}", HEX.to_uppercase())]
    {
        assert!(text.parse::<ContentDigest>().is_err(), "{text}");
    }
}

#[test]
fn platforms_are_parsed_and_fit_a_guest_or_not() {
    let platform = |text: &str| text.parse::<Platform>().unwrap();
    assert_eq!(platform("linux/arm/v7").to_string(), "linux/arm/v7");
    assert!(platform("linux/386").runs_on(Arch::X86_64) && !platform("linux/arm64").runs_on(Arch::X86_64));
    assert_eq!(Platform::of(Arch::X86_64), platform("linux/amd64"));
    for text in ["", "linux", "windows/amd64", "linux/", "linux/amd64/", "linux/a/b/c", "linux/AMD64"] {
        assert!(text.parse::<Platform>().is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn names_of_images_never_panic(text: String) {
        if let Ok(name) = text.parse::<ImageName>() {
            prop_assert_eq!(name.to_string().parse::<ImageName>().unwrap(), name);
        }
    }
}
