//! Whether `/dev/kvm` can really run a guest, and the rate of this processor's time stamp counter.
//!
//! A device that opens, answers its version and even runs a tiny guest correctly proves nothing: some hosts interpret
//! a guest's kernel code, a thousand times slower than the processor. So the probe runs a counting loop in 64-bit
//! kernel mode and looks at its result and its speed. A call may get stuck on such hosts: ask from a child process
//! with a deadline, where that matters.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// Iterations a second from which a host runs guests natively.
pub const NATIVE_RATE_MIN: u64 = 50_000_000;

/// What `/dev/kvm` is good for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
#[non_exhaustive]
pub enum KvmVerdict {
    /// Guests run on the processor.
    Native {
        /// Iterations of the loop a second.
        rate: u64,
    },
    /// Guests run, far too slowly to be of use.
    Emulated {
        /// Iterations of the loop a second.
        rate: u64,
    },
    /// Guests do not run.
    Unavailable {
        /// Why.
        reason: String,
    },
}

impl KvmVerdict {
    /// Returns whether KVM is worth using.
    pub fn is_native(&self) -> bool {
        matches!(self, Self::Native { .. })
    }
}

impl fmt::Display for KvmVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millions = |rate: &u64| format!("{}.{} million", rate / 1_000_000, rate % 1_000_000 / 100_000);
        match self {
            Self::Native { rate } => {
                write!(f, "/dev/kvm runs guest kernels natively ({} loops a second)", millions(rate))
            }
            Self::Emulated { rate } => {
                write!(f, "/dev/kvm interprets guest kernels ({} loops a second)", millions(rate))
            }
            Self::Unavailable { reason } => f.write_str(reason),
        }
    }
}

/// What else the host says about virtualization, for reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmFacts {
    /// The processor's extension, `vmx` or `svm`, where it shows one.
    pub extension: Option<String>,
    /// The loaded modules of `kvm_intel`, `kvm_amd` and `kvm_pvm`.
    pub modules: Vec<String>,
}

/// The most bytes of `/proc/cpuinfo` that are read: about a kilobyte and a half for each of many processors.
const CPUINFO_BYTES_MAX: usize = 16 << 20;

/// Collects what the host says about virtualization without trying it.
pub fn facts() -> KvmFacts {
    let cpuinfo =
        crate::fs::read_text_limited(Path::new("/proc/cpuinfo"), CPUINFO_BYTES_MAX).unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let extension = flags.split_whitespace().find(|flag| matches!(*flag, "vmx" | "svm")).map(str::to_owned);
    let modules = ["kvm_intel", "kvm_amd", "kvm_pvm"]
        .into_iter()
        .filter(|module| crate::fs::exists(&Path::new("/sys/module").join(module)).unwrap_or(false))
        .map(str::to_owned)
        .collect();
    KvmFacts { extension, modules }
}

/// Runs the probe in this process. It usually takes a few milliseconds, half a second where guests are interpreted,
/// and for ever where a call gets stuck.
pub fn probe_here() -> KvmVerdict {
    match loop_guest::best_rate() {
        Ok(rate) if rate >= NATIVE_RATE_MIN => KvmVerdict::Native { rate },
        Ok(rate) => KvmVerdict::Emulated { rate },
        Err(reason) => KvmVerdict::Unavailable { reason },
    }
}

/// Measures the rate of the time stamp counter in kHz, where the processor has one that does not change its rate.
#[cfg(target_arch = "x86_64")]
pub fn tsc_khz() -> Option<u32> {
    use std::time::{Duration, Instant};
    const WINDOW: Duration = Duration::from_millis(5);
    let cpuinfo = crate::fs::read_text_limited(Path::new("/proc/cpuinfo"), CPUINFO_BYTES_MAX).ok()?;
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    if !flags.split_whitespace().any(|flag| flag == "constant_tsc") {
        return None;
    }
    // A pair of readings that is far apart was interrupted; the closest of a few is exact enough.
    let reading = || {
        let pair = || {
            let before = Instant::now();
            let ticks = read_tsc();
            (before.elapsed(), before, ticks)
        };
        (0..8).map(|_| pair()).min_by_key(|(apart, ..)| *apart)
    };
    let (_, start, start_ticks) = reading()?;
    while start.elapsed() < WINDOW {
        std::hint::spin_loop();
    }
    let (_, end, end_ticks) = reading()?;
    let nanos = u128::from(u64::try_from((end - start).as_nanos()).ok()?);
    u32::try_from(u128::from(end_ticks.checked_sub(start_ticks)?) * 1_000_000 / nanos).ok()
}

/// Measures the rate of the time stamp counter: this processor has none.
#[cfg(not(target_arch = "x86_64"))]
pub fn tsc_khz() -> Option<u32> {
    None
}

#[cfg(target_arch = "x86_64")]
fn read_tsc() -> u64 {
    #[expect(unsafe_code, reason = "the counter is read by an instruction")]
    // SAFETY: every x86-64 processor has the instruction; it touches no memory.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod loop_guest {
    pub(super) fn best_rate() -> Result<u64, String> {
        Err("KVM is probed on x86_64 hosts only".to_owned())
    }
}

#[cfg(target_arch = "x86_64")]
mod loop_guest {
    //! A guest without memory of its own kind: page tables, ten instructions, no devices.

    use super::NATIVE_RATE_MIN;
    use kvm_bindings::{kvm_segment, kvm_userspace_memory_region};
    use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
    use rustix::mm::{MapFlags, ProtFlags};
    use std::time::Instant;

    const MEMORY_BYTES: usize = 0x8000;
    const PML4: usize = 0x1000;
    const PDPT: usize = 0x2000;
    const PD: usize = 0x3000;
    const CODE: usize = 0x4000;
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE_PAGE: u64 = 1 << 7;
    const API_VERSION: i32 = 12;
    /// Long enough to tell an interpreter from a processor, short enough for the interpreter.
    const ITERATIONS: u64 = 200_000;
    /// The best of so many tries counts: another process may have had the processor.
    const TRIES: usize = 3;

    /// `xor eax,eax; again: add rax,rcx; dec rcx; jnz again; hlt`
    const PROGRAM: [u8; 11] = [0x31, 0xc0, 0x48, 0x01, 0xc8, 0x48, 0xff, 0xc9, 0x75, 0xf8, 0xf4];

    /// Memory lent to a guest; unmapped when dropped.
    struct GuestMemory(*mut u8);

    impl GuestMemory {
        fn new() -> Result<Self, String> {
            #[expect(unsafe_code, reason = "a guest needs pages of its own")]
            // SAFETY: a new private anonymous mapping at an address of the kernel's choice overlaps nothing.
            let address = unsafe {
                rustix::mm::mmap_anonymous(
                    std::ptr::null_mut(),
                    MEMORY_BYTES,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::PRIVATE,
                )
            };
            address
                .map(|address| Self(address.cast()))
                .map_err(|error| format!("no memory for a guest: {error}"))
        }

        fn write(&mut self, at: usize, bytes: &[u8]) {
            assert!(at + bytes.len() <= MEMORY_BYTES);
            #[expect(unsafe_code, reason = "the guest's memory is raw memory")]
            // SAFETY: the mapping has MEMORY_BYTES writable bytes, the range was checked to lie within, `bytes` is
            // memory of this process's own, and no vCPU runs while this has `&mut self`.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(at), bytes.len());
            }
        }
    }

    impl Drop for GuestMemory {
        fn drop(&mut self) {
            #[expect(unsafe_code, reason = "a mapping ends by a call")]
            // SAFETY: the address and length are those of the mapping made in `new`, and nothing points into it:
            // the machine that used it is dropped first.
            let _ = unsafe { rustix::mm::munmap(self.0.cast(), MEMORY_BYTES) };
        }
    }

    /// Fields drop in order: the machine goes before its memory.
    struct Guest {
        vcpu: VcpuFd,
        _vm: VmFd,
        _memory: GuestMemory,
    }

    /// Returns the iterations a second of the fastest try, or why no guest runs.
    pub(super) fn best_rate() -> Result<u64, String> {
        let kvm = Kvm::new().map_err(|error| match std::io::Error::from(error).kind() {
            std::io::ErrorKind::NotFound => "/dev/kvm does not exist".to_owned(),
            std::io::ErrorKind::PermissionDenied => "/dev/kvm may not be opened by this user".to_owned(),
            _ => format!("/dev/kvm cannot be opened: {error}"),
        })?;
        match kvm.get_api_version() {
            API_VERSION => {}
            other => return Err(format!("/dev/kvm has API version {other}, not {API_VERSION}")),
        }
        let mut guest = Guest::new(&kvm)?;
        guest.run(1000)?;
        let mut best = 0;
        for _ in 0..TRIES {
            best = best.max(guest.run(ITERATIONS)?);
            if best >= NATIVE_RATE_MIN {
                break;
            }
        }
        Ok(best)
    }

    fn failed(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> String {
        move |error| format!("/dev/kvm cannot {what}: {error}")
    }

    impl Guest {
        fn new(kvm: &Kvm) -> Result<Self, String> {
            let mut memory = GuestMemory::new()?;
            memory.write(PML4, &(PDPT as u64 | PRESENT_WRITABLE).to_le_bytes());
            memory.write(PDPT, &(PD as u64 | PRESENT_WRITABLE).to_le_bytes());
            memory.write(PD, &(PRESENT_WRITABLE | LARGE_PAGE).to_le_bytes());
            memory.write(CODE, &PROGRAM);
            let vm = kvm.create_vm().map_err(failed("make a machine"))?;
            let region = kvm_userspace_memory_region {
                slot: 0,
                guest_phys_addr: 0,
                memory_size: MEMORY_BYTES as u64,
                userspace_addr: memory.0 as u64,
                flags: 0,
            };
            #[expect(unsafe_code, reason = "KVM is told of memory by its address")]
            // SAFETY: the region is the whole of a mapping that outlives the machine, see the order of `Guest`'s
            // fields, and that nothing else uses.
            unsafe { vm.set_user_memory_region(region) }.map_err(failed("lend memory to a machine"))?;
            let vcpu = vm.create_vcpu(0).map_err(failed("make a processor"))?;
            Ok(Self { vcpu, _vm: vm, _memory: memory })
        }

        /// Runs the loop once and returns its iterations a second.
        fn run(&mut self, iterations: u64) -> Result<u64, String> {
            self.enter_long_mode()?;
            let mut regs = self.vcpu.get_regs().map_err(failed("read registers"))?;
            regs.rip = CODE as u64;
            regs.rcx = iterations;
            regs.rax = 0;
            regs.rflags = 2;
            self.vcpu.set_regs(&regs).map_err(failed("set registers"))?;
            let start = Instant::now();
            match self.vcpu.run().map_err(failed("run a guest"))? {
                VcpuExit::Hlt => {}
                other => return Err(format!("/dev/kvm cannot run a guest: it left its loop by {other:?}")),
            }
            let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1);
            let sum = self.vcpu.get_regs().map_err(failed("read registers"))?.rax;
            if sum != iterations * (iterations + 1) / 2 {
                return Err(format!("/dev/kvm miscounts: a guest got {sum} for the sum up to {iterations}"));
            }
            Ok(u64::try_from(u128::from(iterations) * 1_000_000_000 / u128::from(nanos)).unwrap_or(u64::MAX))
        }

        fn enter_long_mode(&self) -> Result<(), String> {
            let mut sregs = self.vcpu.get_sregs().map_err(failed("read registers"))?;
            let code = kvm_segment {
                base: 0,
                limit: 0xffff_ffff,
                selector: 1 << 3,
                type_: 11,
                present: 1,
                dpl: 0,
                db: 0,
                s: 1,
                l: 1,
                g: 1,
                ..Default::default()
            };
            let data = kvm_segment { selector: 2 << 3, type_: 3, l: 0, db: 1, ..code };
            sregs.cs = code;
            sregs.ds = data;
            sregs.es = data;
            sregs.ss = data;
            sregs.cr3 = PML4 as u64;
            // Physical address extension; protection, numeric errors and paging; long mode enabled and active.
            sregs.cr4 |= 1 << 5;
            sregs.cr0 |= 1 | 1 << 5 | 1 << 31;
            sregs.efer |= 1 << 8 | 1 << 10;
            self.vcpu.set_sregs(&sregs).map_err(failed("set registers"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_survives_json_and_reads_well() {
        let emulated = KvmVerdict::Emulated { rate: 1_149_000 };
        assert_eq!(emulated.to_string(), "/dev/kvm interprets guest kernels (1.1 million loops a second)");
        assert!(!emulated.is_native());
        assert!(KvmVerdict::Native { rate: NATIVE_RATE_MIN }.is_native());
    }

    #[test]
    fn the_probe_ends_with_a_verdict_that_fits_its_rate() {
        match probe_here() {
            KvmVerdict::Native { rate } => assert!(rate >= NATIVE_RATE_MIN),
            KvmVerdict::Emulated { rate } => assert!(rate < NATIVE_RATE_MIN),
            KvmVerdict::Unavailable { reason } => assert!(!reason.is_empty()),
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_counter_has_a_steady_rate() {
        let (Some(first), Some(second)) = (tsc_khz(), tsc_khz()) else { return };
        assert!(first.abs_diff(second) < first / 500, "{first} and {second} kHz");
    }
}
