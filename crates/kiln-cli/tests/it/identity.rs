//! A running machine is made ready for a capture, and then becomes another one, twice.

use crate::context;
use kiln_engine::control::{Ask, ask};
use kiln_guest::Session;
use kiln_guest::identity::{Identity, IdentityNetwork, Part, PartResult};
use kiln_guest::message::{ExecRequest, NetworkConfig};
use kiln_guest::quiesce::Quiesce;
use kiln_guest::secret::{Entropy, SecretValue};
use kiln_guest::token::{Epoch, Hostname, MachineId, SecretName, VariableName};
use kiln_testing::{TestContext, busybox_rootfs, recipe};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

const OLD: &str = "00000000000000000000000000000001";

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Puts what an image brings into its root: hooks, a machine id twice, and an SSH server's keys.
fn image(context: &TestContext) {
    let root = busybox_rootfs(context, "rootfs");
    let file = |path: &str, text: &str, mode: u32| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    file("etc/machine-id", OLD, 0o444);
    file("var/lib/dbus/machine-id", OLD, 0o444);
    file("etc/ssh/ssh_host_ed25519_key", "shared", 0o600);
    let keygen =
        "#!/bin/sh\ntest \"$1\" = -A && head -c 16 /dev/urandom | sha256sum > /etc/ssh/ssh_host_ed25519_key";
    file("usr/bin/ssh-keygen", keygen, 0o755);
    let hook = "#!/bin/sh\necho \"{\\\"event\\\":\\\"$KILN_HOOK\\\",\\\"host\\\":\\\"$(hostname)\\\"}\"";
    file("etc/kiln/hooks/pre-snapshot.d/10-say", hook, 0o755);
    file("etc/kiln/hooks/post-restore.d/10-say", hook, 0o755);
}

fn identity(number: u8) -> Identity {
    let epoch = Epoch::new(format!("0f8fad5b-d9cb-469f-a165-7086772895{number:02x}")).unwrap();
    let mut identity = Identity::new(epoch, Entropy::new(vec![number; 32]).unwrap());
    // A day of 2031, and about the same one of 2032.
    identity.clock_unix_ns = Some((1_900_000_000 + u64::from(number) * 31_536_000) * 1_000_000_000);
    identity.hostname = Some(Hostname::new(format!("clone-{number}")).unwrap());
    identity.machine_id = Some(MachineId::new(format!("{number:02x}").repeat(16)).unwrap());
    identity.network = Some(IdentityNetwork {
        interface: None,
        config: NetworkConfig {
            mac: Some(format!("52:54:00:00:00:{number:02x}")),
            address: format!("10.0.2.{}/24", 100 + number),
            gateway: None,
            dns: Vec::new(),
        },
    });
    identity.ssh_host_keys = true;
    let name = VariableName::new("NUMBER").unwrap();
    identity.environment = Some([(name, number.to_string())].into());
    let name = SecretName::new(format!("key-{number}")).unwrap();
    identity.secrets = Some([(name, SecretValue::new(vec![b'0' + number]).unwrap())].into());
    identity
}

fn said(session: &Session, script: &str) -> String {
    let outcome = session.exec(ExecRequest::new(["sh", "-c", script])).unwrap();
    let outcome = outcome.collect(1 << 16, soon()).unwrap();
    assert!(outcome.status.success(), "{script}: {outcome:?}");
    String::from_utf8(outcome.stdout).unwrap()
}

#[test]
fn boot_a_machine_becomes_another_twice() {
    let context = context();
    image(&context);
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    context.kiln(["run", "-d", "--name", "w", "--net", "restricted", "web"]).ok();
    let machine = context.home().join("machines").join(context.machine_dirs().first().unwrap());
    let session = || Session::connect(Box::new(ask(&machine, "w", &Ask::Agent).unwrap()), soon()).unwrap();
    let quiesced = session().quiesce(Quiesce { drop_caches: true, ..Quiesce::default() }, soon()).unwrap();
    assert_eq!(quiesced.hooks.facts.first().unwrap().event.as_str(), "pre-snapshot");
    assert!(quiesced.sync_ms.is_some() && quiesced.drop_caches_ms.is_some());
    let mut keys = vec!["shared".to_owned()];
    for number in [1, 2] {
        let session = session();
        let report = session.identify(identity(number), soon()).unwrap();
        for part in Part::ALL {
            assert_eq!(report.result(part), Some(&PartResult::Done), "{report:?}");
        }
        assert!(report.clock_offset_ns.unwrap() > 0);
        let fact = report.hooks.facts.first().unwrap();
        assert_eq!(fact.fields["host"], format!("clone-{number}"));
        let year = 2030 + i32::from(number);
        assert_eq!(said(&session, "hostname; date +%Y"), format!("clone-{number}\n{year}\n"));
        let id = format!("{number:02x}").repeat(16) + "\n";
        assert_eq!(said(&session, "cat /etc/machine-id /var/lib/dbus/machine-id"), id.repeat(2));
        assert_eq!(said(&session, "tr '\\0' ';' < /run/kiln/env"), format!("NUMBER={number};"));
        let secrets =
            "cd /run/kiln/secrets; stat -c '%a %n' . *; cat *; mount | grep -c 'tmpfs on /run/kiln/secrets'";
        let secrets = secrets.replace("grep", "/bin/busybox grep");
        assert_eq!(said(&session, &secrets), format!("700 .\n400 key-{number}\n{number}1\n"));
        let network = "/bin/busybox ip addr show dev eth0; /bin/busybox ip addr show dev lo";
        let network = said(&session, network);
        let address = format!("inet 10.0.2.{}/24", 100 + number);
        assert!(network.contains(&address) && network.matches("inet 10.").count() == 1, "{network}");
        assert!(network.contains(&format!("52:54:00:00:00:{number:02x}")), "{network}");
        assert!(network.contains("LOOPBACK,UP"), "{network}");
        keys.push(said(&session, "cat /etc/ssh/ssh_host_ed25519_key"));
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 3, "{keys:?}");
    assert_eq!(context.kiln(["exec", "w", "hostname"]).ok(), "clone-2\n");
}
