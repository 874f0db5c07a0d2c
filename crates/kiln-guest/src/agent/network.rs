//! Configures one network interface without the image's tools.

use std::net::IpAddr;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::boot::{list, read_attribute};
use super::files;
use super::netlink::{Address, Netlink};
use super::raw;
use super::stream::invalid;
use crate::error::{ErrorKind, RemoteError};
use crate::limits::DNS_SERVERS_MAX;
use crate::message::NetworkConfig;
use crate::token::InterfaceName;

const INTERFACES: &str = "/sys/class/net";
const RESOLV_CONF: &str = "/etc/resolv.conf";
const RESOLV_CONF_MODE: u32 = 0o644;

pub(super) type Mac = [u8; 6];

/// A configuration whose texts are parsed.
#[derive(Debug)]
struct Plan {
    mac: Option<Mac>,
    /// None for an interface that is to have a hardware address only.
    address: Option<Address>,
    gateway: Option<IpAddr>,
    dns: Vec<IpAddr>,
}

/// Applies a configuration to the named interface, else to the one with the hardware address, else to the first;
/// returns the interface. A hardware address alone is given to the interface there is, if there is one.
pub(super) fn apply(
    name: Option<&InterfaceName>,
    config: &NetworkConfig,
    notes: &mut Vec<String>,
) -> Result<Option<String>, RemoteError> {
    let plan = parse(config)?;
    let interfaces = interfaces();
    if plan.address.is_none() && interfaces.is_empty() {
        return Ok(None);
    }
    let missing = |what: String| RemoteError::new(ErrorKind::NotFound, what);
    let name = match (name, interfaces.as_slice()) {
        (Some(name), all) => all
            .iter()
            .find(|interface| *interface == name.as_str())
            .ok_or_else(|| missing(format!("the guest has no network interface {name}")))?,
        // Whatever address it has, it is the one.
        (None, [only]) => only,
        (None, all) => all
            .iter()
            .find(|interface| plan.mac.is_some() && mac_of(interface) == plan.mac)
            .or_else(|| all.first())
            .ok_or_else(|| missing("the guest has no network interface".to_owned()))?,
    };
    let failed = |what: &str| {
        let what = format!("cannot {what} interface {name}");
        move |error: std::io::Error| RemoteError::from_io(&what, &error)
    };
    if plan.address.is_none() {
        if let Some(mac) = plan.mac {
            set_mac(name, mac).map_err(failed("set the hardware address of"))?;
        }
        return Ok(Some(name.clone()));
    }
    let mut netlink = Netlink::open().map_err(failed("configure"))?;
    let index = netlink.index(name).map_err(failed("find"))?;
    // Makes the kernel announce a new address, so that the network forgets who had it.
    let announce = format!("/proc/sys/net/ipv4/conf/{name}/arp_notify");
    if std::fs::write(announce, "1").is_err() {
        notes.push(format!("interface {name} does not announce its address"));
    }
    if let Some(mac) = plan.mac
        && mac_of(name) != plan.mac
    {
        netlink.set_down(index).map_err(failed("stop"))?;
        netlink.set_mac(index, mac).map_err(failed("set the hardware address of"))?;
    }
    netlink.set_up(index).map_err(failed("start"))?;
    if let Some(address) = plan.address {
        netlink.set_address(index, address).map_err(failed("set the address of"))?;
    }
    if let Some(gateway) = plan.gateway {
        netlink.set_default_route(index, gateway).map_err(failed("set the default route of"))?;
    }
    if !plan.dns.is_empty() {
        write_resolv_conf(&plan.dns, notes)?;
    }
    Ok(Some(name.clone()))
}

/// Gives an interface a hardware address. Most take it as they are; others have to be stopped for it.
fn set_mac(name: &str, mac: Mac) -> std::io::Result<()> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // It takes much less of a guest than the same through netlink.
    if raw::set_hardware_address(socket, name, mac).is_err() {
        let mut netlink = Netlink::open()?;
        let index = netlink.index(name)?;
        netlink.set_down(index)?;
        netlink.set_mac(index, mac)?;
    }
    Ok(())
}

/// Starts the loopback interface, where the guest has one: what a machine without a network talks over too.
pub(super) fn start_loopback() -> Result<(), RemoteError> {
    let started = Netlink::open().and_then(|mut netlink| match netlink.index("lo") {
        Ok(index) => netlink.set_up(index),
        Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(()),
        Err(error) => Err(error),
    });
    started.map_err(|error| RemoteError::from_io("cannot start interface lo", &error))
}

/// Lists the names of interfaces but `lo`, those with a device first.
fn interfaces() -> Vec<String> {
    let mut names = list(INTERFACES);
    names.retain(|name| name != "lo");
    names.sort_by_cached_key(|name| !Path::new(INTERFACES).join(name).join("device").exists());
    names
}

fn mac_of(name: &str) -> Option<Mac> {
    parse_mac(&read_attribute(&Path::new(INTERFACES).join(name).join("address"))?)
}

/// Checks a configuration without applying it.
pub(super) fn check(config: &NetworkConfig) -> Result<(), RemoteError> {
    parse(config).map(|_| ())
}

fn parse(config: &NetworkConfig) -> Result<Plan, RemoteError> {
    let mac = match &config.mac {
        None => None,
        Some(text) => {
            Some(parse_mac(text).ok_or_else(|| invalid(format!("hardware address {text:?} is not valid")))?)
        }
    };
    let parsed = || {
        parse_address(&config.address)
            .ok_or_else(|| invalid(format!("address {:?} is not valid", config.address)))
    };
    let address = (!config.address.is_empty()).then(parsed).transpose()?;
    let ip = |what: &str, text: &String| {
        text.parse::<IpAddr>().map_err(|_| invalid(format!("{what} {text:?} is not valid")))
    };
    let gateway = config.gateway.as_ref().map(|text| ip("gateway", text)).transpose()?;
    match &address {
        Some(address) if gateway.is_some_and(|gateway| gateway.is_ipv4() != address.ip.is_ipv4()) => {
            return Err(invalid("gateway and address are of different kinds"));
        }
        None if mac.is_none() || gateway.is_some() || !config.dns.is_empty() => {
            return Err(invalid("an interface without an address has a hardware address and nothing else"));
        }
        _ => {}
    }
    if config.dns.len() > DNS_SERVERS_MAX {
        return Err(invalid(format!("more than {DNS_SERVERS_MAX} dns servers")));
    }
    let dns = config.dns.iter().map(|text| ip("dns server", text)).collect::<Result<_, _>>()?;
    Ok(Plan { mac, address, gateway, dns })
}

fn parse_address(text: &str) -> Option<Address> {
    let (ip, prefix) = text.split_once('/')?;
    let ip: IpAddr = ip.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    (prefix <= if ip.is_ipv4() { 32 } else { 128 }).then_some(Address { ip, prefix })
}

fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

fn write_resolv_conf(dns: &[IpAddr], notes: &mut Vec<String>) -> Result<(), RemoteError> {
    let path = Path::new(RESOLV_CONF);
    if let Ok(target) = std::fs::read_link(path) {
        notes.push(format!("{RESOLV_CONF} was a symlink to {} and is a file now", target.display()));
    }
    let text: String = dns.iter().map(|server| format!("nameserver {server}\n")).collect();
    files::replace(path, text.as_bytes(), RESOLV_CONF_MODE)
        .map_err(|error| RemoteError::from_io(format!("cannot write {RESOLV_CONF}"), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_servers_are_limited() {
        let with = |count| {
            let dns = vec!["10.0.2.3".to_owned(); count];
            parse(&NetworkConfig { mac: None, address: "10.0.2.15/24".to_owned(), gateway: None, dns })
        };
        assert_eq!(with(DNS_SERVERS_MAX).unwrap().dns.len(), DNS_SERVERS_MAX);
        let Err(error) = with(DNS_SERVERS_MAX + 1) else { panic!("nine were taken") };
        assert!(error.to_string().contains("more than 8 dns servers"), "{error}");
    }

    #[test]
    fn texts_are_parsed_strictly() {
        assert_eq!(parse_mac("52:54:00:12:34:56"), Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
        for bad in ["52:54:00:12:34", "52:54:00:12:34:56:78", "5254:00:12:34:5", "gg:54:00:12:34:56", ""] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
        assert!(parse_address("10.0.2.15/24").is_some());
        assert!(parse_address("fd00::1/64").is_some());
        for bad in ["10.0.2.15", "10.0.2.15/33", "10.0.2/24", "x/1"] {
            assert!(parse_address(bad).is_none(), "{bad}");
        }
    }
}
