//! Routing netlink: the few messages that configure an interface.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::net::netdevice::name_to_index;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

use super::network::Mac;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;
const DUMP: u16 = 0x300;
const IFF_UP: u32 = 0x1;
const IFLA_ADDRESS: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_F_NODAD: u8 = 0x2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;
const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const HEADER_BYTES: usize = 16;
const IFADDR_BYTES: usize = 8;
const SCOPE_LINK: u8 = 253;

/// Largest datagram of a list.
const DATAGRAM_BYTES: usize = 64 * 1024;

/// Largest datagram of an answer, which repeats the request.
const ANSWER_BYTES: usize = 4096;

/// Datagrams read for one answer.
const DATAGRAMS_MAX: usize = 256;

/// An address with its prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) ip: IpAddr,
    pub(super) prefix: u8,
}

#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        // Protocol 0 is routing.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Returns the number of an interface.
    pub(super) fn index(&self, name: &str) -> io::Result<u32> {
        Ok(name_to_index(&self.socket, name)?)
    }

    pub(super) fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.request(RTM_NEWLINK, ACK, &link(index, IFF_UP, IFF_UP)).map(|_| ())
    }

    pub(super) fn set_down(&mut self, index: u32) -> io::Result<()> {
        self.request(RTM_NEWLINK, ACK, &link(index, 0, IFF_UP)).map(|_| ())
    }

    pub(super) fn set_mac(&mut self, index: u32, mac: Mac) -> io::Result<()> {
        let mut body = link(index, 0, 0);
        attribute(&mut body, IFLA_ADDRESS, &mac);
        self.request(RTM_NEWLINK, ACK, &body).map(|_| ())
    }

    /// Makes this the only address of its kind.
    pub(super) fn set_address(&mut self, index: u32, address: Address) -> io::Result<()> {
        let family = family(address.ip);
        let dump = [family, 0, 0, 0, 0, 0, 0, 0];
        for body in self.request(RTM_GETADDR, DUMP, &dump)? {
            if let Some(old) = OldAddress::parse(&body)
                && old.index == index
                && old.family == family
                && !(family == AF_INET6 && old.scope == SCOPE_LINK)
                && !(old.prefix == address.prefix && old.local == octets(address.ip))
            {
                self.request(RTM_DELADDR, ACK, &old.body(index))?;
            }
        }
        let flags = if family == AF_INET6 { IFA_F_NODAD } else { 0 };
        let mut body = ifaddr(family, address.prefix, flags, index);
        attribute(&mut body, IFA_LOCAL, &octets(address.ip));
        attribute(&mut body, IFA_ADDRESS, &octets(address.ip));
        if let IpAddr::V4(ip) = address.ip
            && address.prefix < 31
        {
            let host = u32::MAX.checked_shr(address.prefix.into()).unwrap_or(0);
            attribute(&mut body, IFA_BROADCAST, &(u32::from(ip) | host).to_be_bytes());
        }
        self.request(RTM_NEWADDR, ACK | CREATE | REPLACE, &body).map(|_| ())
    }

    pub(super) fn set_default_route(&mut self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let mut body = vec![family(gateway), 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST];
        // A gateway outside of the prefix is on the link all the same.
        body.extend_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
        attribute(&mut body, RTA_GATEWAY, &octets(gateway));
        attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
        self.request(RTM_NEWROUTE, ACK | CREATE | REPLACE, &body).map(|_| ())
    }

    /// Sends a request and returns the bodies of its answer.
    fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.sequence += 1;
        let length = u32::try_from(HEADER_BYTES + body.len()).map_err(io::Error::other)?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&0_u32.to_ne_bytes());
        message.extend_from_slice(body);
        send(&self.socket, &message, SendFlags::empty())?;
        let mut bodies = Vec::new();
        let mut buffer = vec![0; if flags & DUMP == DUMP { DATAGRAM_BYTES } else { ANSWER_BYTES }];
        for _ in 0..DATAGRAMS_MAX {
            let (count, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = buffer.get(..count).unwrap_or_default();
            while let Some((kind, sequence, body, next)) = split_message(rest) {
                rest = next;
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    NLMSG_DONE => return Ok(bodies),
                    NLMSG_ERROR => {
                        let code = body.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
                        return if code == 0 { Ok(bodies) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    _ => bodies.push(body.to_vec()),
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer has no end"))
    }
}

/// Splits kind, sequence number and body of the first message from the rest.
fn split_message(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let header = bytes.first_chunk::<HEADER_BYTES>()?;
    let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
    let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
    let body = bytes.get(HEADER_BYTES..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes([k0, k1]), u32::from_ne_bytes([s0, s1, s2, s3]), body, rest))
}

#[derive(Debug, PartialEq, Eq)]
struct OldAddress {
    family: u8,
    prefix: u8,
    scope: u8,
    index: u32,
    local: Vec<u8>,
}

impl OldAddress {
    fn parse(body: &[u8]) -> Option<Self> {
        let [family, prefix, _, scope, i0, i1, i2, i3] = *body.first_chunk::<IFADDR_BYTES>()?;
        let mut local = None;
        let mut rest = body.get(IFADDR_BYTES..)?;
        while let Some([l0, l1, k0, k1]) = rest.first_chunk::<4>().copied() {
            let length = usize::from(u16::from_ne_bytes([l0, l1]));
            let value = rest.get(4..length)?;
            match u16::from_ne_bytes([k0, k1]) {
                IFA_LOCAL => local = Some(value.to_vec()),
                IFA_ADDRESS if local.is_none() => local = Some(value.to_vec()),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Some(Self { family, prefix, scope, index: u32::from_ne_bytes([i0, i1, i2, i3]), local: local? })
    }

    fn body(&self, index: u32) -> Vec<u8> {
        let mut body = ifaddr(self.family, self.prefix, 0, index);
        attribute(&mut body, IFA_LOCAL, &self.local);
        body
    }
}

fn link(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut body = vec![AF_UNSPEC, 0, 0, 0];
    body.extend_from_slice(&index.to_ne_bytes());
    body.extend_from_slice(&flags.to_ne_bytes());
    body.extend_from_slice(&change.to_ne_bytes());
    body
}

fn ifaddr(family: u8, prefix: u8, flags: u8, index: u32) -> Vec<u8> {
    let mut body = vec![family, prefix, flags, 0];
    body.extend_from_slice(&index.to_ne_bytes());
    body
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Values here are at most an address long.
    let length = u16::try_from(value.len() + 4).unwrap_or(4);
    body.extend_from_slice(&length.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_printing_and_parsing() {
        let mut body = ifaddr(AF_INET, 24, 0, 2);
        attribute(&mut body, IFA_ADDRESS, &[10, 0, 2, 1]);
        attribute(&mut body, 3, b"eth0\0");
        attribute(&mut body, IFA_LOCAL, &[10, 0, 2, 15]);
        let old = OldAddress::parse(&body).unwrap();
        assert_eq!(
            (old.family, old.prefix, old.index, old.local.as_slice()),
            (AF_INET, 24, 2, &[10, 0, 2, 15][..])
        );
    }

    #[test]
    fn truncated_messages_are_not_read_past_their_end() {
        for length in 0..HEADER_BYTES + 4 {
            let bytes = vec![0xff; length];
            assert!(split_message(&bytes).is_none());
            assert!(OldAddress::parse(&bytes).is_none());
        }
    }
}
