//! `allow` and `deny`: which addresses may use a route.

use std::net::IpAddr;

use ipnet::IpNet;

use super::denial::Denial;
use super::spec::AccessSpec;

/// Networks that may and may not come.
#[derive(Debug, Default)]
pub(super) struct Access {
    allow: Box<[IpNet]>,
    deny: Box<[IpNet]>,
}

impl Access {
    pub(super) fn new(spec: &AccessSpec) -> Self {
        Self { allow: spec.allow.clone().into(), deny: spec.deny.clone().into() }
    }

    /// `deny` is asked first; with an `allow`, only what is in it may come.
    pub(super) fn admit(&self, client: IpAddr) -> Result<(), Denial> {
        let client = client.to_canonical();
        let listed = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&client));
        if listed(&self.deny) || (!self.allow.is_empty() && !listed(&self.allow)) {
            return Err(Denial::Address);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deny_comes_first_and_allow_shuts_out_the_rest() {
        for (allow, deny, client, comes) in [
            (&[][..], &[][..], "192.0.2.1", true),
            (&["10.0.0.0/8"], &[], "10.1.2.3", true),
            (&["10.0.0.0/8"], &[], "192.0.2.1", false),
            (&["10.0.0.0/8"], &[], "::ffff:10.1.2.3", true),
            (&["10.0.0.0/8"], &["10.6.0.0/16"], "10.6.0.1", false),
            (&[], &["192.0.2.0/24"], "192.0.2.1", false),
            (&[], &["192.0.2.0/24"], "::ffff:192.0.2.1", false),
            (&[], &["192.0.2.0/24"], "192.0.3.1", true),
            (&["2001:db8::/32"], &[], "10.0.0.1", false),
            (&["0.0.0.0/0"], &[], "2001:db8::1", false),
        ] {
            let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
            let access = Access::new(&AccessSpec { allow: nets(allow), deny: nets(deny) });
            assert_eq!(access.admit(client.parse().unwrap()).is_ok(), comes, "{allow:?} {deny:?} {client}");
        }
    }
}
