//! QEMU's system emulator for x86-64 as a machine monitor.
//!
//! It is started without its defaults, in its own sandbox, with the machine's directory as working directory. Two
//! things run against the usual direction: QEMU *connects* to the control socket, so that its start needs no polling
//! and nobody else finds the socket later; and the guest's console comes out of QEMU's standard output, so that its
//! log can be capped. `docs/vmm.md` has the reasons for each flag.

mod argv;
mod check;
mod command_line;
mod fingerprint;
mod machine;
mod migrate;
mod probe;

use crate::fingerprint::MachineFingerprint;
use crate::runtime_dir::RuntimeDir;
use crate::spec::{CheckedSpec, MachineSpec, SpecRejected};
use crate::vmm::{Capabilities, Machine, Vmm, VmmError};
use kiln_sys::kvm::KvmVerdict;
use kiln_sys::{Tool, ToolError, Toolbox};

pub use argv::argv;
pub use command_line::COMMAND_LINE_BYTES_MAX;

/// The program's name.
const PROGRAM: &str = "qemu-system-x86_64";

/// Checks a machine by QEMU's rules on behalf of a monitor that follows them.
pub(crate) use check::check as check_for;
/// Describes a machine by QEMU's arguments on behalf of a monitor that follows its rules.
pub(crate) use fingerprint::fingerprint as fingerprint_for;
/// Returns what a QEMU with every board and without KVM can do.
pub(crate) use probe::capabilities_of_a_fake;

/// QEMU as a machine monitor.
#[derive(Debug, Clone)]
pub struct QemuVmm {
    toolbox: Toolbox,
    program: String,
    kvm: KvmVerdict,
}

impl QemuVmm {
    /// Takes the place where programs are found, and the verdict on `/dev/kvm`: see [`crate::accel`].
    pub fn new(toolbox: Toolbox, kvm: KvmVerdict) -> Self {
        Self { toolbox, program: PROGRAM.to_owned(), kvm }
    }

    /// Uses another program than `qemu-system-x86_64`.
    #[must_use]
    pub fn with_program(mut self, program: &str) -> Self {
        program.clone_into(&mut self.program);
        self
    }

    fn tool(&self) -> Result<Tool, VmmError> {
        self.toolbox.find(&self.program).map_err(|error| match error {
            ToolError::NotFound { name } => VmmError::NotFound { name },
            source => VmmError::Probe { name: self.program.clone(), source },
        })
    }
}

impl Vmm for QemuVmm {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn probe(&self) -> Result<Capabilities, VmmError> {
        probe::probe(self.tool()?, &self.program, &self.kvm)
    }

    fn check(&self, spec: &MachineSpec, caps: &Capabilities) -> Result<CheckedSpec, SpecRejected> {
        check_for(self.name(), spec, caps)
    }

    fn fingerprint(&self, spec: &CheckedSpec, caps: &Capabilities) -> MachineFingerprint {
        fingerprint_for(self.name(), spec, caps)
    }

    fn launch(&self, spec: CheckedSpec, dir: &RuntimeDir) -> Result<Box<dyn Machine>, VmmError> {
        let tool = self.tool()?;
        let machine = machine::QemuMachine::launch(tool.program(), self.toolbox.env(), &spec, dir)?;
        Ok(Box::new(machine))
    }
}
