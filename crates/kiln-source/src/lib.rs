//! What templates are made of, as others write it.

pub mod disk;
pub mod ext4;
pub mod oci;
