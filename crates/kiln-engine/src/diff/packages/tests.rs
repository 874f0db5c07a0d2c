use super::*;

fn dpkg(text: &str) -> Inventory {
    let mut inventory = Inventory::default();
    inventory.dpkg(text.as_bytes());
    inventory
}

fn listed(inventory: &Inventory) -> Vec<String> {
    let line = |((manager, name), set): (&(Manager, String), &BTreeSet<Installed>)| {
        format!("{} {name} {}", manager.as_str(), text(set, true))
    };
    inventory.packages.iter().map(line).collect()
}

#[test]
fn dpkg_paragraphs_are_packages_unless_they_are_gone() {
    let inventory = dpkg(
        "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2-1\nDescription: shell\n Version: 9\n\n\n\
         Package: old\nStatus: deinstall ok config-files\nVersion: 1\n\n\
         Package: libc6\nArchitecture: i386\nVersion: 2.36\n\n\
         Package: libc6\nArchitecture: amd64\nVersion: 2.36\n\n\
         package: lower\nversion: 3",
    );
    assert_eq!(
        listed(&inventory),
        ["dpkg bash 5.2-1 amd64", "dpkg libc6 2.36 amd64, 2.36 i386", "dpkg lower 3"]
    );
}

#[test]
fn apk_paragraphs_are_packages() {
    let mut inventory = Inventory::default();
    inventory.apk(b"C:Q1abc=\nP:musl\nV:1.2.5-r0\nA:x86_64\nF:lib\nR:ld.so\n\nP:nover\n\nV:1\n");
    assert_eq!(listed(&inventory), ["apk musl 1.2.5-r0 x86_64"]);
}

#[test]
fn nix_store_paths_are_packages_by_their_name() {
    let mut inventory = Inventory::default();
    for path in [
        "0c0xbsq6hwqj1n2f6w7kzv3pvxlf9szk-hello-2.12.1",
        "1c0xbsq6hwqj1n2f6w7kzv3pvxlf9szk-gtk+3-demo",
        ".links",
        "short-hello-1",
        "0c0xbsq6hwqj1n2f6w7kzv3pvxlf9szk-",
    ] {
        inventory.nix(path.as_bytes());
    }
    assert_eq!(
        listed(&inventory),
        [
            "nix gtk+3-demo 1c0xbsq6hwqj1n2f6w7kzv3pvxlf9szk-gtk+3-demo",
            "nix hello 0c0xbsq6hwqj1n2f6w7kzv3pvxlf9szk-hello-2.12.1",
        ]
    );
}

#[test]
fn what_is_no_database_gives_no_packages_and_no_panic() {
    for bytes in [
        &b""[..],
        b"\xff\xfe\0\0",
        b":\n:\n\n:",
        b"Package\nVersion\n",
        b"Package:\nVersion:\n",
        b"Package: a",
        b"\n\n \n\t\n",
        b"P:\nV:\n",
    ] {
        let mut inventory = Inventory::default();
        inventory.dpkg(bytes);
        inventory.apk(bytes);
        inventory.nix(bytes);
        assert_eq!(inventory, Inventory::default(), "{bytes:?}");
    }
    let mut inventory = dpkg(&format!("{}Package: late\nVersion: 1\n", "x\n".repeat(100_000)));
    inventory.nix("\u{e9}".repeat(40).as_bytes());
    assert_eq!(listed(&inventory), Vec::<String>::new());
}

#[test]
fn too_many_packages_are_not_kept() {
    let mut inventory = Inventory { count: PACKAGES_MAX, ..Inventory::default() };
    inventory.dpkg(b"Package: a\nVersion: 1\n\nPackage: b\nVersion: 1\n\nPackage: c\nVersion: 1\n");
    assert_eq!((inventory.count, inventory.packages.len()), (PACKAGES_MAX + 1, 1));
}

#[test]
fn packages_are_added_removed_and_changed() {
    let a = dpkg(
        "Package: same\nVersion: 1\n\nPackage: gone\nVersion: 1\n\nPackage: grows\nVersion: 1\nArchitecture: all\n\n\
         Package: two\nVersion: 1\nArchitecture: amd64\n",
    );
    let mut b = dpkg(
        "Package: same\nVersion: 1\n\nPackage: new\nVersion: 1\n\nPackage: grows\nVersion: 2\nArchitecture: all\n\n\
         Package: two\nVersion: 1\nArchitecture: amd64\n\nPackage: two\nVersion: 1\nArchitecture: i386\n",
    );
    b.not_read.insert((Manager::Rpm, "/var/lib/rpm: why".to_owned()));
    let diff = compare(&a, &b);
    let lines: Vec<String> = diff
        .changes
        .iter()
        .map(|c| format!("{:?} {} {:?} {:?}", c.change, c.name, c.before.as_deref(), c.after.as_deref()))
        .collect();
    assert_eq!(
        lines,
        [
            "Removed gone Some(\"1\") None",
            "Changed grows Some(\"1\") Some(\"2\")",
            "Added new None Some(\"1\")",
            "Changed two Some(\"1 amd64\") Some(\"1 amd64, 1 i386\")"
        ]
    );
    assert_eq!(diff.not_read, ["rpm: /var/lib/rpm: why"]);
}

#[test]
fn packages_are_limited() {
    // As if so many were taken before.
    let with = |count| {
        let mut inventory = Inventory { count, ..Inventory::default() };
        inventory.dpkg(b"Package: last\nVersion: 1");
        inventory.checked()
    };
    assert_eq!(listed(&with(PACKAGES_MAX - 1).unwrap()), ["dpkg last 1"]);
    let error = with(PACKAGES_MAX).unwrap_err().to_string();
    assert_eq!(error, "it has packages above the limit of 1048576");
}

#[test]
fn what_stands_too_far_down_in_a_paragraph_is_passed_over() {
    let with = |lines: usize| dpkg(&format!("{}Package: late\nVersion: 1", "X: y\n".repeat(lines)));
    assert_eq!(listed(&with(PARAGRAPH_LINES_MAX - 2)), ["dpkg late 1"]);
    assert_eq!(listed(&with(PARAGRAPH_LINES_MAX - 1)), Vec::<String>::new());
}
