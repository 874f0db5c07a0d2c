//! Virtual machine monitors behind one trait, and the machine lifecycle.
//!
//! A supervisor [probes](Vmm::probe) a monitor, has a [`MachineSpec`] [checked](Vmm::check) field by field,
//! [launches](Vmm::launch) it in a [`RuntimeDir`] and then waits on the [`Machine`] until that ends; what the end
//! means is [`VmmExit::cause`]. [`lifecycle`] says which phase follows from which event, without doing anything.

pub mod accel;
pub mod conformance;
pub mod console;
mod exit;
pub mod fake;
mod fingerprint;
pub mod lifecycle;
mod open_files;
pub mod qemu;
pub mod qmp;
mod runtime_dir;
mod snapshot;
mod spec;
mod vmm;

pub use accel::{Accelerator, AcceleratorChoice};
pub use exit::{ShutdownReason, StopStep, VmmExit};
pub use fake::FakeVmm;
pub use fingerprint::{Difference, MachineFingerprint};
pub use open_files::holds_open;
pub use qemu::QemuVmm;
pub use runtime_dir::{AGENT_SOCKET, CONSOLE_LOG, QMP_SOCKET, RuntimeDir, VMM_LOG};
pub use snapshot::{
    CaptureTarget, Captured, MemoryBacking, RestoreFailure, RestoreState, RestoreTimings, Saved, StateScope,
};
pub use spec::{
    Boot, ChannelName, CheckedSpec, Disk, DiskFormat, DiskSerial, InvalidChannelName, InvalidMac,
    InvalidSerial, KernelBoot, Mac, MachineSpec, SpecRejected,
};
pub use vmm::{BoardSupport, Capabilities, CaptureSupport, Machine, Stop, Version, Vmm, VmmError, Waited};
