//! Which redirections are followed.

use super::error::Refusal;
use super::url::Url;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs as _};

/// Returns whether an address is one of the public network: neither this host's nor one of a network of its own.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => is_public_v4(four),
        IpAddr::V6(six) => is_public_v6(six),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    // Carriers' own networks, 100.64.0.0/10, are shared by whoever is behind one.
    let shared = first == 100 && second & 0xc0 == 64;
    !(first == 0
        || shared
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_multicast())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let parts = address.segments();
    let four = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    // Addresses that stand for one of version 4: mapped, compatible, translated (64:ff9b::/96) and 6to4.
    let within = match parts {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            Some(four(high, low))
        }
        [0x2002, high, low, ..] => Some(four(high, low)),
        _ => None,
    };
    match within {
        // The unspecified address and the loopback one, too: 0.0.0.0 and 0.0.0.1.
        Some(four) => is_public_v4(four),
        None => {
            let site_local = parts[0] & 0xffc0 == 0xfec0;
            let own = address.is_unique_local() || address.is_unicast_link_local() || site_local;
            // 64:ff9b:1::/48 is for translation within a network.
            let translated = parts[..3] == [0x64, 0xff9b, 1];
            !(own || translated || address.is_multicast())
        }
    }
}

/// Returns whether a host is to be taken for one of the public network: one without an address of another kind.
/// A name that leads nowhere is: a proxy may know it.
pub(super) fn is_public_host(url: &Url) -> bool {
    match url.literal() {
        Some(address) => is_public(address),
        None => match (url.host(), url.port()).to_socket_addrs() {
            Ok(mut addresses) => addresses.any(|address| is_public(address.ip())),
            Err(_) => true,
        },
    }
}

/// Checks a redirection by what its addresses say; what the names in them lead to is checked when they are connected to.
pub(super) fn check(from: &Url, to: &Url, from_public: bool) -> Result<(), Refusal> {
    if !from.is_clear() && to.is_clear() {
        return Err(Refusal::InClear);
    }
    match to.literal() {
        Some(address) if from_public && !is_public(address) => Err(Refusal::Private),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_own_networks_are_not_public_however_they_are_written() {
        for text in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "255.255.255.255",
            "224.0.0.1",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fdff::1",
            "ff02::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in [
            "1.1.1.1",
            "100.63.0.1",
            "100.128.0.1",
            "172.32.0.1",
            "192.167.1.1",
            "2606:4700::1111",
            "2002:101:101::",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_redirection_leads_neither_into_the_clear_nor_into_an_own_network() {
        for (from, to, public, refusal) in [
            ("https://a/x", "https://b/y", true, None),
            ("http://a/x", "http://b/y", true, None),
            ("http://a/x", "https://b/y", true, None),
            ("https://a/x", "http://a/x", true, Some(Refusal::InClear)),
            ("https://a/x", "http://a/x", false, Some(Refusal::InClear)),
            ("https://a/x", "https://10.0.0.1/x", true, Some(Refusal::Private)),
            ("https://a/x", "https://10.0.0.1/x", false, None),
            ("http://a/x", "http://[::1]:8080/x", true, Some(Refusal::Private)),
            ("http://a/x", "http://[2606:4700::1111]/x", true, None),
        ] {
            let (from, to): (Url, Url) = (from.parse().unwrap(), to.parse().unwrap());
            assert_eq!(check(&from, &to, public).err(), refusal, "{from} to {to}");
        }
    }

    #[test]
    fn a_host_is_public_unless_all_its_addresses_are_its_own_networks() {
        for (url, public) in [
            ("http://127.0.0.1/", false),
            ("http://1.1.1.1/", true),
            ("http://localhost/", false),
            ("http://kiln.invalid/", true),
        ] {
            assert_eq!(is_public_host(&url.parse().unwrap()), public, "{url}");
        }
    }
}
