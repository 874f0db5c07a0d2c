use super::*;
use proptest::prelude::*;

fn sample() -> Lock {
    let mut lock = Lock::default();
    lock.inputs.insert("suite".to_owned(), "\"bookworm\"".to_owned());
    let mut pins = Pins::default();
    pins.set(PinKind::Package, "libc6", "2.36-9+deb12u14");
    pins.set(PinKind::Kernel, "linux-image-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64=6.1.192-2");
    pins.set(PinKind::Oci, "docker.io/library/alpine:3", "sha256:00");
    lock.set_pins(Arch::X86_64, pins);
    lock
}

#[test]
fn a_lock_has_a_pinned_text() {
    let text = "\
# What the names in kiln.toml stood for. `kiln lock` writes it, `kiln update` moves it; builds keep to it.

version = 1

[inputs]
suite = '\"bookworm\"'

[pins.x86_64.package]
libc6 = \"2.36-9+deb12u14\"

[pins.x86_64.kernel]
linux-image-cloud-amd64 = \"linux-image-6.1.0-56-cloud-amd64=6.1.192-2\"

[pins.x86_64.oci]
\"docker.io/library/alpine:3\" = \"sha256:00\"
";
    assert_eq!(sample().to_text(), text);
    assert_eq!(Lock::parse(text).unwrap(), sample());
}

#[test]
fn what_is_no_lock_is_refused() {
    let refused = |text: &str| Lock::parse(text).unwrap_err().to_string();
    assert_eq!(refused("a = 1"), "it has no version");
    assert_eq!(refused("version = 2\nnew = 1"), "it has version 2; this kiln reads version 1");
    assert!(refused("version = 1\nother = 1").contains("unknown field `other`"));
    assert!(refused("version = 1\n[pins.x86_64.moon]\na = 'b'").contains("unknown variant `moon`"));
    assert_eq!(refused("version = 1\n[pins.x86_64.oci]\na = ''"), "`a` is not a pin");
    assert_eq!(refused("version = 1\n[pins.x86_64.oci]\n\"a\\u0007\" = 'b'"), "`a\\u{7}` is not a pin");
    let long = format!("version = 1\n[pins.x86_64.oci]\na = '{}'", "b".repeat(PIN_BYTES_MAX + 1));
    assert_eq!(refused(&long), "`a` is not a pin");
    assert!(refused(&" ".repeat(LOCK_BYTES_MAX + 1)).contains("more than 1048576"));
    let many: String = (0..=PINS_MAX).map(|n| format!("p{n} = 'v'\n")).collect();
    assert_eq!(
        refused(&format!("version = 1\n[pins.x86_64.package]\n{many}")),
        format!("it has {} pins, more than {PINS_MAX}", PINS_MAX + 1)
    );
}

#[test]
fn what_moved_is_told_by_name() {
    let mut after = sample().pins(Arch::X86_64).unwrap().clone();
    after.set(PinKind::Package, "libc6", "2.37");
    after.set(PinKind::Package, "zlib1g", "1.3");
    let moved = sample().pins(Arch::X86_64).unwrap().moved(&after);
    let told: Vec<_> =
        moved.iter().map(|m| (m.name.as_str(), m.before.as_deref(), m.after.as_deref())).collect();
    assert_eq!(told, [("libc6", Some("2.36-9+deb12u14"), Some("2.37")), ("zlib1g", None, Some("1.3"))]);
    assert_eq!(after.moved(&after), []);
}

#[test]
fn changed_inputs_are_named() {
    let lock = sample();
    let mut inputs = lock.inputs.clone();
    assert_eq!(lock.changed_inputs(&inputs), Vec::<&str>::new());
    inputs.insert("suite".to_owned(), "\"trixie\"".to_owned());
    inputs.insert("packages".to_owned(), "[]".to_owned());
    assert_eq!(lock.changed_inputs(&inputs), ["suite", "packages"]);
}

proptest! {
    #[test]
    fn print_and_parse_agree(names in proptest::collection::btree_map("[ -~é]{1,40}", "[ -~]{1,40}", 0..20)) {
        let mut pins = Pins::default();
        for (name, to) in &names {
            pins.set(PinKind::Package, name, to);
        }
        let mut lock = Lock { inputs: names, ..Lock::default() };
        lock.set_pins(Arch::Aarch64, pins);
        prop_assert_eq!(Lock::parse(&lock.to_text()).unwrap(), lock);
    }

    #[test]
    fn parsing_never_panics(text in "\\PC{0,200}") {
        let _ = Lock::parse(&text);
    }
}
