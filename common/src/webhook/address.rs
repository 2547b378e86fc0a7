//! Which addresses a webhook may be sent to: those of the public internet, and those of networks that the operator names.
//!
//! Every address gets exactly one verdict. One that carries an IPv4 address within it gets that one's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// What is not for strangers to reach, though it looks like any address (IANA's special-purpose registry).
const CLOSED_V4: [(u32, u8); 15] = [
    (0x0000_0000, 8),  // this network
    (0x0a00_0000, 8),  // private
    (0x6440_0000, 10), // shared between carriers and their customers
    (0x7f00_0000, 8),  // loopback
    (0xa9fe_0000, 16), // link-local, with the metadata services of clouds
    (0xac10_0000, 12), // private
    (0xc000_0000, 24), // protocol assignments
    (0xc000_0200, 24), // documentation
    (0xc058_6300, 24), // 6to4 relays
    (0xc0a8_0000, 16), // private
    (0xc612_0000, 15), // benchmarks
    (0xc633_6400, 24), // documentation
    (0xcb00_7100, 24), // documentation
    (0xe000_0000, 4),  // multicast
    (0xf000_0000, 4),  // reserved, with broadcast
];

/// Of IPv6 only `2000::/3` is the public internet, and of that not these.
const CLOSED_V6: [(u128, u8); 4] = [
    (0x2001 << 112, 23),     // protocol assignments, with Teredo (2001::/32)
    (0x2001_0db8 << 96, 32), // documentation
    (0x2002 << 112, 16),     // 6to4
    (0x3fff << 112, 20),     // documentation
];
const GLOBAL_V6: (u128, u8) = (0x2000 << 112, 3);
/// Translators between IPv6 and IPv4 (RFC 6052) carry the address in the last four bytes.
const TRANSLATED: (u128, u8) = (0x0064_ff9b << 96, 96);

/// Whether an address belongs to the public internet.
pub fn is_public(address: IpAddr) -> bool {
    match plain(address) {
        IpAddr::V4(address) => !CLOSED_V4.iter().any(|&(net, bits)| {
            let mask = u32::MAX << (32 - bits);
            u32::from(address) & mask == net
        }),
        IpAddr::V6(address) => {
            let value = u128::from(address);
            within(value, GLOBAL_V6) && !CLOSED_V6.iter().any(|&net| within(value, net))
        }
    }
}

/// Whether an address belongs to one of the networks that the operator opened.
pub fn is_opened(address: IpAddr, opened: &[IpNet]) -> bool {
    let address = plain(address);
    opened.iter().any(|net| net.contains(&address))
}

/// The IPv4 address within an IPv6 one, if it has one.
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(six) = address else { return address };
    if let Some(four) = six.to_ipv4_mapped() {
        return four.into();
    }
    if within(six.into(), TRANSLATED) {
        return last_four(six).into();
    }
    address
}

fn last_four(address: Ipv6Addr) -> Ipv4Addr {
    (u128::from(address) as u32).into()
}

const fn within(value: u128, (net, bits): (u128, u8)) -> bool {
    value >> (128 - bits) == net >> (128 - bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn verdict(text: &str) -> bool {
        is_public(text.parse().unwrap())
    }

    #[test]
    fn what_is_not_the_public_internet_is_closed() {
        for closed in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.1.2.3",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::127.0.0.1",
            "::8.8.8.8",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::8.8.8.8",
            "100::1",
            "2001::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "2001:10::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!verdict(closed), "{closed}");
        }
    }

    #[test]
    fn the_public_internet_is_open() {
        for open in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.255.255",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.255.255",
            "198.20.0.1",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert!(verdict(open), "{open}");
        }
    }

    #[test]
    fn an_opened_network_is_known_in_its_ipv6_dress_too() {
        let opened = ["127.0.0.0/8".parse().unwrap()];
        assert!(is_opened("127.0.0.1".parse().unwrap(), &opened));
        assert!(is_opened("::ffff:127.0.0.1".parse().unwrap(), &opened));
        assert!(!is_opened("::1".parse().unwrap(), &opened));
        assert!(!is_opened("10.0.0.1".parse().unwrap(), &opened));
    }

    proptest! {
        #[test]
        fn an_ipv4_address_has_one_verdict_in_every_dress(address: u32) {
            let four = Ipv4Addr::from(address);
            let translated = Ipv6Addr::from(0x0064_ff9b_u128 << 96 | u128::from(address));
            prop_assert_eq!(is_public(four.into()), is_public(four.to_ipv6_mapped().into()));
            prop_assert_eq!(is_public(four.into()), is_public(translated.into()));
            // What the standard library calls closed is closed here as well.
            let closed = four.is_private() || four.is_loopback() || four.is_link_local() || four.is_multicast()
                || four.is_broadcast() || four.is_documentation() || four.is_unspecified();
            prop_assert!(!(closed && is_public(four.into())), "{}", four);
        }
    }
}
