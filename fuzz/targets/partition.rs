//! Partition tables.
#![cfg_attr(feature = "libfuzzer", no_main)]

kiln_fuzz::target!(kiln_fuzz::partition::run);
