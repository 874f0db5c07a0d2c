//! Clear-signed texts.

use super::gpg::{Gpg, day};
use kiln_core::catalog::Fingerprint;
use kiln_source::openpgp::{
    CLEAR_SIGNED_BYTES_MAX, SignatureError, Verified, VerifyOptions, verify_clear_signed,
};

const TEXT: &[u8] = b"one \n-two\n- three\n\t\nFrom four\r\n\n";
const BODY: &[u8] = b"one\n-two\n- three\n\nFrom four\n";

fn verify(gpg: &Gpg, pin: Fingerprint, text: &[u8]) -> Result<(Verified, Vec<u8>), SignatureError> {
    verify_clear_signed(text, &gpg.keyring(), &[pin], &VerifyOptions::at(day(1)))
}

#[test]
fn the_text_that_was_signed_is_returned_and_nothing_else() {
    let gpg = Gpg::new();
    let pin = gpg.key("a", "rsa3072", "sign", "never");
    let sign = |text: &[u8]| gpg.run(1, &["--batch", "--output", "-", "--clear-sign"], text);
    let signed = sign(TEXT);
    let (verified, body) = verify(&gpg, pin, &signed).unwrap();
    assert_eq!(
        (verified.signer, String::from_utf8(body).unwrap()),
        (pin, String::from_utf8(BODY.to_vec()).unwrap())
    );
    let text = String::from_utf8(signed).unwrap();
    assert_eq!(verify(&gpg, pin, text.replace('\r', "").replace('\n', "\r\n").as_bytes()).unwrap().1, BODY);
    assert!(verify(&gpg, pin, &sign(b"")).is_ok());
    for changed in [
        text.replace("one", "two"),
        text.replace("Hash: SHA512\n\n", "Hash: SHA512\n\nzero\n"),
        text.replace("From four", "From four\nfive"),
        text.replace("- -two\n", ""),
    ] {
        assert!(
            matches!(verify(&gpg, pin, changed.as_bytes()), Err(SignatureError::False { .. })),
            "{changed}"
        );
    }
    for around in [
        format!("zero\n{text}"),
        format!("{text}five\n"),
        format!("{text}{text}"),
        text.replace("Hash: SHA512", "Hash: SHA512\nzero: 0"),
        text.replace("-----END PGP SIGNATURE-----", ""),
    ] {
        assert!(verify(&gpg, pin, around.as_bytes()).is_err(), "{around}");
    }
}

#[test]
fn a_clear_signed_text_has_a_largest_size_and_a_signature_of_text() {
    let gpg = Gpg::new();
    let pin = gpg.key("a", "ed25519", "sign", "never");
    let long = vec![b'\n'; CLEAR_SIGNED_BYTES_MAX + 1];
    assert!(matches!(verify(&gpg, pin, &long), Err(SignatureError::TooLong { .. })));
    assert!(matches!(verify(&gpg, pin, TEXT), Err(SignatureError::ClearSigned(_))));
    // A signature over the same bytes as a file is not one over a text.
    let file = gpg.run(1, &["--batch", "--armor", "--output", "-", "--detach-sign"], b"one");
    let text = format!("-----BEGIN PGP SIGNED MESSAGE-----\n\none\n{}", String::from_utf8(file).unwrap());
    assert!(matches!(verify(&gpg, pin, text.as_bytes()), Err(SignatureError::Unusable { .. })));
}
