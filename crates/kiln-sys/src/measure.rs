//! What work costs: wall time, processor time and memory, of calls in this process and of programs.

use crate::error::{IoResult, IoResultExt};
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// What some work took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// From its begin to its end.
    pub wall: Duration,
    /// Time of processors, in user and kernel mode, of all its threads and, for a program, of its children.
    pub cpu: Duration,
    /// The most memory that was resident, in bytes; none for a call. The kernel counts a program from its fork: what
    /// was resident in the process that started it is the least it says.
    pub resident_max: Option<u64>,
}

impl std::ops::Add for Usage {
    type Output = Self;

    /// Adds what came one after the other.
    fn add(self, other: Self) -> Self {
        Self {
            wall: self.wall + other.wall,
            cpu: self.cpu + other.cpu,
            resident_max: self.resident_max.max(other.resident_max),
        }
    }
}

/// Returns the processor time that this process has used.
pub fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Does work in this process and says what it took. Processor time is the whole process's: nothing else may be at work
/// in it.
pub fn timed<T>(work: impl FnOnce() -> T) -> (Usage, T) {
    let (begun, cpu) = (Instant::now(), own_cpu());
    let value = work();
    let wall = begun.elapsed();
    (Usage { wall, cpu: own_cpu().saturating_sub(cpu), resident_max: None }, value)
}

/// Collects a child that ended, and what it used.
pub(crate) fn collect(pid: u32, program: &Path) -> IoResult<(i32, Duration, u64)> {
    let pid = i32::try_from(pid).map_err(io::Error::other).at("wait for", program)?;
    let mut status = 0;
    loop {
        #[expect(unsafe_code, reason = "no safe interface tells what one child used")]
        // SAFETY: rusage is plain data, for which zeros are a value; both pointers are to live, writable variables.
        let (waited, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            (libc::wait4(pid, &raw mut status, 0, &raw mut usage), usage)
        };
        if waited == pid {
            let cpu = duration(usage.ru_utime) + duration(usage.ru_stime);
            return Ok((status, cpu, u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error).at("wait for", program);
        }
    }
}

fn duration(time: libc::timeval) -> Duration {
    let micros = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0)) + Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_the_time_of_processors() {
        let (usage, sum) = timed(|| (0..1_000_000_u64).fold(1, |sum, n| std::hint::black_box(sum ^ n)));
        assert_ne!(sum, 0);
        assert!(usage.wall > Duration::ZERO && usage.cpu > Duration::ZERO, "{usage:?}");
        assert_eq!(usage.resident_max, None);
    }
}
