//! Signatures made by GnuPG, checked here.

mod built_in;
mod certificate;
mod clear;
mod detached;
mod gpg;
mod hostile;
