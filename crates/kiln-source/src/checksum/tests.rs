use super::*;
use proptest::prelude::*;

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn long(half: &str) -> String {
    format!("{half}{half}")
}

fn parse(text: &str) -> Result<Checksums, ChecksumError> {
    Checksums::parse(text.as_bytes())
}

fn hex(digest: &ContentDigest) -> &str {
    digest.hex()
}

#[test]
fn lists_of_coreutils_are_read() {
    let list =
        parse(&format!("{A}  one.img\n{B} *two.img\r\n\n \t\n# a word\n{}  ./three.img", A.to_uppercase()))
            .unwrap();
    assert_eq!(list.names().collect::<Vec<_>>(), ["one.img", "three.img", "two.img"]);
    assert_eq!(hex(list.digest("one.img").unwrap()), A);
    assert_eq!(hex(list.digest("two.img").unwrap()), B);
    assert_eq!(list.digest("three.img").unwrap(), list.digest("one.img").unwrap());
}

#[test]
fn one_mark_and_one_dot_are_taken_off_a_name() {
    let list = parse(&format!("{A} **x\n{A}  ././x\n{A} *./y\n{A}  .//z")).unwrap();
    assert_eq!(list.names().collect::<Vec<_>>(), ["*x", "./x", "/z", "y"]);
}

#[test]
fn tagged_lists_are_read_with_their_lengths() {
    let text = format!("# a (1).img: 12345 bytes\nSHA256 (a (1).img) = {A}\nSHA512 (./b) = {}\n", long(B));
    let list = parse(&text).unwrap();
    assert_eq!(hex(list.digest("a (1).img").unwrap()), A);
    assert_eq!(list.digest("b").unwrap().algorithm(), Algorithm::Sha512);
    assert_eq!(
        (list.size_bytes("a (1).img"), list.size_bytes("b"), list.size_bytes("c")),
        (Some(12345), None, None)
    );
    let twice = "# a: 1 bytes\n# a: 2 bytes\n";
    assert!(matches!(parse(twice), Err(ChecksumError::SizeTwice { first: 1, second: 2, .. })));
    assert!(
        parse(&format!("{A}  a\n# a: 1 bytes\n# a: 1 bytes\n# b: -1 bytes\n# c: 99999999999999999999 bytes"))
            .is_ok()
    );
}

#[test]
fn the_strongest_digest_wins_in_any_order() {
    for text in [format!("{A}  x\n{}  x\n", long(B)), format!("{}  x\nSHA256 (x) = {A}\n", long(B))] {
        assert_eq!(parse(&text).unwrap().digest("x").unwrap().algorithm(), Algorithm::Sha512);
    }
}

#[test]
fn a_file_about_one_other_may_hold_its_digest_alone() {
    for text in [
        A.to_owned(),
        format!("\n{A} \n"),
        format!("{A}  x\n"),
        format!("{A} *./x"),
        format!("SHA256 (x) = {A}"),
    ] {
        let one = Checksums::parse_of("x", text.as_bytes()).unwrap();
        assert_eq!(hex(one.digest("x").unwrap()), A, "{text}");
    }
    assert_eq!(parse(A), Err(ChecksumError::NoName { line: 1 }));
    let other = Checksums::parse_of("x", format!("{A}  y").as_bytes());
    assert!(matches!(other, Err(ChecksumError::OtherFile { line: 1, .. })), "{other:?}");
    let twice = Checksums::parse_of("x", format!("{A}\n{A}\n").as_bytes());
    assert!(matches!(twice, Err(ChecksumError::Twice { first: 1, second: 2, .. })), "{twice:?}");
}

#[test]
fn a_name_listed_twice_is_refused_even_when_the_digests_agree() {
    for text in [
        format!("{A}  x\n{A}  x\n"),
        format!("{A}  x\n{B} *x\n"),
        format!("{A}  x\n{A}  ./x\n"),
        format!("{A}  x\nSHA256 (x) = {B}\n"),
    ] {
        let error = parse(&text).unwrap_err();
        assert!(
            matches!(&error, ChecksumError::Twice { algorithm: "SHA256", first: 1, second: 2, .. }),
            "{error:?}"
        );
    }
}

#[test]
fn other_algorithms_are_passed_over_only_beside_a_good_one() {
    let (md5, sha1) = (&A[..32], &A[..40]);
    let list = parse(&format!("MD5 (x) = {md5}\n{sha1}  x\nBLAKE2b (x) = {}\n{A}  x\n", long(A))).unwrap();
    assert_eq!(hex(list.digest("x").unwrap()), A);
    let lone = parse(&format!("{A}  x\nMD5 (y) = {md5}\n{sha1}  z\n"));
    assert_eq!(lone, Err(ChecksumError::OnlyOther { line: 2, name: "y".to_owned(), algorithm: "MD5" }));
    let lone = parse(&format!("{sha1}  z\n"));
    assert_eq!(lone, Err(ChecksumError::OnlyOther { line: 1, name: "z".to_owned(), algorithm: "SHA1" }));
    let unknown = parse(&format!("{A}  x\nWHIRL (x) = {A}\n"));
    assert_eq!(unknown, Err(ChecksumError::UnknownAlgorithm { line: 2, algorithm: "WHIRL".to_owned() }));
    let twice = parse(&format!("{A}  x\nMD5 (x) = {md5}\nMD5 (x) = {md5}\n"));
    assert!(matches!(twice, Err(ChecksumError::Twice { algorithm: "MD5", first: 2, second: 3, .. })));
}

#[test]
fn lengths_that_no_algorithm_gives_are_told() {
    for (text, digits) in [
        (format!("{}  x", &A[..63]), 63),
        (format!("{A}a  x"), 65),
        (format!("SHA256 (x) = {}", &A[..40]), 40),
        (format!("SHA256 (x) = {}", long(A)), 128),
        (format!("SHA512 (x) = {A}"), 64),
        (format!("MD5 (x) = {A}"), 64),
    ] {
        assert_eq!(parse(&text), Err(ChecksumError::Length { line: 1, digits }), "{text}");
    }
}

#[test]
fn a_line_of_no_known_form_is_an_error_with_its_number() {
    for line in [
        format!("{A} x"),
        format!("{A}   x"),
        format!("{A}  x "),
        format!("{A}\tx"),
        format!("{A}  x\u{7}y"),
        format!("{A}  "),
        format!(" {A}  x"),
        format!("SHA256(x)= {A}"),
        format!("SHA256 (x) = {A} "),
        "SHA256 (x) = ".to_owned(),
        format!("SHA256 () = {A}"),
        format!("{A}  ./"),
        "-----BEGIN PGP SIGNED MESSAGE-----".to_owned(),
        "Hash: SHA512".to_owned(),
    ] {
        let error = parse(&format!("{B}  ok\n{line}\n{B}  more\n")).unwrap_err();
        let known =
            matches!(error, ChecksumError::Malformed { line: 2, .. } | ChecksumError::NoName { line: 2 });
        assert!(known, "{line:?}: {error:?}");
    }
    assert_eq!(Checksums::parse(b"\n\xff\n"), Err(ChecksumError::NotText { line: 2 }));
    assert_eq!(parse("\n# nothing\n"), Err(ChecksumError::Empty));
    assert_eq!(parse(""), Err(ChecksumError::Empty));
}

#[test]
fn escaped_names_are_refused_by_name() {
    let error = parse(&format!("\\{A}  a\\nb\n")).unwrap_err();
    assert_eq!(error, ChecksumError::Escaped { line: 1, name: "a\\nb".to_owned() });
}

#[test]
fn a_name_that_is_not_listed_tells_similar_ones() {
    let list =
        parse(&format!("{A}  debian-12-amd64.qcow2\n{A}  debian-12-arm64.qcow2\n{A}  README\n")).unwrap();
    let error = list.digest("debian-12-amd64.qcow").unwrap_err();
    assert_eq!(error.similar, ["debian-12-amd64.qcow2", "debian-12-arm64.qcow2"]);
    assert!(list.digest(&"x".repeat(10_000)).unwrap_err().similar.is_empty());
}

#[test]
fn a_manifest_has_a_largest_size_and_so_have_its_lines_and_names() {
    let line = format!("{A}  {}\n", "n".repeat(NAME_BYTES_MAX));
    assert!(parse(&line).is_ok());
    let over = format!("{A}  {}\n", "n".repeat(NAME_BYTES_MAX + 1));
    assert_eq!(parse(&over), Err(ChecksumError::NameTooLong { line: 1 }));
    let first = format!("{A}  x\n");
    let lines = |count: usize| format!("{first}{}", "\n".repeat(count - 2));
    assert!(parse(&lines(LINES_MAX)).is_ok());
    assert_eq!(parse(&lines(LINES_MAX + 1)), Err(ChecksumError::TooManyLines));
    let bytes = |count: usize| format!("{first}#{}", " ".repeat(count - first.len() - 1));
    assert!(parse(&bytes(MANIFEST_BYTES_MAX)).is_ok());
    assert_eq!(parse(&bytes(MANIFEST_BYTES_MAX + 1)), Err(ChecksumError::TooLong));
}

#[test]
fn a_digest_is_computed_as_it_is_listed() {
    use crate::hash::Hasher;
    let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let sha512 = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
    for hex in [sha256, sha512] {
        let expected = ContentDigest::from_hex(hex).unwrap();
        let mut hasher = Hasher::new(expected.algorithm());
        hasher.update(b"a");
        hasher.update(b"bc");
        assert_eq!(hasher.finish(), expected);
    }
    assert_eq!(ContentDigest::from_hex(&sha256.replace('b', "g")), None);
}

proptest! {
    #[test]
    fn any_bytes_are_a_list_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Checksums::parse(&bytes);
        let _ = Checksums::parse_of("x", &bytes);
    }

    #[test]
    fn what_is_listed_is_found_by_its_name(name in "[a-z][ -~]{0,40}[a-z]", digest in any::<[u8; 32]>(), tag in any::<bool>()) {
        let digest = ContentDigest::from_bytes(Algorithm::Sha256, &digest).unwrap();
        let hex = digest.hex();
        let text = if tag { format!("SHA256 ({name}) = {hex}\n") } else { format!("{hex}  {name}\n") };
        let list = parse(&text).unwrap();
        prop_assert_eq!(list.digest(&name).unwrap(), &digest);
    }
}
