//! Sets the guest's identity: after a boot, and after every restore of a snapshot.

use std::fs::File;

use rustix::system::sethostname;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use super::stream::invalid;
use super::{files, network, raw};
use crate::error::RemoteError;
use crate::limits::ENTROPY_BYTES_MIN;
use crate::message::{Configure, Configured};
use crate::token::Hostname;

const NANOSECONDS: u64 = 1_000_000_000;

/// Applies what is given; randomness first, because what follows may make the guest use it.
pub(super) fn apply(request: &Configure) -> Result<Configured, RemoteError> {
    let mut configured = Configured::default();
    if let Some(entropy) = &request.entropy {
        add_entropy(&parse_entropy(entropy)?)?;
    }
    if let Some(time) = request.clock_unix_ns {
        set_clock(time)?;
    }
    if let Some(name) = &request.hostname {
        set_hostname(&Hostname::new(name.as_str()).map_err(|error| invalid(error.to_string()))?)?;
    }
    if let Err(error) = network::start_loopback() {
        configured.notes.push(error.message);
    }
    if let Some(network) = &request.network {
        configured.interface = network::apply(None, network, &mut configured.notes)?;
    }
    Ok(configured)
}

fn parse_entropy(hex: &str) -> Result<[u8; ENTROPY_BYTES_MIN], RemoteError> {
    files::parse_hex(hex).ok_or_else(|| invalid(format!("entropy is not {ENTROPY_BYTES_MIN} bytes in hex")))
}

/// Credits fresh random bytes to the kernel's generator, which reseeds at once.
pub(super) fn add_entropy(entropy: &[u8]) -> Result<(), RemoteError> {
    File::options()
        .write(true)
        .open("/dev/urandom")
        .and_then(|random| raw::add_entropy(&random, entropy))
        .map_err(|error| RemoteError::from_io("cannot add entropy through /dev/urandom", &error))
}

/// Sets the wall clock; returns what was added to it, in nanoseconds.
pub(super) fn set_clock(unix_ns: u64) -> Result<i64, RemoteError> {
    let wrong = || invalid(format!("clock of {unix_ns} ns is out of range"));
    let time = Timespec {
        tv_sec: i64::try_from(unix_ns / NANOSECONDS).map_err(|_| wrong())?,
        tv_nsec: i64::try_from(unix_ns % NANOSECONDS).map_err(|_| wrong())?,
    };
    let before = clock_gettime(ClockId::Realtime);
    clock_settime(ClockId::Realtime, time)
        .map_err(|error| RemoteError::from_io("cannot set the clock", &error.into()))?;
    let seconds = time.tv_sec.saturating_sub(before.tv_sec).saturating_mul(1_000_000_000);
    Ok(seconds.saturating_add(time.tv_nsec.saturating_sub(before.tv_nsec)))
}

/// Sets the host name of the running kernel.
pub(super) fn set_hostname(name: &Hostname) -> Result<(), RemoteError> {
    sethostname(name.as_str().as_bytes())
        .map_err(|error| RemoteError::from_io(format!("cannot set host name {name}"), &error.into()))
}
