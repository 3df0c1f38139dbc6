//! Vendors that want one credential, or one with an account beside it.

use std::collections::HashMap;

use dns_update::DnsUpdater;

use super::{Care, Keys, MakeError, Row, duckdns, flag, opt, opt_secret, secret, text};

pub(super) const ROWS: &[Row] = &[
    Row::new("arvancloud", &[secret("api_key", "API key of a machine user")], |k| {
        Ok(DnsUpdater::new_arvancloud(k.get("api_key"), k.timeout)?)
    }),
    Row::new("bunny", &[secret("api_key", "API key of the account")], |k| {
        Ok(DnsUpdater::new_bunny(k.get("api_key"), k.timeout)?)
    })
    .fake(),
    Row::new("cloudflare", &[secret("token", "API token with Zone.DNS edit rights")], |k| {
        Ok(DnsUpdater::new_cloudflare(k.get("token"), k.timeout)?)
    })
    .fake(),
    Row::new("ddnss", &[secret("key", "Update key of the host")], |k| {
        Ok(DnsUpdater::new_ddnss(k.get("key"), k.timeout)?)
    })
    .one_value(),
    Row::new("desec", &[secret("token", "API token")], |k| {
        Ok(DnsUpdater::new_desec(k.get("token"), k.timeout)?)
    })
    .fake(),
    Row::new("digitalocean", &[secret("token", "API token with domain read and write")], |k| {
        Ok(DnsUpdater::new_digitalocean(k.get("token"), k.timeout)?)
    })
    .fake(),
    Row::new(
        "dnsimple",
        &[secret("token", "API token of the account"), text("account_id", "Number of the account")],
        |k| Ok(DnsUpdater::new_dnsimple(k.get("token"), k.get("account_id"), k.timeout)?),
    )
    .care(Care::Quotes)
    .fake(),
    Row::new("dreamhost", &[secret("api_key", "API key with all dns functions")], |k| {
        Ok(DnsUpdater::new_dreamhost(k.get("api_key"), k.timeout)?)
    }),
    Row::own("duckdns", &[secret("token", "Token of the account")], duckdns::make).one_value().fake(),
    Row::new("dynu", &[secret("api_key", "API key of the account")], |k| {
        Ok(DnsUpdater::new_dynu(k.get("api_key"), k.timeout)?)
    }),
    Row::new("freemyip", &[secret("token", "Token of the domain")], |k| {
        Ok(DnsUpdater::new_freemyip(k.get("token"), k.timeout)?)
    })
    .one_value(),
    Row::new(
        "gandiv5",
        &[secret("token", "Personal access token for the domain's technical configuration")],
        |k| Ok(DnsUpdater::new_gandiv5(k.get("token"), k.timeout)?),
    )
    .min_ttl(300)
    .fake(),
    Row::new("gcore", &[secret("token", "Permanent API token")], |k| {
        Ok(DnsUpdater::new_gcore(k.get("token"), k.timeout)?)
    }),
    Row::new("hetzner", &[secret("token", "API token of the Cloud project that holds the zone")], |k| {
        Ok(DnsUpdater::new_hetzner(k.get("token"), k.timeout)?)
    })
    .care(Care::LookFirst)
    .fake(),
    Row::new("hostingde", &[secret("api_key", "API key with DNS rights")], |k| {
        Ok(DnsUpdater::new_hostingde(k.get("api_key"), k.timeout)?)
    }),
    Row::new("hostinger", &[secret("token", "API token")], |k| {
        Ok(DnsUpdater::new_hostinger(k.get("token"), k.timeout)?)
    })
    .care(Care::Quotes)
    .fake(),
    Row::new(
        "hurricane",
        &[secret("credentials", "Pairs `zone:key`, separated by spaces, commas or lines")],
        |k| Ok(DnsUpdater::new_hurricane(pairs(k)?, k.timeout)?),
    )
    .one_value(),
    Row::new("infomaniak", &[secret("token", "API token with the scope domain")], |k| {
        Ok(DnsUpdater::new_infomaniak(k.get("token"), k.timeout)?)
    }),
    Row::new("ionos", &[secret("api_key", "API key: prefix, a dot, secret")], |k| {
        Ok(DnsUpdater::new_ionos(k.get("api_key"), k.timeout)?)
    })
    .min_ttl(300)
    .fake(),
    Row::new("ipv64", &[secret("api_key", "API key of the account")], |k| {
        Ok(DnsUpdater::new_ipv64(k.get("api_key"), k.timeout)?)
    }),
    Row::new("linode", &[secret("token", "Personal access token with domains read and write")], |k| {
        Ok(DnsUpdater::new_linode(k.get("token"), k.timeout)?)
    })
    .fake(),
    Row::new("namesilo", &[secret("api_key", "API key")], |k| {
        Ok(DnsUpdater::new_namesilo(k.get("api_key"), k.timeout)?)
    })
    .refusals(&["NameSilo error 110:", "NameSilo error 111:", "NameSilo error 112:", "NameSilo error 113:"])
    .fake(),
    Row::new("netlify", &[secret("token", "Personal access token")], |k| {
        Ok(DnsUpdater::new_netlify(k.get("token"), k.timeout)?)
    }),
    Row::new("ns1", &[secret("api_key", "API key with zone management rights")], |k| {
        Ok(DnsUpdater::new_ns1(k.get("api_key"), k.timeout)?)
    }),
    Row::new(
        "pdns",
        &[
            text("url", "Base URL of the PowerDNS API"),
            secret("api_key", "The API key"),
            opt("server", "Server id (default `localhost`)"),
        ],
        |k| Ok(DnsUpdater::new_pdns(k.get("api_key"), Some(k.get("url")), k.opt("server"), k.timeout)?),
    )
    .real(),
    Row::new(
        "plesk",
        &[text("base_url", "URL of the server, with port"), secret("api_key", "Secret key for the REST API")],
        |k| Ok(DnsUpdater::new_plesk(k.get("base_url"), k.get("api_key"), k.timeout)?),
    ),
    Row::new("safedns", &[secret("token", "API token with SafeDNS rights")], |k| {
        Ok(DnsUpdater::new_safedns(k.get("token"), k.timeout)?)
    }),
    Row::new("scaleway", &[secret("token", "Secret key of an API key with domain rights")], |k| {
        Ok(DnsUpdater::new_scaleway(k.get("token"), k.timeout)?)
    })
    .care(Care::LookFirst)
    .fake(),
    Row::new(
        "transip",
        &[
            text("login", "Name of the account"),
            secret("private_key_pem", "Private key for the API, PEM"),
            flag("global_key", "Whether the key works from any address (default false)"),
        ],
        |k| {
            Ok(DnsUpdater::new_transip(
                k.get("login"),
                k.get("private_key_pem"),
                k.flag("global_key"),
                k.timeout,
            )?)
        },
    )
    .fake(),
    Row::new(
        "vercel",
        &[secret("token", "Access token"), opt("team_id", "Team that owns the domain")],
        |k| Ok(DnsUpdater::new_vercel(k.get("token"), k.opt("team_id"), k.timeout)?),
    ),
    Row::new("vultr", &[secret("api_key", "API key; its access control has to allow this machine")], |k| {
        Ok(DnsUpdater::new_vultr(k.get("api_key"), k.timeout)?)
    })
    .min_ttl(120)
    .fake(),
    Row::new(
        "cloudns",
        &[
            opt("auth_id", "API user"),
            opt("sub_auth_id", "API sub-user, instead of `auth_id`"),
            secret("auth_password", "Its password"),
        ],
        |k| {
            let password = k.get("auth_password");
            Ok(DnsUpdater::new_cloudns(k.opt("auth_id"), k.opt("sub_auth_id"), password, k.timeout)?)
        },
    )
    .any_of(&["auth_id", "sub_auth_id"]),
    Row::new(
        "joker",
        &[
            opt_secret("api_key", "API key, instead of `username` and `password`"),
            opt("username", "User name, with `password`"),
            opt_secret("password", "Password, with `username`"),
        ],
        |k| Ok(DnsUpdater::new_joker(joker(k)?, k.timeout)?),
    )
    .any_of(&["api_key", "username"])
    .needs(&[("username", "password"), ("password", "username")])
    .excludes(&[("api_key", "username"), ("api_key", "password")]),
];

fn pairs(keys: &Keys) -> Result<HashMap<String, String>, MakeError> {
    keys.get("credentials")
        .split(|c: char| c == ',' || c.is_whitespace())
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.split_once(':') {
            Some((zone, key)) if !zone.is_empty() && !key.is_empty() => {
                Ok((zone.trim_end_matches('.').to_ascii_lowercase(), key.to_owned()))
            }
            _ => Err(MakeError::Key("credentials", "each entry has to be `zone:key`".into())),
        })
        .collect()
}

fn joker(keys: &Keys) -> Result<dns_update::providers::joker::JokerAuth, MakeError> {
    use dns_update::providers::joker::JokerAuth;
    match (keys.opt("api_key"), keys.opt("username"), keys.opt("password")) {
        (Some(key), None, None) => Ok(JokerAuth::ApiKey(key.to_owned())),
        (None, Some(username), Some(password)) => {
            Ok(JokerAuth::UsernamePassword { username: username.to_owned(), password: password.to_owned() })
        }
        (None, Some(_), None) => Err(MakeError::Key("password", "it is missing beside `username`".into())),
        _ => Err(MakeError::Key("api_key", "either this, or `username` and `password`".into())),
    }
}
