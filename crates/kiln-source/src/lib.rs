//! What templates are made of, as others write it.

pub mod disk;
pub mod download;
pub mod ext4;
mod hash;
mod http;
pub mod oci;
