//! Sets the guest's identity: after a boot, and after every restore of a snapshot.

use std::fs::File;

use rustix::system::sethostname;
use rustix::time::{ClockId, Timespec, clock_settime};

use super::stream::invalid;
use super::{files, network, raw};
use crate::error::RemoteError;
use crate::message::{Configure, Configured};

const HOSTNAME_BYTES_MAX: usize = 64;
const NANOSECONDS: u64 = 1_000_000_000;

/// Applies what is given; randomness first, because what follows may make the guest use it.
pub(super) fn apply(request: &Configure) -> Result<Configured, RemoteError> {
    let mut configured = Configured::default();
    if let Some(entropy) = &request.entropy {
        add_entropy(entropy)?;
    }
    if let Some(time) = request.clock_unix_ns {
        set_clock(time)?;
    }
    if let Some(name) = &request.hostname {
        set_hostname(name)?;
    }
    if let Err(error) = network::start_loopback() {
        configured.notes.push(error.message);
    }
    if let Some(network) = &request.network {
        configured.interface = Some(network::apply(network, &mut configured.notes)?);
    }
    Ok(configured)
}

fn add_entropy(hex: &str) -> Result<(), RemoteError> {
    let entropy = files::parse_hex::<{ raw::ENTROPY_BYTES }>(hex)
        .ok_or_else(|| invalid(format!("entropy is not {} bytes in hex", raw::ENTROPY_BYTES)))?;
    File::options()
        .write(true)
        .open("/dev/urandom")
        .and_then(|random| raw::add_entropy(&random, entropy))
        .map_err(|error| RemoteError::from_io("cannot add entropy through /dev/urandom", &error))
}

fn set_clock(unix_ns: u64) -> Result<(), RemoteError> {
    let wrong = || invalid(format!("clock of {unix_ns} ns is out of range"));
    let time = Timespec {
        tv_sec: i64::try_from(unix_ns / NANOSECONDS).map_err(|_| wrong())?,
        tv_nsec: i64::try_from(unix_ns % NANOSECONDS).map_err(|_| wrong())?,
    };
    clock_settime(ClockId::Realtime, time)
        .map_err(|error| RemoteError::from_io("cannot set the clock", &error.into()))
}

fn set_hostname(name: &str) -> Result<(), RemoteError> {
    let valid = !name.is_empty()
        && name.len() <= HOSTNAME_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    if !valid {
        return Err(invalid(format!("host name {name:?} is not valid")));
    }
    sethostname(name.as_bytes())
        .map_err(|error| RemoteError::from_io(format!("cannot set host name {name}"), &error.into()))
}
