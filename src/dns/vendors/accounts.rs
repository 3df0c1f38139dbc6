//! Vendors that want a pair or more: user and password, key and secret.

use dns_update::DnsUpdater;
use dns_update::providers::bluecatv2::BluecatV2Config;
use dns_update::providers::infoblox::InfobloxConfig;
use dns_update::providers::ovh::OvhEndpoint;

use super::{Care, MakeError, Row, flag, namecheap, netcup, opt, secret, text};
use crate::dns::spec::{VendorKey, VendorKind};

const API_KEY: super::VendorKey = secret("api_key", "API key");
const API_SECRET: super::VendorKey = secret("api_secret", "API secret");
const USERNAME: super::VendorKey = text("username", "User name");
const PASSWORD: super::VendorKey = secret("password", "Password");

pub(super) const ROWS: &[Row] = &[
    Row::new(
        "autodns",
        &[
            USERNAME,
            PASSWORD,
            VendorKey {
                name: "context",
                secret: false,
                required: false,
                kind: VendorKind::Number,
                doc: "Number of the context (default 4)",
            },
        ],
        |k| {
            let context = k.opt("context").map(|c| c.parse()).transpose();
            let context =
                context.map_err(|_| MakeError::Key("context", "a whole number is wanted".into()))?;
            Ok(DnsUpdater::new_autodns(k.get("username"), k.get("password"), context, k.timeout)?)
        },
    ),
    Row::new(
        "bluecatv2",
        &[
            text("server_url", "URL of the Address Manager"),
            USERNAME,
            PASSWORD,
            text("config_name", "Configuration that holds the view"),
            text("view_name", "View that holds the zone"),
            flag("skip_deploy", "Whether changes are left undeployed (default false)"),
        ],
        |k| {
            Ok(DnsUpdater::new_bluecatv2(BluecatV2Config {
                server_url: k.owned("server_url"),
                username: k.owned("username"),
                password: k.owned("password"),
                config_name: k.owned("config_name"),
                view_name: k.owned("view_name"),
                skip_deploy: k.flag("skip_deploy"),
                request_timeout: k.timeout,
            })?)
        },
    ),
    Row::new("constellix", &[API_KEY, secret("secret_key", "Secret key")], |k| {
        Ok(DnsUpdater::new_constellix(k.get("api_key"), k.get("secret_key"), k.timeout)?)
    }),
    Row::new(
        "cpanel",
        &[text("base_url", "URL of the server, with port"), USERNAME, secret("token", "API token")],
        |k| Ok(DnsUpdater::new_cpanel(k.get("base_url"), k.get("username"), k.get("token"), k.timeout)?),
    ),
    Row::new("dnsmadeeasy", &[API_KEY, API_SECRET], |k| {
        Ok(DnsUpdater::new_dnsmadeeasy(k.get("api_key"), k.get("api_secret"), k.timeout)?)
    })
    .care(Care::Quotes)
    .fake(),
    Row::new("domeneshop", &[secret("api_token", "API token"), API_SECRET], |k| {
        Ok(DnsUpdater::new_domeneshop(k.get("api_token"), k.get("api_secret"), k.timeout)?)
    }),
    Row::new("easydns", &[secret("token", "API token"), secret("key", "API key")], |k| {
        Ok(DnsUpdater::new_easydns(k.get("token"), k.get("key"), k.timeout)?)
    }),
    Row::new("exoscale", &[API_KEY, API_SECRET], |k| {
        Ok(DnsUpdater::new_exoscale(k.get("api_key"), k.get("api_secret"), k.timeout)?)
    })
    .fake(),
    Row::new("glesys", &[text("api_user", "Number of the project"), API_KEY], |k| {
        Ok(DnsUpdater::new_glesys(k.get("api_user"), k.get("api_key"), k.timeout)?)
    }),
    Row::new("godaddy", &[API_KEY, API_SECRET], |k| {
        Ok(DnsUpdater::new_godaddy(k.get("api_key"), k.get("api_secret"), k.timeout)?)
    })
    .min_ttl(600)
    .fake(),
    Row::new("ibmcloud", &[text("username", "Classic infrastructure user"), API_KEY], |k| {
        Ok(DnsUpdater::new_ibmcloud(k.get("username"), k.get("api_key"), k.timeout)?)
    }),
    Row::new(
        "infoblox",
        &[
            text("host", "Host of the grid master"),
            opt("port", "Its port (default 443)"),
            USERNAME,
            PASSWORD,
            opt("wapi_version", "Version of the WAPI"),
            opt("dns_view", "View that holds the zone"),
        ],
        |k| {
            Ok(DnsUpdater::new_infoblox(InfobloxConfig {
                host: k.owned("host"),
                port: k.opt_owned("port"),
                username: k.owned("username"),
                password: k.owned("password"),
                wapi_version: k.opt_owned("wapi_version"),
                dns_view: k.opt_owned("dns_view"),
                request_timeout: k.timeout,
            })?)
        },
    ),
    Row::new(
        "inwx",
        &[USERNAME, PASSWORD, flag("sandbox", "Whether the test system is meant (default false)")],
        |k| Ok(DnsUpdater::new_inwx(k.get("username"), k.get("password"), k.flag("sandbox"), k.timeout)?),
    )
    .min_ttl(300)
    .refusals(&["code=2200", "code=2201"])
    .fake(),
    Row::new(
        "luadns",
        &[text("api_username", "Mail address of the account"), secret("api_token", "API token")],
        |k| Ok(DnsUpdater::new_luadns(k.get("api_username"), k.get("api_token"), k.timeout)?),
    ),
    Row::new("mythicbeasts", &[text("username", "API key id"), secret("password", "API secret")], |k| {
        Ok(DnsUpdater::new_mythicbeasts(k.get("username"), k.get("password"), k.timeout)?)
    }),
    Row::own(
        "namecheap",
        &[
            text("api_user", "API user"),
            API_KEY,
            text("client_ip", "Address of this machine as on the vendor's allow-list"),
            opt("username", "User that owns the domain (default: `api_user`)"),
        ],
        namecheap::make,
    )
    // 1011102: key; 1011150 and 1011148: address; 1050900: API not enabled.
    .refusals(&["1011102", "1011150", "1011148", "1050900"])
    .fake(),
    Row::new("namedotcom", &[USERNAME, secret("api_token", "API token")], |k| {
        Ok(DnsUpdater::new_namedotcom(k.get("username"), k.get("api_token"), k.timeout)?)
    }),
    Row::own(
        "netcup",
        &[text("customer_number", "Number of the customer"), API_KEY, secret("api_password", "API password")],
        netcup::make,
    )
    .refusals(&["netcup 4013"])
    .fake(),
    Row::new(
        "ovh",
        &[
            secret("application_key", "Application key"),
            secret("application_secret", "Application secret"),
            secret("consumer_key", "Consumer key with rights on /domain/zone/*"),
            VendorKey {
                name: "endpoint",
                secret: false,
                required: true,
                kind: VendorKind::Choice(OVH),
                doc: "Which of the vendor's APIs",
            },
        ],
        |k| {
            let endpoint: OvhEndpoint = k.get("endpoint").parse()?;
            let (key, secret) = (k.get("application_key"), k.get("application_secret"));
            Ok(DnsUpdater::new_ovh(key, secret, k.get("consumer_key"), endpoint, k.timeout)?)
        },
    )
    .care(Care::Quotes)
    .doubts(&["not found or not accessible"])
    .fake(),
    Row::new("porkbun", &[API_KEY, secret("secret_api_key", "Secret API key")], |k| {
        Ok(DnsUpdater::new_porkbun(k.get("api_key"), k.get("secret_api_key"), k.timeout)?)
    })
    .min_ttl(600)
    .refusals(&["Invalid API key", "API access"])
    .fake(),
    Row::new(
        "selectel",
        &[
            text("username", "Service user"),
            PASSWORD,
            text("account_id", "Number of the account"),
            text("project_id", "Id of the project that holds the zone"),
        ],
        |k| {
            let (user, password) = (k.get("username"), k.get("password"));
            let (account, project) = (k.get("account_id"), k.get("project_id"));
            Ok(DnsUpdater::new_selectel(user, password, account, project, k.timeout)?)
        },
    ),
    Row::new("simplycom", &[text("account_name", "Name of the account"), API_KEY], |k| {
        Ok(DnsUpdater::new_simplycom(k.get("account_name"), k.get("api_key"), k.timeout)?)
    }),
    Row::new("spaceship", &[API_KEY, API_SECRET], |k| {
        Ok(DnsUpdater::new_spaceship(k.get("api_key"), k.get("api_secret"), k.timeout)?)
    }),
    Row::new(
        "ultradns",
        &[USERNAME, PASSWORD, opt("endpoint", "URL of the API, if not the public one")],
        |k| {
            let (user, password) = (k.get("username"), k.get("password"));
            Ok(DnsUpdater::new_ultradns(user, password, k.opt_owned("endpoint"), k.timeout)?)
        },
    ),
    Row::new("websupport", &[API_KEY, secret("secret", "API secret")], |k| {
        Ok(DnsUpdater::new_websupport(k.get("api_key"), k.get("secret"), k.timeout)?)
    }),
    Row::new("zoneeu", &[text("username", "ZoneID user"), API_KEY], |k| {
        Ok(DnsUpdater::new_zoneeu(k.get("username"), k.get("api_key"), k.timeout)?)
    }),
];

const OVH: &[&str] =
    &["ovh-eu", "ovh-us", "ovh-ca", "kimsufi-eu", "kimsufi-ca", "soyoustart-eu", "soyoustart-ca"];
