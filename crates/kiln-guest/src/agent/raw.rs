//! The kernel interfaces that have no safe wrapper.

use std::fs::File;
use std::io;

use rustix::ioctl::{NoArg, Opcode, Setter, ioctl, opcode};
use rustix::process::Signal;

use crate::limits::ENTROPY_BYTES_MAX;

const RNDADDENTROPY: Opcode = opcode::write::<[i32; 2]>(b'R', 0x03);
/// `fs/ext4/ext4.h` of Linux.
const EXT4_IOC_RESIZE_FS: Opcode = opcode::write::<u64>(b'f', 16);
const RNDRESEEDCRNG: Opcode = opcode::none(b'R', 0x07);
const SIGNAL_REALTIME_MIN: i32 = 34;
const SIGNAL_REALTIME_MAX: i32 = 64;

/// `struct rand_pool_info` with its buffer.
#[repr(C)]
struct RandPoolInfo {
    entropy_bits: i32,
    bytes: i32,
    buffer: [u8; ENTROPY_BYTES_MAX],
}

/// Credits at most [`ENTROPY_BYTES_MAX`] bytes of entropy to the kernel's generator and makes it reseed at once.
pub(super) fn add_entropy(random: &File, entropy: &[u8]) -> io::Result<()> {
    let mut buffer = [0; ENTROPY_BYTES_MAX];
    buffer.get_mut(..entropy.len()).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(entropy);
    let bytes = i32::try_from(entropy.len()).map_err(io::Error::other)?;
    let info = RandPoolInfo { entropy_bits: bytes * 8, bytes, buffer };
    #[expect(unsafe_code, reason = "RNDADDENTROPY and RNDRESEEDCRNG have no safe wrapper")]
    // SAFETY: the kernel reads the two counts and then `bytes` bytes, which is at most the length of `buffer`; the
    // second request has no argument. Neither is kept after the call.
    unsafe {
        ioctl(random, Setter::<RNDADDENTROPY, RandPoolInfo>::new(info))?;
        ioctl(random, NoArg::<RNDRESEEDCRNG>::new())?;
    }
    Ok(())
}

/// Grows a mounted ext4 to a number of its blocks. `root` is a file or directory in it.
pub(super) fn resize_ext4(root: &File, blocks: u64) -> io::Result<()> {
    #[expect(unsafe_code, reason = "EXT4_IOC_RESIZE_FS has no safe wrapper")]
    // SAFETY: the kernel reads one u64 and keeps nothing after the call.
    unsafe {
        ioctl(root, Setter::<EXT4_IOC_RESIZE_FS, u64>::new(blocks))?;
    }
    Ok(())
}

/// Returns a signal by its number.
pub(super) fn signal(number: i32) -> Option<Signal> {
    if (SIGNAL_REALTIME_MIN..=SIGNAL_REALTIME_MAX).contains(&number) {
        #[expect(unsafe_code, reason = "real-time signals have no safe constructor")]
        // SAFETY: the number is in the range of real-time signals, of which the C library keeps 32 and 33.
        return Some(unsafe { Signal::from_raw_unchecked(number) });
    }
    Signal::from_named_raw(number)
}
