use super::*;
use proptest::prelude::*;

/// Made by `ssh-keygen -t ed25519`.
const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";

fn parse(text: &str) -> Result<SshPublicKey, InvalidSshKey> {
    text.parse()
}

/// Returns a line of a key of any kind.
fn line(kind: &str, inner: &str) -> String {
    let length = u32::try_from(inner.len()).unwrap().to_be_bytes();
    let key = [&length[..], inner.as_bytes(), b"key"].concat();
    format!("{kind} {}", BASE64_STANDARD.encode(key))
}

#[test]
fn a_key_is_one_line_with_or_without_a_comment() {
    let plain = parse(ED25519).unwrap();
    assert_eq!((plain.as_str(), plain.comment(), plain.label()), (ED25519, "", "ssh-ed25519"));
    let commented = parse(&format!(" {} \t me at home\n", ED25519.replace(' ', "  "))).unwrap();
    assert_eq!(commented.as_str(), format!("{ED25519} me at home"));
    assert_eq!((commented.comment(), commented.label()), ("me at home", "me at home"));
    assert_eq!(commented.key(), plain.key());
    assert_eq!(plain.key(), ED25519);
    for kind in KINDS {
        parse(&line(kind, kind)).unwrap();
    }
    let json = serde_json::to_string(&commented).unwrap();
    assert_eq!(json, format!("\"{ED25519} me at home\""));
    assert_eq!(serde_json::from_str::<SshPublicKey>(&json).unwrap(), commented);
}

#[test]
fn what_is_no_key_says_why() {
    let private = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END OPENSSH PRIVATE KEY-----\n";
    assert_eq!(parse(private), Err(InvalidSshKey::Private));
    assert_eq!(parse(&format!("{ED25519}\n{ED25519}")), Err(InvalidSshKey::NotALine));
    assert_eq!(parse(&format!("{ED25519} a\u{1b}[31m")), Err(InvalidSshKey::NotALine));
    for options in ["no-pty ", "command=\"echo a\" ", "from=\"10.0.0.1\",no-pty "] {
        assert_eq!(parse(&format!("{options}{ED25519}")), Err(InvalidSshKey::Options), "{options}");
    }
    assert_eq!(parse("ssh-dss AAAA"), Err(InvalidSshKey::Kind("ssh-dss".to_owned())));
    assert_eq!(parse(""), Err(InvalidSshKey::Kind(String::new())));
    for text in ["ssh-rsa", "ssh-rsa ", "ssh-rsa !!!!", "ssh-rsa AAA comment"] {
        assert_eq!(parse(text), Err(InvalidSshKey::NotBase64), "{text}");
    }
    for text in
        [line("ssh-rsa", "ssh-ed25519"), "ssh-rsa AAAA".to_owned(), "ssh-rsa AAAAB3NzaC1yc2E=".to_owned()]
    {
        assert_eq!(parse(&text), Err(InvalidSshKey::OtherKind("ssh-rsa")), "{text}");
    }
    let long = format!("{ED25519} {}", "x".repeat(SSH_KEY_BYTES_MAX));
    assert_eq!(parse(&long), Err(InvalidSshKey::TooLong(long.len())));
    assert!(parse(&long[..SSH_KEY_BYTES_MAX]).is_ok());
}

#[test]
fn a_machine_has_so_many_keys() {
    let key = parse(ED25519).unwrap();
    check_keys(&vec![key.clone(); SSH_KEYS_MAX]).unwrap();
    let error = check_keys(&vec![key; SSH_KEYS_MAX + 1]).unwrap_err();
    assert_eq!(error.to_string(), "33 SSH keys of 2640 bytes are too many: at most 32, of 65536 bytes");
    let long = parse(&format!("{ED25519} {}", "x".repeat(16_000))).unwrap();
    check_keys(&vec![long.clone(); 4]).unwrap();
    assert_eq!(check_keys(&vec![long; 5]).unwrap_err().count, 5);
}

#[test]
fn a_user_has_a_name_that_no_program_takes_for_an_option() {
    for name in ["root", "ubuntu", "_apt", "a.b-c_d9", "Administrator", &"a".repeat(LOGIN_BYTES_MAX)] {
        assert_eq!(name.parse::<LoginName>().unwrap().as_str(), name);
    }
    for name in ["", "-l", "1st", "a b", "a@b", "a/b", "ü", "a\n", &"a".repeat(LOGIN_BYTES_MAX + 1)] {
        assert!(name.parse::<LoginName>().is_err(), "{name:?}");
    }
}

proptest! {
    #[test]
    fn what_was_read_reads_the_same_again(text in "(ssh-ed25519|ssh-rsa|x) {1,2}[A-Za-z0-9+/=]{0,80} ?.{0,20}") {
        if let Ok(key) = parse(&text) {
            prop_assert_eq!(parse(key.as_str()).unwrap(), key);
        }
    }
}
