//! The kernel interfaces that have no safe wrapper.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::io::Errno;
use rustix::ioctl::{NoArg, Opcode, Setter, ioctl, opcode};
use rustix::process::Signal;

use super::child::{self, Attempt, Failure};
use crate::limits::ENTROPY_BYTES_MAX;

const SIOCSIFHWADDR: Opcode = 0x8924;
const ARPHRD_ETHER: u16 = 1;
const INTERFACE_NAME_BYTES: usize = 16;
const RNDADDENTROPY: Opcode = opcode::write::<[i32; 2]>(b'R', 0x03);
/// `fs/ext4/ext4.h` of Linux.
const EXT4_IOC_RESIZE_FS: Opcode = opcode::write::<u64>(b'f', 16);
const RNDRESEEDCRNG: Opcode = opcode::none(b'R', 0x07);
/// Exit code of a process that did not become its program; nobody is told.
const CHILD_FAILED: c_int = 127;
/// What the C library keeps for its threads.
const LIBRARY_SIGNALS: [i32; 2] = [32, 33];
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

/// `struct ifreq` with a hardware address.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; INTERFACE_NAME_BYTES],
    family: u16,
    address: [u8; 22],
}

/// Gives the interface of this name a hardware address of Ethernet. `socket` is any socket.
pub(super) fn set_hardware_address(socket: impl AsFd, name: &str, address: [u8; 6]) -> io::Result<()> {
    let mut request = InterfaceRequest { name: [0; _], family: ARPHRD_ETHER, address: [0; _] };
    let room = request.name.get_mut(..name.len()).filter(|_| name.len() < INTERFACE_NAME_BYTES);
    room.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(name.as_bytes());
    request.address[..address.len()].copy_from_slice(&address);
    #[expect(unsafe_code, reason = "SIOCSIFHWADDR has no safe wrapper")]
    // SAFETY: the kernel reads a `struct ifreq`, which has this size and begins with a name that ends with zero, and
    // keeps nothing after the call.
    unsafe {
        ioctl(socket, Setter::<SIOCSIFHWADDR, InterfaceRequest>::new(request))?;
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

/// Stack of a process on its way to its program, in units of 16 bytes; what is not used is not touched.
const CHILD_STACK_UNITS: usize = 4096;

/// Strings as the kernel takes the arguments and the environment of a program.
#[derive(Debug)]
pub(super) struct CStrings {
    /// Ends with a null pointer; the others point into `_strings`.
    pointers: Vec<*const c_char>,
    _strings: Vec<CString>,
}

impl CStrings {
    pub(super) fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        Self { pointers, _strings: strings }
    }
}

/// Becomes a program; returns why not.
pub(super) fn execute(program: &CStr, argv: &CStrings, env: &CStrings) -> Errno {
    #[expect(unsafe_code, reason = "there is no safe wrapper that does not allocate")]
    // SAFETY: all three end with a zero byte or a null pointer, and live as long as the borrow.
    unsafe {
        libc::execve(program.as_ptr(), argv.pointers.as_ptr(), env.pointers.as_ptr());
        // It returns only when it failed, and has then set the number.
        Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
    }
}

/// What a process on its way to its program shares with the thread that waits for it.
struct Shared<'a> {
    attempt: &'a Attempt,
    failure: Option<Failure>,
}

/// A process that was started.
#[derive(Debug)]
pub(super) struct StartedChild {
    /// Its number, which is to be waited for.
    pub(super) pid: u32,
    /// Becomes readable with its end.
    pub(super) ended: OwnedFd,
    /// Why it did not become its program, and has ended.
    pub(super) failure: Option<Failure>,
}

/// Starts a process that becomes a program, and waits until it has, or has failed.
///
/// The process shares this one's memory until then. A copy of it would cost the guest a fault for every page that is
/// written to afterwards.
pub(super) fn start_child(attempt: &Attempt) -> io::Result<StartedChild> {
    let mut stack = Box::<[u128]>::new_uninit_slice(CHILD_STACK_UNITS);
    let mut shared = Shared { attempt, failure: None };
    let mut ended: c_int = -1;
    let mut all = MaybeUninit::uninit();
    let mut former = MaybeUninit::uninit();
    #[expect(unsafe_code, reason = "a process that shares memory has no safe wrapper")]
    // SAFETY: the stack grows down from its aligned end and is larger than what `child::become_program` takes, which
    // neither allocates nor locks nor panics. The kernel lets this thread go on only when the process has another
    // memory or is gone, so `stack` and `shared` outlive its use of them and nobody else writes to them. No handler of
    // this process runs in it: all signals are blocked here and have no handler there before they are let in.
    // The kernel gives the descriptor, close-on-exec, to this process and nobody else has it.
    let (pid, ended) = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), former.as_mut_ptr());
        let pid = libc::clone(
            child_main,
            stack.as_mut_ptr_range().end.cast(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD,
            ptr::from_mut(&mut shared).cast(),
            &raw mut ended,
        );
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, former.as_ptr(), ptr::null_mut());
        if pid < 0 {
            return Err(error);
        }
        (pid, OwnedFd::from_raw_fd(ended))
    };
    let pid = u32::try_from(pid).map_err(io::Error::other)?;
    Ok(StartedChild { pid, ended, failure: shared.failure })
}

/// The process's own code until it is its program.
extern "C" fn child_main(shared: *mut c_void) -> c_int {
    #[expect(unsafe_code, reason = "signals and the shared place have no safe wrapper")]
    // SAFETY: `start_child` passes a `Shared` that nobody else uses until this process is gone. The process has its own
    // table of handlers; numbers whose handler cannot be changed are refused.
    unsafe {
        for number in (1..=SIGNAL_REALTIME_MAX).filter(|number| !LIBRARY_SIGNALS.contains(number)) {
            libc::signal(number, libc::SIG_DFL);
        }
        let mut none = MaybeUninit::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
        let shared = &mut *shared.cast::<Shared<'_>>();
        shared.failure = Some(child::become_program(shared.attempt));
    }
    CHILD_FAILED
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
