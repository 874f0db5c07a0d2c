//! The fake passes the suite that QEMU passes, and its scripts end as they say.

use crate::guest;
use kiln_core::machine::EndCause;
use kiln_sys::tool::ScratchDir;
use kiln_vmm::conformance::{self, Subject};
use kiln_vmm::fake::{Behaviour, CONSOLE_GREETING, FakeVmm};
use kiln_vmm::{MachineSpec, RuntimeDir, Vmm, VmmError, Waited};
use std::path::PathBuf;

struct Fake {
    vmm: FakeVmm,
    kernel: PathBuf,
}

impl Subject for Fake {
    fn vmm(&self) -> &dyn Vmm {
        &self.vmm
    }
    fn spec(&self) -> MachineSpec {
        guest::spec(&self.kernel)
    }
    fn greeting(&self) -> &str {
        CONSOLE_GREETING.trim()
    }
    fn kill(&self, pid: u32, signal: i32) {
        self.vmm.kill(pid, signal);
    }
}

fn fake(behaviour: Behaviour) -> (ScratchDir, Fake) {
    let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
    let kernel = guest::write(dir.path(), guest::After::WaitForButton, "unused");
    (dir, Fake { vmm: FakeVmm::new(behaviour), kernel })
}

fn cause(behaviour: Behaviour) -> EndCause {
    let (dir, fake) = fake(behaviour);
    let caps = fake.vmm.probe().unwrap();
    let spec = fake.vmm.check(&fake.spec(), &caps).unwrap();
    let mut machine = fake.vmm.launch(spec, &RuntimeDir::new(dir.path()).unwrap()).unwrap();
    let Waited::Ended(exit) = machine.wait(None, None).unwrap() else { panic!("it does not end") };
    assert_eq!(fake.vmm.launched(), 1);
    exit.cause(false)
}

#[test]
fn the_fake_conforms() {
    let (dir, fake) = fake(Behaviour::Boots);
    conformance::all(&fake, dir.path());
    assert!(fake.vmm.launched() >= conformance::TESTS.len());
}

#[test]
fn scripts_end_as_they_say() {
    assert_eq!(cause(Behaviour::PowersOff), EndCause::GuestShutdown);
    assert_eq!(cause(Behaviour::Killed { signal: 11 }), EndCause::VmmKilled { signal: 11 });
    let panic = EndCause::GuestPanic { message: "no init".to_owned() };
    assert_eq!(cause(Behaviour::Panics("no init".to_owned())), panic);
}

#[test]
fn a_monitor_that_dies_at_once_says_why() {
    let (dir, fake) = fake(Behaviour::DiesAtOnce { code: 1, words: "no memory".to_owned() });
    let caps = fake.vmm.probe().unwrap();
    let spec = fake.vmm.check(&fake.spec(), &caps).unwrap();
    let error = fake.vmm.launch(spec, &RuntimeDir::new(dir.path()).unwrap()).unwrap_err();
    assert!(matches!(error, VmmError::DiedAtStart { .. }));
    assert_eq!(error.to_string(), "the machine monitor ended at once: exit code 1; it said: no memory");
}
