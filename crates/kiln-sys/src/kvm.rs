//! Whether `/dev/kvm` can really run a guest.
