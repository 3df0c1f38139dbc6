//! How the names of fields may be spelt: `-`, `_` and `.` are one to CGI and its heirs, so whoever removes a field removes them all.

/// Whether a server may take the field `name` for `plain`. Both in lower case.
pub fn is_spelling(name: &str, plain: &str) -> bool {
    name.len() == plain.len() && begins_with_spelling(name, plain)
}

/// Whether `name` begins with what a server may take for `plain`. Both in lower case.
pub fn begins_with_spelling(name: &str, plain: &str) -> bool {
    let one = |byte: u8| if matches!(byte, b'_' | b'.') { b'-' } else { byte };
    name.len() >= plain.len() && name.bytes().zip(plain.bytes()).all(|(a, b)| one(a) == one(b))
}

/// Whether the field is between us and another proxy: such fields are not passed on.
pub fn is_proxy(name: &str) -> bool {
    name == "proxy" || begins_with_spelling(name, "proxy-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_separator_is_any_other_and_nothing_else_is() {
        for (name, plain, same, begins) in [
            ("x-real-ip", "x-real-ip", true, true),
            ("x_real.ip", "x-real-ip", true, true),
            ("remote-groups", "remote_groups", true, true),
            ("x-real-ips", "x-real-ip", false, true),
            ("xreal-ip", "x-real-ip", false, false),
            ("x-real", "x-real-ip", false, false),
            ("", "x", false, false),
        ] {
            assert_eq!(
                (is_spelling(name, plain), begins_with_spelling(name, plain)),
                (same, begins),
                "{name} {plain}"
            );
        }
        for (name, expected) in [
            ("proxy", true),
            ("proxy-auth", true),
            ("proxy_x", true),
            ("proxy.", true),
            ("proxying", false),
            ("pro", false),
        ] {
            assert_eq!(is_proxy(name), expected, "{name}");
        }
    }
}
