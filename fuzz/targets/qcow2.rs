//! Disk images.
#![cfg_attr(feature = "libfuzzer", no_main)]

kiln_fuzz::target!(kiln_fuzz::qcow2::run);
