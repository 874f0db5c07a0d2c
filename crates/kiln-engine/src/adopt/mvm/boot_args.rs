//! Kernel arguments: those of a Firecracker machine, and what of them is left for a machine of kiln's.

/// What the layout's machines have.
pub(super) const ARGS: &str = "console=ttyS0 reboot=k panic=1 net.ifnames=0";
/// What goes before them where no initrd mounts the root.
pub(super) const ARGS_WITHOUT_INITRD: &str = "root=/dev/vda rw rootwait init=/init ";

/// Words that say where the root is, how the machine is built, or what becomes of the kernel: all that is kiln's to say.
const WORDS: [&str; 6] = ["rw", "ro", "rootwait", "noapic", "nomodules", "nomodule"];
/// Beginnings of such words.
const BEGINNINGS: [&str; 14] = [
    "console=",
    "reboot=",
    "panic=",
    "root=",
    "rootfstype=",
    "rootflags=",
    "rootdelay=",
    "init=",
    "rdinit=",
    "pci=",
    "acpi=",
    "ip=",
    "8250.",
    "i8042.",
];

/// Returns the arguments that a template keeps. What follows `--` is for the init that kiln's replaces.
pub(super) fn kept(boot_args: &str) -> Vec<String> {
    let ours = |word: &&str| !WORDS.contains(word) && !BEGINNINGS.iter().any(|begin| word.starts_with(begin));
    boot_args.split_whitespace().take_while(|word| *word != "--").filter(ours).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_how_the_machine_is_built_is_left_out() {
        assert_eq!(kept(ARGS), ["net.ifnames=0"]);
        let all = format!("{ARGS_WITHOUT_INITRD}{ARGS} pci=off quiet i8042.noaux -- single");
        assert_eq!(kept(&all), ["net.ifnames=0", "quiet"]);
        assert!(kept("").is_empty());
    }
}
