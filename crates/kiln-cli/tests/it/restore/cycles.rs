//! Many machines, one after the other.

use super::Lab;

fn cycles(count: u32) {
    let lab = Lab::captured("");
    let artifacts = lab.artifacts();
    for number in 0..count {
        let script = format!(
            "test ! -e /kept && echo {number} > /kept && head -c 1000000 /dev/urandom > /more && sync && cat /kept"
        );
        let said = lab.run(&["--restore", "require"], &script).ok();
        assert_eq!(said, format!("{number}\n"));
        assert_eq!(lab.context.machine_dirs(), Vec::<String>::new());
    }
    assert_eq!(lab.artifacts(), artifacts);
    lab.assert_whole();
}

#[test]
fn boot_twenty_restored_machines_leave_nothing() {
    cycles(20);
}

#[test]
fn boot_a_hundred_restored_machines_leave_nothing() {
    cycles(100);
}
