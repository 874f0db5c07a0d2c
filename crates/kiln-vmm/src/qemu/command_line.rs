//! The kernel's command line: what the board and the accelerator need, then what the recipe asks for, so that a
//! recipe has the last word.

use crate::accel::Accelerator;
use crate::spec::SpecRejected;
use kiln_core::variant::Board;

/// The longest command line of an x86 kernel, in bytes: `COMMAND_LINE_SIZE` less the end mark.
pub const COMMAND_LINE_BYTES_MAX: usize = 2047;

/// A panic ends the guest by a triple fault, and QEMU with it, because that does not reboot.
const ALWAYS: &str = "console=ttyS0 quiet reboot=t panic=-1 no_timer_check tsc=reliable 8250.nr_uarts=1 \
                      i8042.noaux i8042.nokbd random.trust_cpu=on rcupdate.rcu_expedited=1 cryptomgr.notests";
/// Worth their time only where every instruction is translated; the translator has no side channels to mitigate.
const TCG: &str = "mitigations=off nokaslr";

/// Routing the interrupts of a PCI slot through ACPI costs some 110 ms of translated code for each device. Without it
/// there are no message interrupts either, and a driver that still asks for them logs a kernel warning. A second
/// processor is found only by the tables this leaves out.
const TCG_PCI: &str = "acpi=noirq pci=nomsi";

pub(super) fn build(
    board: Board,
    vcpus: u32,
    accelerator: Accelerator,
    tsc_khz: Option<u32>,
    args: &[String],
) -> Result<String, SpecRejected> {
    let mut line = ALWAYS.to_owned();
    if accelerator == Accelerator::Tcg {
        line = format!("{line} {TCG}");
        if vcpus == 1 && matches!(board, Board::Pc | Board::Q35) {
            line = format!("{line} {TCG_PCI}");
        }
        // The board has no other clock to measure this one by, and a kernel that fails at it hangs.
        if let (Board::Microvm, Some(khz)) = (board, tsc_khz) {
            line = format!("{line} tsc_early_khz={khz}");
        }
    }
    for arg in args {
        if !fits(arg) {
            return Err(SpecRejected::BootArg(kiln_core::text::clip(arg)));
        }
        line.push(' ');
        line.push_str(arg);
    }
    if line.len() > COMMAND_LINE_BYTES_MAX {
        return Err(SpecRejected::CommandLine { len: line.len(), max: COMMAND_LINE_BYTES_MAX });
    }
    Ok(line)
}

fn fits(arg: &str) -> bool {
    !arg.trim().is_empty() && !arg.chars().any(char::is_control) && arg.matches('"').count().is_multiple_of(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(board: Board, accelerator: Accelerator, args: &[&str]) -> Result<String, SpecRejected> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        build(board, 1, accelerator, Some(2_300_000), &args)
    }

    #[test]
    fn the_board_s_needs_come_first_and_the_recipe_s_wishes_last() {
        let pc = line(Board::Pc, Accelerator::Tcg, &["root=/dev/vda", "x=\"a b\""]).unwrap();
        assert!(
            pc.starts_with("console=ttyS0 ")
                && pc.ends_with(" mitigations=off nokaslr acpi=noirq pci=nomsi root=/dev/vda x=\"a b\"")
        );
        assert!(!pc.contains("tsc_early_khz") && pc.contains(" panic=-1 ") && !pc.contains("  "));
        let micro = line(Board::Microvm, Accelerator::Tcg, &[]).unwrap();
        assert!(micro.ends_with(" tsc_early_khz=2300000") && !micro.contains("noirq"));
        let native = line(Board::Microvm, Accelerator::Kvm, &[]).unwrap();
        assert!(
            !native.contains("mitigations")
                && !native.contains("nokaslr")
                && !native.contains("noirq")
                && !native.contains("tsc_early_khz")
        );
    }

    #[test]
    fn what_would_not_arrive_is_refused() {
        for arg in ["", " ", "a\nb", "a\0", "x=\"a b"] {
            assert!(
                matches!(line(Board::Pc, Accelerator::Tcg, &[arg]), Err(SpecRejected::BootArg(_))),
                "{arg:?}"
            );
        }
        let base = line(Board::Pc, Accelerator::Tcg, &[]).unwrap().len();
        let fitting = "x".repeat(COMMAND_LINE_BYTES_MAX - base - 1);
        assert_eq!(line(Board::Pc, Accelerator::Tcg, &[&fitting]).unwrap().len(), COMMAND_LINE_BYTES_MAX);
        let long = line(Board::Pc, Accelerator::Tcg, &[&format!("{fitting}x")]).unwrap_err();
        assert_eq!(long.to_string(), "the kernel's command line has 2048 bytes: at most 2047 are possible");
    }
}
