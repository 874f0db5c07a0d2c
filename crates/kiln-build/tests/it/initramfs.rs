//! The initramfs: what is in it, and that it is the same each time.

use cpio::newc::Reader;
use kiln_build::initramfs::{init_config, reconfigure, write};
use kiln_build::modules::LoadedModule;
use kiln_core::recipe::{AgentOptions, Entrypoint, Init, RootFormat};
use kiln_guest::config::{InitConfig, When};
use std::io::{Cursor, Read as _};

fn modules() -> Vec<LoadedModule> {
    let module = |name: &str, when| LoadedModule { name: name.to_owned(), bytes: vec![7; 100], when };
    vec![module("virtio", When::Always), module("virtio_blk", When::Device(2))]
}

fn archive(agent: &AgentOptions) -> Vec<u8> {
    let config = init_config(agent, &modules()).unwrap();
    let mut bytes = Vec::new();
    write(&mut bytes, b"the agent", &config, &modules()).unwrap();
    bytes
}

/// Name, mode, owner, group and time, and content.
type Entry = (String, u32, (u32, u32, u32), Vec<u8>);

fn entries(bytes: Vec<u8>) -> Vec<Entry> {
    let mut input = Cursor::new(bytes);
    let mut entries = Vec::new();
    loop {
        let mut reader = Reader::new(input).unwrap();
        if reader.entry().is_trailer() {
            return entries;
        }
        let entry = reader.entry();
        let (name, mode) = (entry.name().to_owned(), entry.mode());
        let numbers = (entry.uid(), entry.gid(), entry.mtime());
        let mut content = Vec::new();
        reader.read_to_end(&mut content).unwrap();
        entries.push((name, mode, numbers, content));
        input = reader.finish().unwrap();
    }
}

#[test]
fn it_holds_the_agent_its_configuration_and_the_modules() {
    let agent = AgentOptions {
        init: Init::Agent,
        entrypoint: Some(Entrypoint {
            command: vec!["/bin/server".to_owned(), "--fast".to_owned()],
            env: [("A".to_owned(), "1".to_owned())].into(),
            workdir: Some("/srv".to_owned()),
            user: Some("www:www".to_owned()),
        }),
        ..AgentOptions::default()
    };
    let entries = entries(archive(&agent));
    let modes: Vec<(&str, u32)> = entries.iter().map(|(name, mode, ..)| (name.as_str(), *mode)).collect();
    assert_eq!(
        modes,
        [
            ("dev", 0o40755),
            ("proc", 0o40755),
            ("sys", 0o40755),
            ("newroot", 0o40755),
            ("kiln", 0o40755),
            ("kiln/modules", 0o40755),
            ("dev/console", 0o20600),
            ("init", 0o100_755),
            ("kiln/init.json", 0o100_644),
            ("kiln/modules/virtio.ko", 0o100_644),
            ("kiln/modules/virtio_blk.ko", 0o100_644),
        ]
    );
    assert!(entries.iter().all(|(_, _, numbers, _)| *numbers == (0, 0, 0)));
    assert_eq!(entries[7].3, b"the agent");
    assert_eq!(entries[10].3, [7; 100]);
    let config = InitConfig::from_json(&entries[8].3).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&entries[8].3).unwrap();
    assert_eq!(
        json["modules"][1],
        serde_json::json!({"path": "/kiln/modules/virtio_blk.ko", "when": {"device": 2}})
    );
    assert_eq!(json["root"]["device"], "/dev/vda");
    assert_eq!(json["init"], "agent");
    let entrypoint = config.entrypoint.unwrap();
    assert_eq!(entrypoint.argv, ["/bin/server", "--fast"]);
    assert_eq!(entrypoint.cwd.unwrap().as_str(), "/srv");
}

#[test]
fn it_is_the_same_each_time() {
    assert_eq!(archive(&AgentOptions::default()), archive(&AgentOptions::default()));
    let other = AgentOptions { init: Init::Image("/sbin/init".to_owned()), ..AgentOptions::default() };
    assert_ne!(archive(&AgentOptions::default()), archive(&other));
}

#[test]
fn names_a_guest_cannot_use_are_refused() {
    let entrypoint = |workdir: Option<&str>, user: Option<&str>| {
        let command = vec!["x".to_owned()];
        let (workdir, user) = (workdir.map(str::to_owned), user.map(str::to_owned));
        let entrypoint = Some(Entrypoint { command, env: Default::default(), workdir, user });
        init_config(&AgentOptions { entrypoint, ..AgentOptions::default() }, &[])
    };
    assert!(entrypoint(Some("/"), Some("1000:1000")).is_ok());
    assert_eq!(
        entrypoint(Some("srv"), None).unwrap_err().to_string(),
        "`entrypoint.workdir` cannot be used in a guest"
    );
    assert_eq!(
        entrypoint(None, Some(":x")).unwrap_err().to_string(),
        "`entrypoint.user` cannot be used in a guest"
    );
}

#[test]
fn a_root_that_is_only_read_lies_below_the_disk() {
    let agent = AgentOptions { root: RootFormat::Erofs, ..AgentOptions::default() };
    let config = init_config(&agent, &modules()).unwrap();
    let base = config.base.unwrap();
    assert_eq!((base.device.as_str(), base.fstype.as_str(), base.read_only), ("/dev/vdb", "erofs", true));
    assert_eq!((config.root.device.as_str(), config.root.read_only), ("/dev/vda", false));
    assert_eq!(init_config(&AgentOptions::default(), &modules()).unwrap().base, None);
}

#[test]
fn a_changed_configuration_changes_nothing_else() {
    let before = archive(&AgentOptions::default());
    assert_eq!(reconfigure(&before, |_| Ok(())).unwrap(), None, "no change is none");
    let entrypoint = Entrypoint {
        command: vec!["/bin/true".to_owned()],
        env: [("A".to_owned(), "b".to_owned())].into(),
        workdir: None,
        user: None,
    };
    let changed = reconfigure(&before, |config| {
        config.entrypoint = Some(kiln_build::initramfs::entrypoint(&entrypoint)?);
        Ok(())
    });
    let changed = changed.unwrap().unwrap();
    let wanted = archive(&AgentOptions { entrypoint: Some(entrypoint), ..AgentOptions::default() });
    assert_eq!(entries(changed), entries(wanted), "as if it had been made so");
    for damaged in [&b"none"[..], &before[..before.len() / 2], b""] {
        let error = reconfigure(damaged, |_| Ok(())).unwrap_err().to_string();
        assert_eq!(error, "the initramfs is not one of kiln's");
    }
}
