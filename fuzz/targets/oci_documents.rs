//! Indexes, manifests and configurations of OCI images.
#![cfg_attr(feature = "libfuzzer", no_main)]

kiln_fuzz::target!(kiln_fuzz::oci_documents::run);
