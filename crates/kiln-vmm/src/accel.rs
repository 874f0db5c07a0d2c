//! The choice between hardware virtualization and emulation.
//!
//! A `/dev/kvm` that opens proves nothing: some hosts interpret a guest's kernel code behind it. What counts is the
//! verdict of [`kiln_sys::kvm::probe_here`], asked in a [child](ask_child) so that a stuck call cannot stop the
//! caller, and kept under a [key](cache_key) that changes with the host's start and kernel.

use kiln_core::arch::Arch;
use kiln_sys::kvm::KvmVerdict;
use kiln_sys::process::{Bond, Child, Exit, Output, Spawn};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// Time the child has to answer.
pub const PROBE_WITHIN: Duration = Duration::from_secs(3);
/// Time a killed child has to go away before it is left alone.
const KILL_WITHIN: Duration = Duration::from_millis(500);
/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 4096;

/// What executes a guest's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Accelerator {
    /// The processor, by the kernel's KVM.
    Kvm,
    /// The monitor's own translator.
    Tcg,
}

impl Accelerator {
    /// Returns the name of the accelerator.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which accelerator a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AcceleratorChoice {
    /// KVM where it runs guests natively, else TCG.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// TCG.
    Tcg,
}

impl AcceleratorChoice {
    /// Returns the word users write.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl fmt::Display for AcceleratorChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no accelerator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown accelerator `{0}`: known are auto, kvm and tcg")]
pub struct UnknownAccelerator(String);

impl FromStr for AcceleratorChoice {
    type Err = UnknownAccelerator;

    fn from_str(text: &str) -> Result<Self, UnknownAccelerator> {
        [Self::Auto, Self::Kvm, Self::Tcg]
            .into_iter()
            .find(|choice| choice.as_str() == text)
            .ok_or_else(|| UnknownAccelerator(kiln_core::text::clip(text)))
    }
}

/// What the choice depends on besides the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccelFacts {
    /// The host's architecture, where it is a known one.
    pub host: Option<Arch>,
    /// The guest's architecture.
    pub guest: Arch,
    /// Whether the monitor was built with KVM.
    pub vmm_has_kvm: bool,
}

/// The outcome of a choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The accelerator.
    pub accelerator: Accelerator,
    /// Why it is not KVM, where the user left the choice open: one line.
    pub reason: Option<String>,
}

/// KVM was asked for and cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("accelerator `kvm` is not usable: {reason}")]
pub struct AccelRefused {
    /// Why.
    pub reason: String,
}

/// Chooses the accelerator. KVM is used only where it is native; an explicit `kvm` never becomes something else.
///
/// # Errors
/// When KVM was asked for and is not usable.
pub fn choose(
    choice: AcceleratorChoice,
    verdict: &KvmVerdict,
    facts: &AccelFacts,
) -> Result<Chosen, AccelRefused> {
    let chosen = |accelerator, reason| Ok(Chosen { accelerator, reason });
    match (choice, obstacle(verdict, facts)) {
        (AcceleratorChoice::Tcg, _) => chosen(Accelerator::Tcg, None),
        (_, None) => chosen(Accelerator::Kvm, None),
        (AcceleratorChoice::Auto, reason) => chosen(Accelerator::Tcg, reason),
        (AcceleratorChoice::Kvm, Some(reason)) => Err(AccelRefused { reason }),
    }
}

fn obstacle(verdict: &KvmVerdict, facts: &AccelFacts) -> Option<String> {
    if facts.host != Some(facts.guest) {
        let host = facts.host.map_or("unknown", Arch::as_str);
        return Some(format!("the guest is {}, the host is {host}", facts.guest));
    }
    if !facts.vmm_has_kvm {
        return Some("the machine monitor was built without KVM".to_owned());
    }
    match verdict {
        KvmVerdict::Native { .. } => None,
        other => Some(other.to_string()),
    }
}

/// Returns the key under which a verdict may be kept: it changes with each start of the host and each kernel.
pub fn cache_key(boot_id: &str, kernel_release: &str) -> String {
    format!("kvm-1 {} {}", boot_id.trim(), kernel_release.trim())
}

/// Asks `program args…`, which prints the JSON of [`kiln_sys::kvm::probe_here`], for the verdict. Never fails: a child
/// that cannot answer within [`PROBE_WITHIN`] is a verdict too.
pub fn ask_child(program: &Path, args: &[OsString], env: &[(OsString, OsString)]) -> KvmVerdict {
    ask(program, args, env, PROBE_WITHIN).unwrap_or_else(|reason| KvmVerdict::Unavailable { reason })
}

fn ask(
    program: &Path,
    args: &[OsString],
    env: &[(OsString, OsString)],
    within: Duration,
) -> Result<KvmVerdict, String> {
    let broken = |error: &dyn fmt::Display| format!("the probe of /dev/kvm could not be run: {error}");
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(|error| broken(&error))?;
    let spawn = Spawn {
        program,
        args,
        env,
        current_dir: Path::new("/"),
        stdout: Output::Pipe,
        stderr: File::from(null),
        bond: Bond::DiesWithParent,
    };
    let mut child = Child::spawn(spawn).map_err(|error| broken(&error))?;
    // A child that is stuck in the kernel does not die of the signal and must not be waited for without end.
    let exit = match child.wait_within(within).map_err(|error| broken(&error))? {
        Some(exit) => exit,
        None => {
            child.signal(Signal::KILL).map_err(|error| broken(&error))?;
            child.wait_within(KILL_WITHIN).map_err(|error| broken(&error))?;
            return Err(format!("the probe of /dev/kvm did not end within {} ms", within.as_millis()));
        }
    };
    match exit {
        Exit::Code(0) => {}
        Exit::Code(code) => return Err(format!("the probe of /dev/kvm ended with exit code {code}")),
        Exit::Signal(signal) => return Err(format!("the probe of /dev/kvm was killed by signal {signal}")),
    }
    let mut answer = Vec::new();
    if let Some(pipe) = child.stdout() {
        pipe.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).map_err(|error| broken(&error))?;
    }
    serde_json::from_slice(&answer).map_err(|error| broken(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: AccelFacts = AccelFacts { host: Some(Arch::X86_64), guest: Arch::X86_64, vmm_has_kvm: true };

    fn sh(script: &str, within: Duration) -> Result<KvmVerdict, String> {
        ask(Path::new("/bin/sh"), &["-c".into(), script.into()], &[], within)
    }

    #[test]
    fn auto_takes_kvm_only_where_it_is_native() {
        let native = KvmVerdict::Native { rate: 400_000_000 };
        let emulated = KvmVerdict::Emulated { rate: 1_100_000 };
        let missing = KvmVerdict::Unavailable { reason: "/dev/kvm does not exist".to_owned() };
        let auto = |verdict| choose(AcceleratorChoice::Auto, verdict, &FACTS).unwrap();
        assert_eq!(auto(&native), Chosen { accelerator: Accelerator::Kvm, reason: None });
        assert_eq!(auto(&missing).reason.unwrap(), "/dev/kvm does not exist");
        let slow = auto(&emulated);
        assert_eq!(slow.accelerator, Accelerator::Tcg);
        assert!(slow.reason.unwrap().contains("1.1 million"));
        let foreign = AccelFacts { guest: Arch::Aarch64, ..FACTS };
        let reason = choose(AcceleratorChoice::Auto, &native, &foreign).unwrap().reason.unwrap();
        assert_eq!(reason, "the guest is aarch64, the host is x86_64");
        let without = AccelFacts { vmm_has_kvm: false, ..FACTS };
        assert_eq!(choose(AcceleratorChoice::Auto, &native, &without).unwrap().accelerator, Accelerator::Tcg);
    }

    #[test]
    fn an_explicit_choice_is_never_replaced() {
        let emulated = KvmVerdict::Emulated { rate: 1_100_000 };
        let refused = choose(AcceleratorChoice::Kvm, &emulated, &FACTS).unwrap_err();
        assert!(refused.to_string().starts_with("accelerator `kvm` is not usable: /dev/kvm "), "{refused}");
        let native = KvmVerdict::Native { rate: 400_000_000 };
        assert_eq!(choose(AcceleratorChoice::Kvm, &native, &FACTS).unwrap().accelerator, Accelerator::Kvm);
        let tcg = choose(AcceleratorChoice::Tcg, &native, &FACTS).unwrap();
        assert_eq!(tcg, Chosen { accelerator: Accelerator::Tcg, reason: None });
    }

    #[test]
    fn a_child_that_cannot_answer_is_a_verdict() {
        let within = Duration::from_secs(10);
        let answer = sh(r#"echo '{"verdict":"native","rate":100000000}'"#, within).unwrap();
        assert_eq!(answer, KvmVerdict::Native { rate: 100_000_000 });
        assert!(sh("echo nonsense", within).unwrap_err().contains("could not be run"));
        assert!(sh("exit 70", within).unwrap_err().contains("exit code 70"));
        assert!(sh("kill -9 $$", within).unwrap_err().contains("signal 9"));
        assert!(sh("sleep 1000", Duration::from_millis(50)).unwrap_err().contains("within 50 ms"));
        let missing = ask_child(Path::new("/no/such/program"), &[], &[]);
        assert!(matches!(missing, KvmVerdict::Unavailable { .. }));
    }

    #[test]
    fn the_key_changes_with_boot_and_kernel() {
        let key = cache_key("b1\n", "6.1");
        assert_eq!(key, "kvm-1 b1 6.1");
        assert_ne!(key, cache_key("b2", "6.1"));
        assert_ne!(key, cache_key("b1", "6.2"));
    }
}
