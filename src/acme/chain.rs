//! Which of the CA's chains to serve (RFC 8555 section 7.4.2).

use x509_parser::pem::Pem;

use super::session::Session;

/// The chain whose topmost certificate was issued by `wanted`: the default one, or an alternate. The default if none is, or if an
/// alternate cannot be had: a certificate under another root is better than none.
pub(super) async fn choose(
    session: &Session,
    default: String,
    alternates: &[String],
    wanted: &str,
) -> String {
    let mut offered = Vec::new();
    match top_issuer(&default) {
        Some(name) if is(&name, wanted) => return default,
        Some(name) => offered.push(name),
        None => {}
    }
    for url in alternates {
        let chain = match session.get(url).await {
            Ok(answer) => String::from_utf8_lossy(&answer.body).into_owned(),
            Err(error) => {
                tracing::warn!(url, %error, "an alternate chain cannot be fetched");
                continue;
            }
        };
        match top_issuer(&chain) {
            Some(name) if is(&name, wanted) => return chain,
            Some(name) => offered.push(name),
            None => tracing::warn!(url, "an alternate chain is not one"),
        }
    }
    tracing::warn!(
        wanted,
        offered = offered.join(", "),
        "the CA offers no chain up to acme.preferred_chain; its default is served"
    );
    default
}

fn is(name: &str, wanted: &str) -> bool {
    name.trim().eq_ignore_ascii_case(wanted.trim())
}

/// The issuer's common name in the last certificate of a PEM chain.
fn top_issuer(chain: &str) -> Option<String> {
    let mut last = None;
    for pem in Pem::iter_from_buffer(chain.as_bytes()) {
        last = Some(pem.ok()?);
    }
    let last = last?;
    let certificate = last.parse_x509().ok()?;
    let name = certificate.issuer().iter_common_name().next()?.as_str().ok()?;
    Some(name.chars().filter(|c| !c.is_control()).take(200).collect())
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    #[test]
    fn the_topmost_certificate_names_its_issuer() {
        let key = KeyPair::generate().unwrap();
        let mut root = CertificateParams::default();
        root.distinguished_name.push(DnType::CommonName, "Old Root X1");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = Issuer::new(root, key);
        let mut middle = CertificateParams::default();
        middle.distinguished_name.push(DnType::CommonName, "Middle");
        middle.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let middle_key = KeyPair::generate().unwrap();
        let middle_pem = middle.signed_by(&middle_key, &issuer).unwrap().pem();
        let leaf_key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        let leaf_pem = leaf.signed_by(&leaf_key, &Issuer::new(middle, middle_key)).unwrap().pem();
        assert_eq!(top_issuer(&leaf_pem).as_deref(), Some("Middle"));
        let name = top_issuer(&format!("{leaf_pem}{middle_pem}")).unwrap();
        assert!(is(&name, " old root x1") && !is(&name, "Middle"));
        assert_eq!(top_issuer("nothing"), None);
    }
}
