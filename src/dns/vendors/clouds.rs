//! Clouds, whose credentials carry regions, projects and tenants along.

use dns_update::DnsUpdater;
use dns_update::providers::azuredns::{AzureDnsConfig, AzureEnvironment};
use dns_update::providers::edgedns::EdgeDnsConfig;
use dns_update::providers::google_cloud_dns::GoogleCloudDnsConfig;
use dns_update::providers::lightsail::LightsailConfig;
use dns_update::providers::oraclecloud::OracleCloudConfig;
use dns_update::providers::route53::Route53Config;
use dns_update::providers::volcengine::VolcengineConfig;
use dns_update::providers::yandexcloud::YandexCloudConfig;

use super::{Row, flag, opt, opt_secret, secret, text};
use crate::dns::spec::{VendorKey, VendorKind};

const ACCESS_KEY: VendorKey = secret("access_key", "Access key id");
const SECRET_KEY: VendorKey = secret("secret_key", "Secret access key");

pub(super) const ROWS: &[Row] = &[
    Row::new(
        "alidns",
        &[
            ACCESS_KEY,
            SECRET_KEY,
            opt("region", "Region of the API"),
            opt_secret("security_token", "Token of temporary credentials"),
            opt("line", "Resolution line of the records"),
        ],
        |k| {
            let (access, secret) = (k.get("access_key"), k.get("secret_key"));
            let (region, token, line) = (k.opt("region"), k.opt("security_token"), k.opt("line"));
            Ok(DnsUpdater::new_alidns(access, secret, region, token, line, k.timeout)?)
        },
    ),
    Row::new(
        "azuredns",
        &[
            text("tenant_id", "Directory (tenant) id"),
            text("client_id", "Application (client) id"),
            secret("client_secret", "Client secret"),
            text("subscription_id", "Subscription that holds the zone"),
            text("resource_group", "Resource group that holds the zone"),
            VendorKey {
                name: "environment",
                secret: false,
                required: false,
                kind: VendorKind::Choice(&["public", "china", "usgovernment"]),
                doc: "Which cloud (default `public`)",
            },
        ],
        |k| {
            Ok(DnsUpdater::new_azuredns(AzureDnsConfig {
                tenant_id: k.owned("tenant_id"),
                client_id: k.owned("client_id"),
                client_secret: k.owned("client_secret"),
                subscription_id: k.owned("subscription_id"),
                resource_group: k.owned("resource_group"),
                environment: match k.opt("environment") {
                    Some("china") => AzureEnvironment::China,
                    Some("usgovernment") => AzureEnvironment::UsGovernment,
                    _ => AzureEnvironment::Public,
                },
                request_timeout: k.timeout,
            })?)
        },
    )
    .fake(),
    Row::new("baiducloud", &[ACCESS_KEY, SECRET_KEY], |k| {
        Ok(DnsUpdater::new_baiducloud(k.get("access_key"), k.get("secret_key"), k.timeout)?)
    }),
    Row::new(
        "edgedns",
        &[
            text("host", "Host of the API client"),
            secret("client_token", "Client token"),
            secret("client_secret", "Client secret"),
            secret("access_token", "Access token"),
            opt("account_switch_key", "Account to act in"),
        ],
        |k| {
            Ok(DnsUpdater::new_edgedns(EdgeDnsConfig {
                host: k.owned("host"),
                client_token: k.owned("client_token"),
                client_secret: k.owned("client_secret"),
                access_token: k.owned("access_token"),
                account_switch_key: k.opt_owned("account_switch_key"),
                request_timeout: k.timeout,
            })?)
        },
    ),
    Row::new(
        "google_cloud_dns",
        &[
            secret("service_account_json", "Key file of a service account with the role DNS Administrator"),
            text("project_id", "Project that holds the zone"),
            opt("managed_zone", "Name of the managed zone, instead of finding it"),
            flag("private_zone", "Whether only private zones are looked at (default false)"),
            opt("impersonate_service_account", "Service account to act as"),
        ],
        |k| {
            Ok(DnsUpdater::new_google_cloud_dns(GoogleCloudDnsConfig {
                service_account_json: k.owned("service_account_json"),
                project_id: k.owned("project_id"),
                managed_zone: k.opt_owned("managed_zone"),
                private_zone: k.flag("private_zone"),
                impersonate_service_account: k.opt_owned("impersonate_service_account"),
                request_timeout: k.timeout,
            })?)
        },
    )
    .doubts(&["Token exchange failed"])
    .fake(),
    Row::new("huaweicloud", &[ACCESS_KEY, SECRET_KEY, text("region", "Region of the API")], |k| {
        let (access, secret) = (k.get("access_key"), k.get("secret_key"));
        Ok(DnsUpdater::new_huaweicloud(access, secret, k.get("region"), k.timeout)?)
    }),
    Row::new(
        "lightsail",
        &[
            secret("access_key_id", "Access key id"),
            secret("secret_access_key", "Secret access key"),
            opt_secret("session_token", "Token of temporary credentials"),
            opt("region", "Region (the DNS API lives in us-east-1, the default)"),
            opt("domain", "Domain as the vendor knows it, instead of the zone"),
        ],
        |k| {
            Ok(DnsUpdater::new_lightsail(LightsailConfig {
                access_key_id: k.owned("access_key_id"),
                secret_access_key: k.owned("secret_access_key"),
                session_token: k.opt_owned("session_token"),
                region: k.opt_owned("region"),
                domain: k.opt_owned("domain"),
                request_timeout: k.timeout,
            })?)
        },
    ),
    Row::new("nifcloud", &[ACCESS_KEY, SECRET_KEY], |k| {
        Ok(DnsUpdater::new_nifcloud(k.get("access_key"), k.get("secret_key"), k.timeout)?)
    }),
    Row::new(
        "oraclecloud",
        &[
            text("tenancy_ocid", "OCID of the tenancy"),
            text("user_ocid", "OCID of the user"),
            text("fingerprint", "Fingerprint of the API key"),
            secret("private_key_pem", "Private key of the API key, PEM without passphrase"),
            text("region", "Region of the API"),
            text("compartment_ocid", "OCID of the compartment that holds the zone"),
        ],
        |k| {
            Ok(DnsUpdater::new_oraclecloud(OracleCloudConfig {
                tenancy_ocid: k.owned("tenancy_ocid"),
                user_ocid: k.owned("user_ocid"),
                fingerprint: k.owned("fingerprint"),
                private_key_pem: k.owned("private_key_pem"),
                // The crate refuses keys with a passphrase.
                private_key_password: None,
                region: k.owned("region"),
                compartment_ocid: k.owned("compartment_ocid"),
                request_timeout: k.timeout,
            })?)
        },
    ),
    Row::new(
        "route53",
        &[
            ACCESS_KEY,
            SECRET_KEY,
            opt_secret("session_token", "Token of temporary credentials"),
            opt("region", "Region that signatures name (default us-east-1)"),
            opt("zone_id", "Id of the hosted zone, instead of finding it"),
            flag("private_zone_only", "Whether only private hosted zones are looked at"),
            opt("endpoint", "URL of the API, if not the public one"),
        ],
        |k| {
            Ok(DnsUpdater::new_route53(Route53Config {
                access_key_id: k.owned("access_key"),
                secret_access_key: k.owned("secret_key"),
                session_token: k.opt_owned("session_token"),
                region: k.opt_owned("region"),
                hosted_zone_id: k.opt_owned("zone_id"),
                private_zone_only: k.opt("private_zone_only").map(|_| k.flag("private_zone_only")),
                endpoint: k.opt_owned("endpoint"),
            })?)
        },
    )
    .refusals(&["Route53 API error: 403"])
    .real(),
    Row::new(
        "tencentcloud",
        &[
            secret("secret_id", "Secret id"),
            secret("secret_key", "Secret key"),
            opt("region", "Region of the API"),
            opt_secret("session_token", "Token of temporary credentials"),
        ],
        |k| {
            let (id, key) = (k.get("secret_id"), k.get("secret_key"));
            Ok(DnsUpdater::new_tencentcloud(id, key, k.opt("region"), k.opt("session_token"), k.timeout)?)
        },
    ),
    Row::new(
        "volcengine",
        &[
            ACCESS_KEY,
            SECRET_KEY,
            opt("region", "Region of the API"),
            opt("host", "Host of the API, if not the public one"),
            opt("scheme", "`https` (default) or `http`"),
        ],
        |k| {
            Ok(DnsUpdater::new_volcengine(VolcengineConfig {
                access_key: k.owned("access_key"),
                secret_key: k.owned("secret_key"),
                region: k.opt_owned("region"),
                host: k.opt_owned("host"),
                scheme: k.opt_owned("scheme"),
                request_timeout: k.timeout,
            })?)
        },
    ),
    Row::new(
        "yandexcloud",
        &[
            secret("iam_token_b64", "Key file of a service account, base64"),
            text("folder_id", "Folder that holds the zone"),
        ],
        |k| {
            Ok(DnsUpdater::new_yandexcloud(YandexCloudConfig {
                iam_token_b64: k.owned("iam_token_b64"),
                folder_id: k.owned("folder_id"),
                request_timeout: k.timeout,
            })?)
        },
    ),
];
