//! Whether machines would fit into the memory that is left, asked before they are made.

use crate::{Engine, EngineResult};
use kiln_core::ByteSize;
use kiln_core::text;
use kiln_sys::memory::HostMemory;

/// What a machine monitor needs besides its guest's memory: QEMU's own, and the 64 MiB of translated code that it keeps
/// without KVM. Files it maps, such as the initramfs, are not in it: the kernel can drop them.
pub const MONITOR_MEMORY: ByteSize = ByteSize::from_mib(128);

/// Machines that would not fit into the memory that is left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} would need {} of memory, and {} is left: {count_possible} would fit",
    text::count(*count, "machine"), need.human(), have.human()
)]
pub struct NotEnoughMemory {
    /// How many were asked for.
    pub count: u32,
    /// What they would need together.
    pub need: ByteSize,
    /// What is left.
    pub have: ByteSize,
    /// How many of them would fit; less than `count`.
    pub count_possible: u32,
}

/// Checks that `count` machines of `shape_memory` each fit into `have`.
///
/// Without `private_estimate` each counts with the whole of its guest's memory and [`MONITOR_MEMORY`]: a guest takes,
/// sooner or later, what it was promised. With it, machines are clones of one image of memory: the image counts once,
/// as pages of a file that all of them map, and each clone with what it is expected to have alone, its monitor included
/// ([`kiln_sys::memory::ProcessMemory::private`] of a clone that has worked for a while), but never with more than
/// without. No machines need nothing.
///
/// # Errors
/// [`NotEnoughMemory`], with the number that would fit.
pub fn memory_preflight(
    count: u32,
    shape_memory: ByteSize,
    private_estimate: Option<ByteSize>,
    have: ByteSize,
) -> Result<(), NotEnoughMemory> {
    let (image, whole) = (shape_memory.bytes(), shape_memory.bytes().saturating_add(MONITOR_MEMORY.bytes()));
    let (once, each) = match private_estimate {
        Some(private) => (image, private.bytes().min(whole)),
        None => (0, whole),
    };
    let need = match count {
        0 => 0,
        count => once.saturating_add(each.saturating_mul(u64::from(count))),
    };
    if need <= have.bytes() {
        return Ok(());
    }
    // An estimate of nothing limits no number: it is the image that does not fit.
    let possible = have.bytes().checked_sub(once).and_then(|left| left.checked_div(each)).unwrap_or(0);
    let count_possible = u32::try_from(possible).unwrap_or(u32::MAX).min(count.saturating_sub(1));
    Err(NotEnoughMemory { count, need: ByteSize::from_bytes(need), have, count_possible })
}

impl Engine {
    /// Checks, like [`memory_preflight`], against what this host and the control groups of the caller have left now.
    /// Nothing is set aside: whoever asks at the same time is told the same.
    ///
    /// # Errors
    /// [`crate::EngineError::Memory`]; [`crate::EngineError::Io`] where the kernel does not say what is left.
    pub fn memory_preflight(
        &self,
        count: u32,
        shape_memory: ByteSize,
        private_estimate: Option<ByteSize>,
    ) -> EngineResult<()> {
        Ok(memory_preflight(count, shape_memory, private_estimate, HostMemory::read()?.left())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn mib(mib: u32) -> ByteSize {
        ByteSize::from_mib(mib)
    }

    #[test]
    fn what_is_needed_is_compared_with_what_is_left() {
        // count, guest's memory, estimate, left; what is needed and how many fit where not all do. All in MiB.
        for (count, shape, private, have, refused) in [
            (0, 256, None, 0, None),
            (0, 256, Some(1), 0, None),
            (1, 256, None, 384, None),
            (1, 256, None, 383, Some((384, 0))),
            (4, 256, None, 1536, None),
            (4, 256, None, 1535, Some((1536, 3))),
            (100, 256, None, 1000, Some((38_400, 2))),
            // Clones: the image once, and each what it has alone.
            (10, 256, Some(30), 556, None),
            (10, 256, Some(30), 555, Some((556, 9))),
            (10, 256, Some(30), 256, Some((556, 0))),
            (10, 256, Some(30), 255, Some((556, 0))),
            // An estimate above the whole is the whole.
            (2, 256, Some(9000), 1024, None),
            (2, 256, Some(9000), 1023, Some((1024, 1))),
            (5, 256, Some(0), 256, None),
            (5, 256, Some(0), 255, Some((256, 0))),
        ] {
            let result = memory_preflight(count, mib(shape), private.map(mib), mib(have));
            let expected = refused.map(|(need, count_possible)| NotEnoughMemory {
                count,
                need: mib(need),
                have: mib(have),
                count_possible,
            });
            assert_eq!(result.err(), expected, "{count} of {shape}, {private:?}, {have}");
        }
    }

    #[test]
    fn what_would_fit_fits_and_one_more_does_not() {
        for (count, shape, private, have) in
            [(9, 256, None, 1500), (90, 512, Some(7), 700), (u32::MAX, 1, Some(1), 50)]
        {
            let check = |count| memory_preflight(count, mib(shape), private.map(mib), mib(have));
            let possible = check(count).unwrap_err().count_possible;
            assert!(check(possible).is_ok() && check(possible + 1).is_err(), "{possible}");
        }
    }

    #[test]
    fn sums_that_no_number_holds_are_refused() {
        let huge = ByteSize::from_bytes(u64::MAX);
        let refused = memory_preflight(u32::MAX, huge, Some(huge), ByteSize::from_bytes(u64::MAX - 1));
        assert_eq!(refused.unwrap_err().need, huge);
    }

    #[test]
    fn the_text_names_need_have_and_how_many() {
        let text = |count| memory_preflight(count, mib(256), None, mib(300)).unwrap_err().to_string();
        assert_eq!(text(1), "1 machine would need 384.0 MiB of memory, and 300.0 MiB is left: 0 would fit");
        let text = memory_preflight(8, mib(256), None, mib(1024)).unwrap_err().to_string();
        assert_eq!(text, "8 machines would need 3.0 GiB of memory, and 1.0 GiB is left: 2 would fit");
    }
}
