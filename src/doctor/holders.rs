//! Which process holds a port, as far as `/proc` tells this user.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// Bounds on what is read of `/proc`.
const MAX_TABLE: usize = 4 << 20;
const MAX_PROCESSES: usize = 20_000;
const MAX_FILES: usize = 20_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// `nginx (process 812)`; `None` if that cannot be seen.
pub(super) fn who(proc: &Path, protocol: Protocol, address: SocketAddr) -> Option<String> {
    let tables = [protocol.as_str().to_owned(), format!("{}6", protocol.as_str())];
    let inodes: Vec<u64> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(proc.join("net").join(table)).ok())
        .flat_map(|text| inodes(text.get(..MAX_TABLE).unwrap_or(&text), protocol, address))
        .collect();
    if inodes.is_empty() {
        return None;
    }
    let processes = fs::read_dir(proc).ok()?.filter_map(Result::ok).take(MAX_PROCESSES);
    for process in processes {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        // Other users' processes hide their files.
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        let holds = files.filter_map(Result::ok).take(MAX_FILES).any(|file| {
            let link = fs::read_link(file.path()).unwrap_or_default();
            let inode = link
                .to_string_lossy()
                .strip_prefix("socket:[")
                .and_then(|rest| rest.strip_suffix(']')?.parse().ok());
            inode.is_some_and(|inode: u64| inodes.contains(&inode))
        });
        if holds {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let name: String = name.trim().chars().filter(|c| !c.is_control()).collect();
            return Some(format!("{name} (process {pid})"));
        }
    }
    None
}

/// The sockets in a table of `/proc/net` that stand in the way of `address`.
fn inodes(table: &str, protocol: Protocol, address: SocketAddr) -> Vec<u64> {
    let mut found = Vec::new();
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(local), Some(state), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9)) else {
            continue;
        };
        // TCP sockets that listen; UDP sockets that are not connected.
        let wanted = if protocol == Protocol::Tcp { "0A" } else { "07" };
        let Some((ip, port)) = local.split_once(':') else { continue };
        if *state != wanted || u16::from_str_radix(port, 16) != Ok(address.port()) {
            continue;
        }
        let Some(ip) = parse_ip(ip) else { continue };
        let clash = ip == address.ip() || ip.is_unspecified() || address.ip().is_unspecified();
        if clash && let Ok(inode) = inode.parse() {
            found.push(inode);
        }
    }
    found
}

/// Hexadecimal in words of 32 bits, each in the machine's order.
fn parse_ip(text: &str) -> Option<IpAddr> {
    let words: Option<Vec<u8>> = (0..text.len() / 8)
        .map(|word| u32::from_str_radix(text.get(word * 8..word * 8 + 8)?, 16).ok().map(u32::to_ne_bytes))
        .collect::<Option<Vec<_>>>()
        .map(|words| words.concat());
    let bytes = words?;
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|ip| IpAddr::from(ip).to_canonical()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_for_what_is_in_the_way() {
        let host = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let table = format!(
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: {}:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1\n\
             1: {}:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1\n\
             2: {}:01BB {}:1234 01 00000000:00000000 00:00000000 00000000     0        0 333 1\n",
            host([127, 0, 0, 1]),
            host([0, 0, 0, 0]),
            host([127, 0, 0, 1]),
            host([127, 0, 0, 1])
        );
        let find = |address: &str| inodes(&table, Protocol::Tcp, address.parse().unwrap());
        assert_eq!(find("127.0.0.1:443"), [111, 222]);
        assert_eq!(find("192.0.2.1:443"), [222]);
        assert_eq!(find("[::]:443"), [111, 222]);
        assert!(find("127.0.0.1:80").is_empty());
    }
}
