//! Signatures made by GnuPG, checked here.

mod certificate;
mod clear;
mod detached;
mod gpg;
mod hostile;
