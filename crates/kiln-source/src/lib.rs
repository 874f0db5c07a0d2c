//! What templates are made of, as others write it, and how it is told that it is what its maker gave.

pub mod bucket;
pub mod catalog;
pub mod checksum;
pub mod disk;
pub mod download;
pub mod ext4;
mod hash;
mod http;
pub mod oci;
pub mod openpgp;
