//! A program that brings its own machine monitor: kiln keeps templates and private disks, the rest is its own.
//!
//! ```text
//! cargo run -p kiln-store --example own_vmm -- STORE OWNER REFERENCE
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it did")]

use kiln_core::machine::CloneMethod;
use kiln_core::{DiskOwner, Reference};
use kiln_store::{CloneChoice, Disk, Store, StoreError};
use kiln_sys::Cancel;
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [home, owner, reference] = args.as_slice() else {
        return Err("STORE OWNER REFERENCE are wanted, such as /var/lib/kiln job-17 web".into());
    };
    // Texts become names here, once, and are refused where they are none.
    let (owner, reference): (DiskOwner, Reference) = (owner.parse()?, reference.parse()?);
    let store = Store::open(Path::new(home))?;
    // Another thread may set it, to end waits and copies early.
    let cancel = Cancel::new()?;
    let disks = store.disks(&cancel);

    for template in disks.templates()? {
        let (name, tag) = (&template.template, &template.tag);
        match template.rootfs {
            Ok(rootfs) => println!("{name}:{tag}: {} {}", rootfs.size.human(), rootfs.digest),
            Err(error) => println!("{name}:{tag}: {error}"),
        }
    }

    let cloned = match disks.clone_for(&owner, &reference, CloneChoice::Auto) {
        Ok(cloned) => cloned,
        // The template moved on since the owner's disk was made. This owner wants a fresh one.
        Err(StoreError::Mismatch { owner, have, want }) => {
            println!("{owner}: replacing the disk of {} by one of {}", have.short(), want.short());
            disks.release(&owner)?;
            disks.clone_for(&owner, &reference, CloneChoice::Auto)?
        }
        Err(error) => return Err(error.into()),
    };
    println!("{owner}: {} disk", if cloned.existed { "the existing" } else { "a new" });

    {
        // Held while the machine runs: nobody else gets the disk, and nobody releases it.
        let _lock = cloned.disk.lock("running a machine")?;
        println!("{}", drive(&cloned.disk));
        if let Err(StoreError::Busy { holder, .. }) = disks.release(&owner) {
            println!("{owner}: not released while {holder} has it");
        }
    }

    disks.release(&owner)?;
    println!("{owner}: released");
    Ok(())
}

/// Returns the disk as QEMU's command line wants it.
fn drive(disk: &Disk) -> String {
    let format = match disk.record().method {
        CloneMethod::Overlay => "qcow2",
        _ => "raw",
    };
    format!("-drive if=virtio,format={format},file={}", disk.path().display())
}
