use super::*;
use crate::AcceleratorChoice;
use crate::snapshot::{RestoreState, StateScope};
use crate::spec::{ChannelName, DiskFormat, Mac};
use kiln_core::arch::Arch;
use kiln_core::machine::Forward;
use kiln_core::variant::MachineShape;

fn checked(board: Board, machine_type: &str, accelerator: Accelerator) -> CheckedSpec {
    CheckedSpec {
        spec: MachineSpec {
            shape: MachineShape { board, ..MachineShape::default() },
            arch: Arch::X86_64,
            boot: Boot::elf("/k/vmlinux"),
            disks: Vec::new(),
            network: Network::None,
            mac: Mac::local([0, 0, 1]),
            accelerator: AcceleratorChoice::Auto,
            channel: ChannelName::default(),
            memory: MemoryBacking::Anonymous,
            unplugged_nic: false,
            restore: None,
        },
        accelerator,
        accelerator_reason: None,
        machine_type: machine_type.to_owned(),
        command_line: "console=ttyS0 panic=-1".to_owned(),
        reads_memory_only: false,
    }
}

fn with_everything(mut checked: CheckedSpec) -> CheckedSpec {
    let Boot::Kernel(boot) = &mut checked.spec.boot else { panic!("no kernel") };
    boot.initrd = Some("/k/initrd.cpio".into());
    checked.spec.network = Network::User {
        forwards: vec![Forward { host: 8080, guest: 80 }, Forward { host: 2222, guest: 22 }],
        outbound: true,
    };
    for (name, read_only) in [("root", false), ("data", true)] {
        checked.spec.disks.push(Disk {
            path: format!("/m/{name}.raw").into(),
            format: DiskFormat::Raw,
            read_only,
            serial: name.parse().unwrap(),
        });
    }
    checked
}

/// The arguments, an option with its value a line.
fn text(checked: &CheckedSpec) -> String {
    let mut text = String::new();
    for word in argv(checked) {
        let word = word.into_string().unwrap();
        let separator = if text.is_empty() {
            ""
        } else if word.starts_with('-') {
            "\n"
        } else {
            " "
        };
        text.push_str(separator);
        text.push_str(&word);
    }
    text
}

const PC: &str = "\
-M pc-i440fx-7.2,hpet=off,vmport=off,usb=off,smbus=off,memory-backend=ram0
-accel tcg,tb-size=64
-cpu Nehalem-v1,rdrand=on
-object {\"id\":\"ram0\",\"qom-type\":\"memory-backend-ram\",\"size\":268435456}
-m 256M
-smp 1
-nodefaults
-no-user-config
-no-reboot
-S
-display none
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-chardev stdio,id=console,signal=off
-serial chardev:console
-chardev socket,id=agent,path=agent.sock,server=on,wait=off
-chardev socket,id=qmp,path=qmp.sock,server=off
-mon chardev=qmp,mode=control
-device virtio-serial-pci,id=serial0,max_ports=4,addr=0x3
-device virtserialport,id=port0,bus=serial0.0,nr=1,chardev=agent,name=kiln.agent.0
-object rng-random,id=rng0,filename=/dev/urandom
-device virtio-rng-pci,id=entropy0,rng=rng0,addr=0x4
-kernel /k/vmlinux
-append console=ttyS0 panic=-1";

const PC_EVERYTHING: &str = "\
-netdev user,id=user0,restrict=off,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=tcp:127.0.0.1:2222-:22
-device virtio-net-pci,id=net0,netdev=user0,mac=52:54:00:00:00:01,romfile=,addr=0x5
-blockdev {\"cache\":{\"direct\":false,\"no-flush\":false},\"discard\":\"unmap\",\"driver\":\"raw\",\"file\":{\"cache\":{\"direct\":false,\"no-flush\":false},\"discard\":\"unmap\",\"driver\":\"file\",\"filename\":\"/m/root.raw\",\"read-only\":false},\"node-name\":\"block0\",\"read-only\":false}
-device virtio-blk-pci,id=disk0,drive=block0,serial=root,addr=0x6
-blockdev {\"cache\":{\"direct\":false,\"no-flush\":false},\"discard\":\"unmap\",\"driver\":\"raw\",\"file\":{\"cache\":{\"direct\":false,\"no-flush\":false},\"discard\":\"unmap\",\"driver\":\"file\",\"filename\":\"/m/data.raw\",\"read-only\":true},\"node-name\":\"block1\",\"read-only\":true}
-device virtio-blk-pci,id=disk1,drive=block1,serial=data,addr=0x7
-kernel /k/vmlinux
-initrd /k/initrd.cpio
-append console=ttyS0 panic=-1";

#[test]
fn pc_without_network() {
    assert_eq!(text(&checked(Board::Pc, "pc-i440fx-7.2", Accelerator::Tcg)), PC);
}

#[test]
fn pc_with_everything() {
    let text = text(&with_everything(checked(Board::Pc, "pc-i440fx-7.2", Accelerator::Tcg)));
    let common = PC.split_once("\n-kernel").unwrap().0;
    assert_eq!(text, format!("{common}\n{PC_EVERYTHING}"));
}

#[test]
fn firmware_stands_in_for_a_kernel_and_boots_the_first_disk() {
    let mut checked = with_everything(checked(Board::Pc, "pc-i440fx-7.2", Accelerator::Tcg));
    checked.spec.boot = Boot::Firmware { file: "/f/OVMF.fd".into() };
    let common = PC.split_once("\n-kernel").unwrap().0;
    let more =
        PC_EVERYTHING.split_once("\n-kernel").unwrap().0.replace("serial=root,", "serial=root,bootindex=0,");
    let wanted = format!("{common}\n{more}\n-bios /f/OVMF.fd");
    assert_eq!(text(&checked), wanted);
    let state_file = "/s/state".into();
    checked.spec.restore = Some(RestoreState { state_file, scope: StateScope::Machine });
    assert_eq!(text(&checked), format!("{wanted}\n-incoming defer"));
}

#[test]
fn q35_differs_in_its_board_only() {
    let q35 = text(&with_everything(checked(Board::Q35, "pc-q35-7.2", Accelerator::Tcg)));
    let pc = text(&with_everything(checked(Board::Pc, "pc-i440fx-7.2", Accelerator::Tcg)));
    assert_eq!(
        q35.lines().next().unwrap(),
        "-M pc-q35-7.2,hpet=off,vmport=off,usb=off,smbus=off,sata=off,memory-backend=ram0"
    );
    assert!(q35.lines().skip(1).eq(pc.lines().skip(1)));
}

#[test]
fn microvm_has_its_devices_on_its_own_bus() {
    let mut micro = with_everything(checked(Board::Microvm, "microvm", Accelerator::Tcg));
    if let Network::User { outbound, .. } = &mut micro.spec.network {
        *outbound = false;
    }
    let text = text(&micro);
    assert!(
        text.starts_with("-M microvm,pit=off,pic=off,rtc=on,isa-serial=on,ioapic2=on,memory-backend=ram0\n")
    );
    let devices: Vec<&str> =
        text.lines().filter(|line| line.starts_with("-device ") || line.starts_with("-netdev ")).collect();
    assert_eq!(
        devices,
        [
            "-device virtio-serial-device,id=serial0,max_ports=4,bus=virtio-mmio-bus.23",
            "-device virtserialport,id=port0,bus=serial0.0,nr=1,chardev=agent,name=kiln.agent.0",
            "-device virtio-rng-device,id=entropy0,rng=rng0,bus=virtio-mmio-bus.22",
            "-netdev user,id=user0,restrict=on,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=tcp:127.0.0.1:2222-:22",
            "-device virtio-net-device,id=net0,netdev=user0,mac=52:54:00:00:00:01,bus=virtio-mmio-bus.21",
            "-device virtio-blk-device,id=disk0,drive=block0,serial=root,bus=virtio-mmio-bus.20",
            "-device virtio-blk-device,id=disk1,drive=block1,serial=data,bus=virtio-mmio-bus.19",
        ]
    );
}

/// The lines in which two machines differ.
fn differences(one: &CheckedSpec, other: &CheckedSpec) -> Vec<(String, String)> {
    let lines = |checked| text(checked).lines().map(str::to_owned).collect::<Vec<_>>();
    let (one, other) = (lines(one), lines(other));
    assert_eq!(one.len(), other.len());
    one.into_iter().zip(other).filter(|(one, other)| one != other).collect()
}

#[test]
fn a_restored_machine_differs_from_the_captured_one_in_its_memory_and_has_no_kernel() {
    for (board, machine_type) in [(Board::Pc, "pc-i440fx-7.2"), (Board::Q35, "pc-q35-7.2")] {
        let mut captured = with_everything(checked(board, machine_type, Accelerator::Tcg));
        captured.spec.network = Network::None;
        captured.spec.memory = MemoryBacking::Shared { file: "/s/a,\"b\"".into() };
        captured.spec.unplugged_nic = true;
        let mut restored = captured.clone();
        restored.spec.memory = MemoryBacking::Private { file: "/s/a,\"b\"".into() };
        let shared = r#"-object {"id":"ram0","mem-path":"/s/a,\"b\"","qom-type":"memory-backend-file","share":true,"size":268435456}"#;
        let private = shared.replace("true", "false");
        assert_eq!(differences(&captured, &restored), [(shared.to_owned(), private.clone())]);
        restored.reads_memory_only = true;
        let read_only = r#"-object {"id":"ram0","mem-path":"/s/a,\"b\"","qom-type":"memory-backend-file","readonly":true,"rom":"off","share":false,"size":268435456}"#;
        assert_eq!(differences(&captured, &restored), [(shared.to_owned(), read_only.to_owned())]);
        restored.spec.restore =
            Some(RestoreState { state_file: "/s/state".into(), scope: StateScope::Devices });
        let (captured, restored) = (text(&captured), text(&restored));
        assert!(captured.lines().next().unwrap().ends_with(",memory-backend=ram0"));
        assert!(
            captured.contains("\n-device virtio-net-pci,id=net0,mac=52:54:00:00:00:01,romfile=,addr=0x5\n")
        );
        assert!(!captured.contains("-netdev") && !captured.contains("-incoming"));
        assert!(restored.ends_with("\n-incoming defer"));
        assert!(!["-kernel", "-initrd", "-append"].iter().any(|option| restored.contains(option)));
    }
}

#[test]
fn a_network_device_has_its_place_with_and_without_a_backend() {
    let mut with = with_everything(checked(Board::Pc, "pc-i440fx-7.2", Accelerator::Tcg));
    with.spec.unplugged_nic = true;
    let mut without = with.clone();
    without.spec.network = Network::None;
    let devices = |checked| {
        text(checked)
            .lines()
            .filter(|line| line.starts_with("-device"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let (with, without) = (devices(&with), devices(&without));
    assert_eq!(with.len(), without.len());
    for (with, without) in with.iter().zip(&without) {
        assert_eq!(&with.replace(",netdev=user0", ""), without);
    }
}

#[test]
fn kvm_takes_the_host_s_processor() {
    for (board, machine_type) in
        [(Board::Pc, "pc-i440fx-7.2"), (Board::Q35, "pc-q35-7.2"), (Board::Microvm, "microvm")]
    {
        let text = text(&checked(board, machine_type, Accelerator::Kvm));
        assert!(text.contains("\n-accel kvm\n-cpu host\n"), "{text}");
        assert!(!text.contains("tcg"), "{text}");
    }
}

#[test]
fn a_disk_s_path_cannot_leave_its_place() {
    let mut odd = checked(Board::Pc, "pc-i440fx-7.2", Accelerator::Tcg);
    let path = r#"/m/a,b="c" d:é,readonly=off.raw"#;
    odd.spec.disks.push(Disk {
        path: path.into(),
        format: DiskFormat::Raw,
        read_only: true,
        serial: "root".parse().unwrap(),
    });
    let args = argv(&odd);
    let at = args.iter().position(|word| word == "-blockdev").unwrap();
    let json: serde_json::Value = serde_json::from_str(args[at + 1].to_str().unwrap()).unwrap();
    assert_eq!(json["file"]["filename"], path);
    assert_eq!(json["read-only"], true);
}

#[test]
fn an_overlay_s_backing_file_is_named_and_only_read() {
    let mut checked = checked(Board::Pc, "pc-i440fx-7.2", Accelerator::Tcg);
    checked.spec.disks.push(Disk {
        path: "/m/disk.qcow2".into(),
        format: DiskFormat::Qcow2Over { backing: "/s/json:{\"x\"}".into() },
        read_only: false,
        serial: "root".parse().unwrap(),
    });
    let args = argv(&checked);
    let at = args.iter().position(|word| word == "-blockdev").unwrap();
    let json: serde_json::Value = serde_json::from_str(args[at + 1].to_str().unwrap()).unwrap();
    assert_eq!((&json["driver"], &json["read-only"]), (&"qcow2".into(), &false.into()));
    let backing = &json["backing"];
    assert_eq!((&backing["driver"], &backing["read-only"]), (&"raw".into(), &true.into()));
    assert_eq!(backing["file"]["filename"], "/s/json:{\"x\"}");
    assert_eq!(backing["file"]["read-only"], true);
}
