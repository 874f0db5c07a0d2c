//! OCI images: made by hand, byte by byte, and by other programs.

mod hostile;
mod image;
mod layers;
mod make;
mod other;
mod registry;
