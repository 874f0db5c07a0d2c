//! Templates of mvm.
