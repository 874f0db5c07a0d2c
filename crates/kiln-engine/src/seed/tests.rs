use super::*;
use hadris_iso::read::IsoImage;
use kiln_core::machine::Forward;
use kiln_sys::tool::ScratchDir;

fn record(network: Network) -> MachineRecord {
    MachineRecord { network, ..crate::supervisor::record_for_tests(None, "no") }
}

fn connected() -> Network {
    Network::User { forwards: vec![Forward { host: 8080, guest: 80 }], outbound: true }
}

fn document(files: &[SeedFile], name: &str) -> Value {
    let (_, text) = files.iter().find(|(known, _)| *known == name).unwrap();
    serde_json::from_slice(text).unwrap()
}

#[test]
fn a_machine_is_told_by_its_own_id_name_and_address() {
    let one = record(connected());
    let files = files(&one, &Seed::identity());
    let meta = document(&files, "meta-data");
    assert_eq!(meta["instance-id"], one.id.as_str());
    assert_eq!(meta["local-hostname"], one.name.as_str());
    let network = document(&files, "network-config");
    let card = &network["ethernets"]["kiln0"];
    assert_eq!(card["match"], json!({ "macaddress": mac_of(&one).to_string() }));
    assert_eq!((&card["dhcp4"], &network["version"]), (&json!(true), &json!(2)));
    // Another machine of the same name is another instance, with another address.
    let two = MachineRecord { id: "0123456789ab".parse().unwrap(), ..one.clone() };
    let others = super::files(&two, &Seed::identity());
    assert_ne!(document(&others, "meta-data")["instance-id"], meta["instance-id"]);
    assert_ne!(document(&others, "network-config"), network);
}

#[test]
fn keys_are_a_list_where_there_are_any() {
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me: at #1";
    let without = record(Network::None);
    let record = MachineRecord { ssh_keys: vec![key.parse().unwrap()], ..without.clone() };
    let meta = document(&files(&record, &Seed::identity()), "meta-data");
    assert_eq!(meta["public-keys"], json!([key]));
    let meta = document(&files(&without, &Seed::identity()), "meta-data");
    assert!(meta.get("public-keys").is_none());
}

#[test]
fn a_machine_without_a_network_has_its_guest_look_for_none() {
    let files = files(&record(Network::None), &Seed::identity());
    assert_eq!(document(&files, "network-config"), json!({ "config": "disabled" }));
}

#[test]
fn user_data_is_passed_as_it_is() {
    // What a YAML writer without quotes would make a map of, and cut off.
    let text = "#cloud-config\nruncmd:\n  - [sh, -c, 'echo a: b # c']\n".to_owned();
    let seed = Seed { user_data: Some(text.clone()), ..Seed::identity() };
    let files = files(&record(Network::None), &seed);
    assert_eq!(files.iter().find(|(name, _)| *name == "user-data").unwrap().1, text.as_bytes());
}

#[test]
fn a_seed_is_a_file_system_of_one_length_and_its_label() {
    let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
    let long = format!("#!/bin/sh\n{}", "x".repeat(USER_DATA_BYTES_MAX - 10));
    for (name, user_data) in [("short", None), ("long", Some(long))] {
        let home = dir.path().join(name);
        fs::create_dir(&home).unwrap();
        let record = record(connected());
        let seed = Seed { user_data, ..Seed::identity() };
        write(&home, &record, &seed).unwrap();
        let path = home.join(SEED_FILE);
        assert_eq!(fs::metadata(&path).unwrap().len(), SEED_BYTES as u64);
        let bytes = fs::read_limited(&path, SEED_BYTES).unwrap();
        // Where ISO 9660 has its volume descriptor: `CD001`, and the label.
        assert_eq!((&bytes[32769..32774], &bytes[32808..32814]), (&b"CD001"[..], &b"cidata"[..]));
        for (_, text) in files(&record, &seed) {
            assert!(bytes.windows(text.len()).any(|window| window == &text[..]));
        }
        let image = IsoImage::open(Cursor::new(bytes)).unwrap();
        assert_eq!(image.root_dir().iter(&image).entries().count(), 5, "three files, itself and its parent");
    }
}

#[test]
fn a_machine_that_firmware_boots_takes_its_agent_from_a_longer_seed() {
    let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
    let boot = BootArtifacts::Firmware { firmware: kiln_core::Digest::of(b"firmware") };
    let record = MachineRecord { boot, ..record(connected()) };
    let text = "#cloud-config\nruncmd: [[\"true\"]]\n".to_owned();
    write(dir.path(), &record, &Seed { user_data: Some(text), ..Seed::identity() }).unwrap();
    let path = dir.path().join(SEED_FILE);
    assert_eq!(fs::metadata(&path).unwrap().len(), seed_bytes(&record.boot) as u64);
    let image = IsoImage::open(Cursor::new(fs::read_limited(&path, SEED_AGENT_BYTES).unwrap())).unwrap();
    let names = image.root_dir().iter(&image).entries().count();
    assert_eq!(names, 2 + 3 + 4, "what every seed has, the script, two services and the agent");
    let files = files(&record, &Seed::identity());
    let of = |name: &str| &files.iter().find(|(known, _)| *known == name).unwrap().1;
    // cloud-init knows what it is by its first line, and runs it by its second.
    assert!(of("vendor-data").starts_with(b"#cloud-boothook\n#!/bin/sh\n"));
    assert!(of("kiln-agent").starts_with(b"\x7fELF"));
}

#[test]
fn the_script_that_takes_the_agent_is_one_for_every_shell() {
    let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
    let script = dir.path().join("script");
    kiln_sys::commit::write_file(&script, AGENT_SCRIPT.as_bytes(), 0o600, kiln_sys::commit::Existing::Refuse)
        .unwrap();
    let (tools, cancel) = (kiln_sys::Toolbox::default(), kiln_sys::Cancel::new().unwrap());
    for (shell, args) in [("sh", &[][..]), ("busybox", &["sh"])] {
        let tool = tools.find(shell).unwrap().args(args).arg("-n").arg(&script);
        tool.run(&cancel, &mut |_| ()).unwrap();
    }
    let names = AGENT_SCRIPT.matches("$from/kiln-agent").count();
    assert_eq!(names, 3, "the agent and a service for each of two inits");
}
