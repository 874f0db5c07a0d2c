//! Which machines can have their memory in a file: those that can be captured, and those that are restored.

use super::file;
use crate::snapshot::{MemoryBacking, StateScope};
use crate::spec::{MachineSpec, SpecRejected};
use crate::vmm::Capabilities;
use kiln_core::machine::Network;
use kiln_core::variant::Board;
use kiln_sys::fs;

/// Refuses what does not go together.
pub(super) fn combination(
    vmm: &'static str,
    spec: &MachineSpec,
    caps: &Capabilities,
) -> Result<(), SpecRejected> {
    let memory = spec.memory.as_str();
    let refused = |reason| Err(SpecRejected::Memory { memory, reason });
    match (&spec.memory, spec.restore.as_ref().map(|restore| restore.scope)) {
        // What one version of a monitor saved, it loads, whatever its board.
        (MemoryBacking::Anonymous, None | Some(StateScope::Machine)) => return Ok(()),
        (MemoryBacking::Shared { .. }, None | Some(StateScope::Machine))
        | (MemoryBacking::Private { .. }, Some(StateScope::Devices)) => {}
        (MemoryBacking::Anonymous, Some(StateScope::Devices)) => {
            return refused("a restored machine has the captured one's memory file");
        }
        (MemoryBacking::Shared { .. }, Some(StateScope::Devices)) => {
            return refused("a restored machine may only read the captured one's memory file");
        }
        (MemoryBacking::Private { .. }, Some(StateScope::Machine)) => {
            return refused("a state that holds the memory is loaded into memory of the machine's own");
        }
        (MemoryBacking::Private { .. }, None) => {
            return refused("a private memory file needs a state to restore");
        }
    }
    if caps.capture.is_none() {
        return Err(SpecRejected::MemoryHere { memory, vmm, version: caps.version });
    }
    let board = spec.shape.board;
    if board == Board::Microvm {
        let reason = "a machine on it cannot be captured, because its type has no version";
        return Err(SpecRejected::BoardHere { board: board.as_str(), reason });
    }
    match (&spec.memory, &spec.network, &spec.restore) {
        (MemoryBacking::Shared { .. }, Network::User { .. }, None) => {
            Err(SpecRejected::NetworkCaptured { network: "user" })
        }
        _ => Ok(()),
    }
}

/// Makes the paths absolute and looks at the files.
pub(super) fn files(spec: &mut MachineSpec) -> Result<(), SpecRejected> {
    let needed = spec.shape.memory.bytes();
    let unusable = |source| SpecRejected::File { what: "memory", source };
    if let Some(restore) = &mut spec.restore {
        restore.state_file = file("state", &restore.state_file)?;
    }
    let (path, expected) = match &mut spec.memory {
        MemoryBacking::Anonymous => return Ok(()),
        MemoryBacking::Shared { file } => (file, 0),
        MemoryBacking::Private { file } => (file, needed),
    };
    *path = file("memory", path)?;
    let len = fs::metadata(path).map_err(unusable)?.len();
    if len != expected {
        return Err(SpecRejected::MemoryLength { path: path.clone(), len, expected });
    }
    if expected == 0 {
        let available = fs::space(path).map_err(unusable)?.available;
        if available < needed {
            return Err(SpecRejected::MemorySpace { path: path.clone(), needed, available });
        }
    }
    Ok(())
}
