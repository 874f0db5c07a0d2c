//! Progress, as typed events. The caller decides what people see of it.

use std::time::{Duration, Instant};

/// A step of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// Inputs are checked.
    Check,
    /// Names of the outside world are looked up.
    Resolve,
    /// Packages are installed into a root file system.
    Packages,
    /// The kernel's package is fetched.
    KernelPackage,
    /// An image is fetched: its layers from a registry, or the whole of it.
    Fetch,
    /// The layers of an image are uncompressed and overlaid.
    Layers,
    /// Nix builds a flake.
    Flake,
    /// A builder makes an image of a Dockerfile.
    Image,
    /// A tar file is unpacked.
    Unpack,
    /// The kernel is read and uncompressed.
    Kernel,
    /// The initramfs is written.
    Initramfs,
    /// The root disk is written.
    Disk,
}

impl Step {
    /// Returns a short name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Resolve => "resolve",
            Self::Packages => "packages",
            Self::KernelPackage => "kernel-package",
            Self::Fetch => "fetch",
            Self::Layers => "layers",
            Self::Flake => "flake",
            Self::Image => "image",
            Self::Unpack => "unpack",
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
            Self::Disk => "disk",
        }
    }
}

/// Something that happened in a build.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildEvent {
    /// A step began. Steps may overlap.
    StepStarted {
        /// Which.
        step: Step,
        /// What it works on.
        detail: String,
    },
    /// A program that works for a step said something.
    StepOutput {
        /// Which.
        step: Step,
        /// One line of it.
        line: String,
    },
    /// A step ended well.
    StepDone {
        /// Which.
        step: Step,
        /// The time it took, in milliseconds.
        elapsed_ms: u64,
        /// What came of it.
        detail: String,
    },
    /// So much of a file is there.
    Bytes {
        /// The bytes that are there.
        have: u64,
        /// All, where that is known.
        total: Option<u64>,
    },
    /// Something worth knowing.
    Note {
        /// The fact.
        text: String,
    },
}

/// Receives the events of a build, from any thread.
pub trait Reporter: Send + Sync {
    /// Takes an event.
    fn event(&self, event: BuildEvent);
}

/// A reporter that drops everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Reporter for Quiet {
    fn event(&self, _event: BuildEvent) {}
}

/// A running step: told as started when made, as done by [`Running::done`].
pub(crate) struct Running<'a> {
    reporter: &'a dyn Reporter,
    step: Step,
    since: Instant,
}

impl<'a> Running<'a> {
    pub(crate) fn start(reporter: &'a dyn Reporter, step: Step, detail: impl Into<String>) -> Self {
        reporter.event(BuildEvent::StepStarted { step, detail: detail.into() });
        Self { reporter, step, since: Instant::now() }
    }

    /// Returns what a tool's lines go to.
    pub(crate) fn lines(&self) -> impl FnMut(&str) + Send + use<'a> {
        let (reporter, step) = (self.reporter, self.step);
        move |line| {
            if !line.trim().is_empty() {
                reporter.event(BuildEvent::StepOutput { step, line: line.to_owned() });
            }
        }
    }

    pub(crate) fn done(self, detail: impl Into<String>) {
        let elapsed: Duration = self.since.elapsed();
        let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        self.reporter.event(BuildEvent::StepDone { step: self.step, elapsed_ms, detail: detail.into() });
    }
}
