//! File systems.
#![cfg_attr(feature = "libfuzzer", no_main)]

kiln_fuzz::target!(kiln_fuzz::ext4::run);
