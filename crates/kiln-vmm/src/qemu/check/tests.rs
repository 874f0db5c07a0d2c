use super::*;
use crate::snapshot::{MemoryBacking, RestoreState, StateScope};
use crate::spec::{ChannelName, DiskFormat, Mac};
use crate::vmm::{CaptureSupport, Version};
use kiln_core::machine::Forward;
use kiln_core::size::ByteSize;
use kiln_core::variant::MachineShape;
use kiln_sys::kvm::KvmVerdict;
use kiln_sys::tool::ScratchDir;

struct Fixture {
    dir: ScratchDir,
    spec: MachineSpec,
    caps: Capabilities,
}

fn touch(path: &Path, len: u64) {
    fs::create_new(path).unwrap().set_len(len).unwrap();
}

impl Fixture {
    fn kernel(&mut self) -> &mut crate::KernelBoot {
        match &mut self.spec.boot {
            Boot::Kernel(boot) => boot,
            Boot::Firmware { .. } => panic!("no kernel"),
        }
    }
}

fn fixture() -> Fixture {
    let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
    let kernel = dir.path().join("vmlinux");
    touch(&kernel, 64);
    let support = |board: Board, disks_max| BoardSupport {
        board,
        machine_type: machine_type(board).to_owned(),
        vcpus_max: 8,
        disks_max,
    };
    let spec = MachineSpec {
        shape: MachineShape::default(),
        arch: Arch::X86_64,
        boot: Boot::elf(kernel),
        disks: Vec::new(),
        network: Network::None,
        mac: Mac::local([0, 0, 1]),
        accelerator: crate::AcceleratorChoice::Auto,
        channel: ChannelName::default(),
        memory: MemoryBacking::Anonymous,
        unplugged_nic: false,
        restore: None,
    };
    let caps = Capabilities {
        program: "/usr/bin/qemu-system-x86_64".into(),
        version: Version { major: 7, minor: 2, micro: 22 },
        arch: Arch::X86_64,
        boards: vec![support(Board::Pc, 2), support(Board::Microvm, 1)],
        has_kvm: true,
        kvm: KvmVerdict::Emulated { rate: 1_100_000 },
        tsc_khz: None,
        capture: Some(CaptureSupport { reads_memory_only: false }),
        host_cpu: String::new(),
    };
    Fixture { dir, spec, caps }
}

impl Fixture {
    fn check(&self) -> Result<CheckedSpec, SpecRejected> {
        check("qemu", &self.spec, &self.caps)
    }
    fn refusal(&self) -> String {
        self.check().unwrap_err().to_string()
    }
    fn disk(&mut self, name: &str, len: u64) {
        let path = self.dir.path().join(name);
        touch(&path, len);
        let serial = name.parse().unwrap();
        self.spec.disks.push(Disk { path, format: DiskFormat::Raw, read_only: false, serial });
    }
}

#[test]
fn a_plain_machine_passes_and_says_why_it_is_emulated() {
    let checked = fixture().check().unwrap();
    assert_eq!(checked.accelerator(), Accelerator::Tcg);
    assert!(checked.accelerator_reason().unwrap().contains("interprets"));
    assert_eq!(checked.machine_type(), "pc-i440fx-7.2");
}

#[test]
fn shape_arch_and_board_are_refused_by_name() {
    let mut f = fixture();
    f.spec.shape.memory = ByteSize::from_mib(1);
    assert!(f.refusal().starts_with("memory is 1M"));
    let mut f = fixture();
    f.spec.arch = Arch::Aarch64;
    assert_eq!(f.refusal(), "arch is aarch64: this machine monitor runs x86_64 guests");
    let mut f = fixture();
    f.spec.shape.board = Board::Q35;
    assert_eq!(f.refusal(), "board is q35: qemu 7.2.22 has no machine type `pc-q35-7.2`");
    f.spec.shape.board = Board::Microvm;
    assert!(f.refusal().starts_with("board is microvm: without KVM"));
    f.caps.tsc_khz = Some(2_300_000);
    assert!(f.check().unwrap().command_line().ends_with("tsc_early_khz=2300000"));
    let mut f = fixture();
    f.spec.shape.vcpus = 9;
    assert_eq!(f.refusal(), "vcpus is 9: board pc takes at most 8");
}

#[test]
fn disks_are_counted_named_and_measured() {
    let mut f = fixture();
    for name in ["a", "b", "c"] {
        f.disk(name, 512);
    }
    assert_eq!(f.refusal(), "3 disks: board pc takes at most 2");
    f.spec.disks.pop();
    assert!(f.check().is_ok());
    f.spec.disks[1].serial = "a".parse().unwrap();
    assert_eq!(f.refusal(), "two disks have the serial `a`");
    let mut f = fixture();
    f.disk("odd", 513);
    assert!(f.refusal().contains("has 513 bytes"));
    let mut f = fixture();
    f.disk("empty", 0);
    assert!(matches!(f.check(), Err(SpecRejected::DiskLength { len: 0, .. })));
}

#[test]
fn files_must_be_there_and_have_names_that_can_be_said() {
    let mut f = fixture();
    f.kernel().initrd = Some(f.dir.path().join("missing"));
    assert_eq!(f.refusal(), "initrd cannot be used");
    f.kernel().initrd = Some(f.dir.path().to_owned());
    assert!(matches!(f.check(), Err(SpecRejected::File { what: "initrd", .. })));
    let mut f = fixture();
    f.kernel().format = ArtifactFormat::Cpio;
    assert_eq!(f.refusal(), "kernel is of format `cpio`: elf and bzimage can be started");
    let mut f = fixture();
    let path = f.dir.path().join("a\nb");
    touch(&path, 1);
    f.spec.boot = Boot::elf(path);
    assert!(matches!(f.check(), Err(SpecRejected::Path { what: "kernel", .. })));
    let mut f = fixture();
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"a\xff");
    let path = f.dir.path().join(name);
    touch(&path, 1);
    f.spec.boot = Boot::elf(path);
    assert!(matches!(f.check(), Err(SpecRejected::Path { what: "kernel", .. })));
}

#[test]
fn firmware_is_for_boards_that_have_it_and_looked_at_also_in_a_restore() {
    let mut f = fixture();
    let path = f.dir.path().join("OVMF.fd");
    touch(&path, 2 << 20);
    f.spec.boot = Boot::Firmware { file: path.clone() };
    assert_eq!(f.check().unwrap().command_line(), "");
    f.spec.shape.board = Board::Microvm;
    assert_eq!(f.refusal(), "boot is firmware: board microvm has none; pc and q35 do");
    f.spec.shape.board = Board::Pc;
    for len in [0, (64 << 10) + 1, 16 << 20] {
        fs::open_rw(&path).unwrap().set_len(len).unwrap();
        assert!(f.refusal().ends_with("multiples of 64 KiB up to 8 MiB are possible"));
    }
    let state_file = f.dir.path().join("state");
    touch(&state_file, 1);
    f.spec.restore = Some(RestoreState { state_file, scope: StateScope::Machine });
    f.spec.boot = Boot::Firmware { file: "/no/such/firmware".into() };
    assert_eq!(f.refusal(), "firmware cannot be used");
}

#[test]
fn forwards_are_counted_and_unique() {
    let forward = |host, guest| Forward { host, guest };
    let mut f = fixture();
    let user = |forwards| Network::User { forwards, outbound: false };
    f.spec.network = user(vec![forward(8080, 80), forward(8080, 81)]);
    assert_eq!(f.refusal(), "port forward 8080:81 has port 0 or the host port of another");
    f.spec.network = user(vec![forward(0, 80)]);
    assert!(matches!(f.check(), Err(SpecRejected::Forward(_))));
    let many = u16::try_from(FORWARDS_MAX).unwrap() + 1;
    f.spec.network = user((1..=many).map(|port| forward(port, 80)).collect());
    assert_eq!(f.refusal(), "65 port forwards: at most 64 are possible");
}

#[test]
fn memory_in_a_file_is_refused_where_it_cannot_be_captured_or_restored() {
    let memory = |f: &Fixture, len| {
        let file = f.dir.path().join(format!("memory-{len}"));
        if !fs::exists(&file).unwrap() {
            touch(&file, len);
        }
        file
    };
    let mut f = fixture();
    f.spec.memory = MemoryBacking::Shared { file: memory(&f, 0) };
    f.check().unwrap();
    f.spec.network = Network::User { forwards: Vec::new(), outbound: true };
    assert!(f.refusal().starts_with("network is user: a machine that is to be captured has no network"));
    f.spec.network = Network::None;
    f.spec.shape.board = Board::Microvm;
    f.caps.tsc_khz = Some(2_300_000);
    assert!(f.refusal().starts_with("board is microvm: a machine on it cannot be captured"));
    f.spec.shape.board = Board::Pc;
    f.caps.capture = None;
    assert_eq!(f.refusal(), "memory is shared: qemu 7.2.22 cannot capture machines");
    f.caps.capture = Some(CaptureSupport { reads_memory_only: true });
    let state_file = f.dir.path().join("state");
    touch(&state_file, 1);
    f.spec.restore = Some(RestoreState { state_file, scope: StateScope::Machine });
    f.spec.network = Network::User { forwards: Vec::new(), outbound: true };
    f.check().unwrap();
    f.spec.memory = MemoryBacking::Anonymous;
    f.check().unwrap();
    f.spec.memory = MemoryBacking::Private { file: memory(&f, f.spec.shape.memory.bytes()) };
    assert!(f.refusal().starts_with("memory is private: a state that holds the memory"));
    f.spec.network = Network::None;
    f.spec.memory = MemoryBacking::Shared { file: memory(&f, 0) };
    f.spec.restore.as_mut().unwrap().scope = StateScope::Devices;
    assert!(f.refusal().starts_with("memory is shared: a restored machine may only read"));
    f.spec.memory = MemoryBacking::Anonymous;
    assert!(f.refusal().starts_with("memory is anonymous: a restored machine has"));
    f.spec.memory = MemoryBacking::Private { file: memory(&f, 4096) };
    assert!(f.refusal().ends_with("has 4096 bytes, and 268435456 are expected"));
    f.spec.memory = MemoryBacking::Private { file: memory(&f, f.spec.shape.memory.bytes()) };
    f.spec.network = Network::User { forwards: Vec::new(), outbound: true };
    f.spec.boot = Boot::elf("/no/such/kernel");
    assert!(f.check().unwrap().reads_memory_only);
    f.spec.restore = None;
    assert_eq!(f.refusal(), "memory is private: a private memory file needs a state to restore");
    let mut f = fixture();
    f.spec.memory = MemoryBacking::Shared { file: memory(&f, 0) };
    f.spec.shape.memory = ByteSize::from_mib(1 << 20);
    // A machine of a tebibyte, where the file system has less; otherwise there is nothing to refuse.
    match f.check() {
        Err(SpecRejected::MemorySpace { needed, available, .. }) => assert!(available < needed),
        other => assert!(matches!(other, Ok(_) | Err(SpecRejected::Shape(_))), "{other:?}"),
    }
}

#[test]
fn an_explicit_kvm_is_refused_where_it_is_not_native() {
    let mut f = fixture();
    f.spec.accelerator = crate::AcceleratorChoice::Kvm;
    assert!(f.refusal().starts_with("accelerator `kvm` is not usable: /dev/kvm interprets"));
    f.caps.kvm = KvmVerdict::Native { rate: 400_000_000 };
    assert_eq!(f.check().unwrap().accelerator(), Accelerator::Kvm);
}
