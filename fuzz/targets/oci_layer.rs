//! Layers of OCI images.
#![cfg_attr(feature = "libfuzzer", no_main)]

kiln_fuzz::target!(kiln_fuzz::oci_layer::run);
