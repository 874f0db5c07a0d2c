//! Who is connected to a port of this host, by the kernel's table of connections.

use crate::error::IoResult;
use crate::fs::read_limited;
use std::path::Path;

/// A line has 150 bytes: some 28,000 connections.
const TABLE_BYTES_MAX: usize = 4 << 20;
/// The kernel's code of an established connection.
const ESTABLISHED: &str = "01";

/// Returns whether a connection to one of these TCP ports of an IPv4 address of this host is established.
///
/// # Errors
/// When the kernel's table cannot be read or is larger than a limit: then it is not known.
pub fn is_connected(ports: &[u16]) -> IoResult<bool> {
    if ports.is_empty() {
        return Ok(false);
    }
    let table = read_limited(Path::new("/proc/self/net/tcp"), TABLE_BYTES_MAX)?;
    Ok(has_connection(&String::from_utf8_lossy(&table), ports))
}

/// Looks for an established connection whose own end is one of these ports.
fn has_connection(table: &str, ports: &[u16]) -> bool {
    table.lines().any(|line| {
        let mut words = line.split_ascii_whitespace();
        let (own, state) = (words.nth(1), words.nth(1));
        let port = own.and_then(|own| u16::from_str_radix(own.rsplit_once(':')?.1, 16).ok());
        state == Some(ESTABLISHED) && port.is_some_and(|port| ports.contains(&port))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_listener_is_no_connection_and_whoever_connects_is_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(!is_connected(&[port]).unwrap());
        assert!(!is_connected(&[]).unwrap());
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert!(is_connected(&[1, port]).unwrap());
        drop((client, server));
    }

    #[test]
    fn the_kernels_table_is_understood_and_a_strange_line_is_no_connection() {
        let line = |own: &str, state: &str| format!("   0: 0100007F:{own} 0200007F:1F90 {state} 0:0 1 2\n");
        let table =
            format!("  sl  local_address rem_address st\n{}{}", line("0050", "0A"), line("1F91", "01"));
        assert!(has_connection(&table, &[8081]));
        assert!(!has_connection(&table, &[80, 8080]));
        assert!(!has_connection("a\n\n0: x y 01\n0: 7F:zz y 01\n", &[80]));
    }

    #[test]
    fn the_table_of_connections_is_read_up_to_four_mebibytes() {
        assert_eq!(TABLE_BYTES_MAX, 4_194_304);
    }
}
