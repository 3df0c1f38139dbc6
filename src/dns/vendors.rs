//! The vendors that the bridge to `dns-update` reaches, and the keys of each.

use super::spec::{Vendor, VendorKey};

/// Every vendor, sorted by name.
pub fn vendors() -> &'static [Vendor] {
    VENDORS
}

const fn secret(name: &'static str, doc: &'static str) -> VendorKey {
    VendorKey { name, secret: true, required: true, doc }
}

const fn text(name: &'static str, doc: &'static str) -> VendorKey {
    VendorKey { name, secret: false, required: true, doc }
}

const VENDORS: &[Vendor] = &[
    Vendor { name: "cloudflare", keys: &[secret("token", "API token with Zone.DNS edit rights")] },
    Vendor {
        name: "pdns",
        keys: &[
            text("url", "Base URL of the PowerDNS API"),
            secret("api_key", "The API key"),
            VendorKey {
                name: "server",
                secret: false,
                required: false,
                doc: "Server id (default `localhost`)",
            },
        ],
    },
];
