//! The doctor: what this host has and lacks, and what mends each lack. Facts only; words are the caller's.

use crate::{Engine, EngineResult};
use kiln_build::HostFacts;
use kiln_core::Arch;
use kiln_core::text::chain;
use kiln_store::StoreError;
use kiln_sys::kvm::KvmVerdict;
use kiln_sys::{copy, fs, process};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Fine.
    Ok,
    /// Works, but less well than it could.
    Warn,
    /// Something kiln does will fail.
    Fail,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// How it came out.
    pub health: Health,
    /// What was found.
    pub detail: String,
    /// The command or step that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// Free space below which a bake of a small Debian image fails, in bytes.
const SPACE_LOW: u64 = 2 << 30;

/// A program, the Debian package that brings it, and what is impossible without it.
struct Program {
    name: &'static str,
    package: &'static str,
    purpose: &'static str,
    needed: bool,
}

impl Engine {
    /// Checks the host.
    pub fn doctor(&self) -> EngineResult<Vec<Finding>> {
        let mut findings = Vec::new();
        findings.push(self.check_qemu());
        findings.push(self.check_kvm()?);
        for program in programs() {
            findings.push(self.check_program(&program));
        }
        findings.push(check_firmware());
        findings.push(self.check_space()?);
        findings.push(self.check_reflink()?);
        findings.push(self.check_protection()?);
        findings.push(self.check_records()?);
        findings.extend(self.check_snapshots()?);
        Ok(findings)
    }

    fn check_qemu(&self) -> Finding {
        let arch = Arch::host().unwrap_or(Arch::X86_64);
        let name = crate::supervisor::program_of(arch);
        let package = if arch == Arch::Aarch64 { "qemu-system-arm" } else { "qemu-system-x86" };
        let version = self
            .settings
            .toolbox
            .find(name)
            .and_then(|tool| tool.arg("--version").run(&self.cancel, &mut |_| ()));
        match version {
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout);
                let detail = kiln_core::text::clip(text.lines().next().unwrap_or_default());
                Finding { check: name.to_owned(), health: Health::Ok, detail, fix: None }
            }
            Err(error) => Finding {
                check: name.to_owned(),
                health: Health::Fail,
                detail: format!("machines cannot be started: {error}"),
                fix: Some(install(package)),
            },
        }
    }

    fn check_kvm(&self) -> EngineResult<Finding> {
        let (health, detail, fix) = match self.kvm_verdict()? {
            KvmVerdict::Native { .. } => (Health::Ok, "hardware virtualization works".to_owned(), None),
            KvmVerdict::Emulated { .. } => (
                Health::Warn,
                "/dev/kvm opens but interprets guest code; machines use software emulation, some 10× slower"
                    .to_owned(),
                Some(
                    "use a host with hardware virtualization, or nested virtualization switched on"
                        .to_owned(),
                ),
            ),
            KvmVerdict::Unavailable { reason } => {
                let fix = if reason.contains("may not be opened") {
                    "sudo usermod -aG kvm $USER, then log in again".to_owned()
                } else {
                    "sudo modprobe kvm_intel || sudo modprobe kvm_amd, or switch virtualization on in the firmware"
                        .to_owned()
                };
                (Health::Warn, format!("{reason}; machines use software emulation"), Some(fix))
            }
            _ => (Health::Warn, "unknown".to_owned(), None),
        };
        Ok(Finding { check: "/dev/kvm".to_owned(), health, detail, fix })
    }

    fn check_program(&self, program: &Program) -> Finding {
        let check = program.name.to_owned();
        match self.settings.toolbox.find(program.name) {
            Ok(tool) => {
                Finding { check, health: Health::Ok, detail: tool.program().display().to_string(), fix: None }
            }
            Err(_) => Finding {
                check,
                health: if program.needed { Health::Fail } else { Health::Warn },
                detail: format!("missing: {}", program.purpose),
                fix: Some(install(program.package)),
            },
        }
    }

    fn check_space(&self) -> EngineResult<Finding> {
        let space = fs::space(self.store.root())?;
        let free = kiln_core::ByteSize::from_bytes(space.available).human();
        let low = space.available < SPACE_LOW;
        Ok(Finding {
            check: "space".to_owned(),
            health: if low { Health::Warn } else { Health::Ok },
            detail: format!("{free} free in {}", self.store.root().display()),
            fix: low
                .then(|| "kiln rm what is not needed, or set KILN_HOME to a larger file system".to_owned()),
        })
    }

    fn check_reflink(&self) -> EngineResult<Finding> {
        let staging = self.store.stage("checking the file system")?;
        let from = fs::create_new(&staging.path().join("from"))?;
        let to_path = staging.path().join("to");
        let to = fs::create_new(&to_path)?;
        let name = fs::file_system_name(self.store.root())?;
        let works = copy::reflink(&from, &to, &to_path)?;
        Ok(Finding {
            check: "file system".to_owned(),
            health: if works { Health::Ok } else { Health::Warn },
            detail: if works {
                format!("{name}: private disks share their blocks")
            } else {
                format!("{name} has no reflinks: each machine's disk is a sparse copy")
            },
            fix: (!works).then(|| "put KILN_HOME on XFS or btrfs".to_owned()),
        })
    }

    fn check_protection(&self) -> EngineResult<Finding> {
        let protect = self.store.protect();
        let (health, detail) = match self.store.try_protect(protect) {
            Ok(found) => (Health::Ok, format!("{found} for new artifacts, by the setting {protect}")),
            Err(StoreError::Protect(error)) => (
                Health::Fail,
                format!("no artifact can be stored by the setting {protect}: {}", chain(&error)),
            ),
            Err(error) => return Err(error.into()),
        };
        let fix = (health == Health::Fail).then(|| "kiln init --protect auto".to_owned());
        Ok(Finding { check: "protection".to_owned(), health, detail, fix })
    }

    /// Looks whether machines can begin as the snapshots that builds made; none where there are no such snapshots, or no
    /// machine monitor, which is told already.
    fn check_snapshots(&self) -> EngineResult<Option<Finding>> {
        if self.qemu(Arch::host().unwrap_or(Arch::X86_64)).is_err() {
            return Ok(None);
        }
        let (stale, all) = self.stale_snapshots(&crate::Silent)?;
        let finding = |health, detail, fix| Finding { check: "snapshots".to_owned(), health, detail, fix };
        Ok(match stale.as_slice() {
            _ if all == 0 => None,
            [] => {
                let detail = "those that builds made fit this host".to_owned();
                Some(finding(Health::Ok, detail, None))
            }
            [(revision, reason), more @ ..] => {
                let others = if more.is_empty() { String::new() } else { format!("; {} more", more.len()) };
                let detail = format!("machines of {} boot, not restored: {reason}{others}", revision.short());
                Some(finding(Health::Warn, detail, Some("kiln rewarm --all".to_owned())))
            }
        })
    }

    fn check_records(&self) -> EngineResult<Finding> {
        let mut damaged: Vec<String> = Vec::new();
        for entry in self.store.tags()? {
            if entry.record.is_err() {
                damaged.push(format!("{}:{}", entry.template, entry.tag));
            }
        }
        for id in self.store.revision_ids()? {
            if self.store.revision(&id).is_err() {
                damaged.push(id.short());
            }
        }
        for (id, entry) in self.store.machines()? {
            if entry.is_err() {
                damaged.push(id.to_string());
            }
        }
        Ok(Finding {
            check: "records".to_owned(),
            health: if damaged.is_empty() { Health::Ok } else { Health::Fail },
            detail: if damaged.is_empty() {
                "all tags, revisions and machines can be read".to_owned()
            } else {
                format!("damaged: {}", damaged.join(", "))
            },
            fix: (!damaged.is_empty()).then(|| "kiln show NAME says what is wrong with each".to_owned()),
        })
    }
}

fn check_firmware() -> Finding {
    let check = "UEFI firmware".to_owned();
    match HostFacts::firmware_of(Arch::host().unwrap_or(Arch::X86_64)) {
        Some(path) => Finding { check, health: Health::Ok, detail: path.display().to_string(), fix: None },
        None => Finding {
            check,
            health: Health::Warn,
            detail: "missing: disk images that only their own boot loader starts cannot be built".to_owned(),
            fix: (Arch::host() == Some(Arch::X86_64)).then(|| install("ovmf")),
        },
    }
}

fn install(package: &str) -> String {
    format!("sudo apt-get install -y --no-install-recommends {package}")
}

fn programs() -> Vec<Program> {
    let debian = "the source `debian` cannot be built";
    let mut programs = vec![
        Program { name: "mke2fs", package: "e2fsprogs", purpose: "no template can be built", needed: true },
        Program { name: "debugfs", package: "e2fsprogs", purpose: "no template can be built", needed: true },
        Program { name: "tune2fs", package: "e2fsprogs", purpose: "no template can be built", needed: true },
        Program {
            name: "tar",
            package: "tar",
            purpose: "the sources `tar` and `debian` cannot be built",
            needed: true,
        },
        Program {
            name: "qemu-img",
            package: "qemu-utils",
            purpose: "running machines with an overlay as their disk cannot be captured",
            needed: false,
        },
        Program { name: "mmdebstrap", package: "mmdebstrap", purpose: debian, needed: false },
        Program { name: "apt-get", package: "apt", purpose: debian, needed: false },
        Program { name: "dpkg-deb", package: "dpkg", purpose: debian, needed: false },
        Program { name: "unshare", package: "util-linux", purpose: debian, needed: false },
        Program {
            name: "nix",
            package: "nix-bin",
            purpose: "the source `nix` cannot be built",
            needed: false,
        },
        Program {
            name: "buildah",
            package: "buildah",
            purpose: "the source `dockerfile` cannot be built, unless podman or docker is there",
            needed: false,
        },
        Program {
            name: "mkfs.erofs",
            package: "erofs-utils",
            purpose: "templates with an EROFS root cannot be built",
            needed: false,
        },
        Program {
            name: "mksquashfs",
            package: "squashfs-tools",
            purpose: "templates with a SquashFS root cannot be built",
            needed: false,
        },
        Program { name: "ssh", package: "openssh-client", purpose: "kiln ssh cannot be used", needed: false },
        Program {
            name: "ssh-keygen",
            package: "openssh-client",
            purpose: "kiln has no SSH key of its own, and machines let in the user's only",
            needed: false,
        },
        Program {
            name: "rpm",
            package: "rpm",
            purpose: "RPM packages of two revisions cannot be compared",
            needed: false,
        },
    ];
    if !process::is_root() {
        let owners = "owners and devices cannot be kept without root";
        programs.push(Program { name: "fakeroot", package: "fakeroot", purpose: owners, needed: true });
        programs.push(Program { name: "newuidmap", package: "uidmap", purpose: debian, needed: false });
    }
    programs
}
