//! Secrets in the file: tables that say where a secret lies, or the secret itself with a warning.

use toml::de::DeTable;

use super::blame::Subject;
use super::decode::{Decoder, sorted};
use super::error::{Problem, Span};
use super::references::Reference;
use super::table::{Kind, nearest};
use super::value::Value;
use crate::secret::{Secret, SecretSource};

impl Decoder<'_> {
    pub(super) fn plain_secret(&mut self, text: &str, span: Span, subject: &Subject<'_>) -> Option<Value> {
        if text.trim().is_empty() {
            self.push(Problem::error(span, format!("{subject} is empty")));
            return None;
        }
        self.secrets.push(span.clone());
        let problem = Problem::warning(span, format!("{subject} is written in the file itself"));
        self.push(problem.label("whoever can read the file has it").help(
            "keep it elsewhere: { file = \"/path\" }, { env = \"NAME\" }, or { credential = \"name\" } under systemd",
        ));
        Some(Value::Secret(SecretSource::Plain(Secret::new(text))))
    }

    /// Hashes are no secrets, but whoever sees one can guess at leisure: reports do not show them.
    pub(super) fn password_hash(&mut self, text: &str, span: Span, subject: &Subject<'_>) -> Option<Value> {
        self.secrets.push(span.clone());
        match crate::policy::check_hash(text) {
            Ok(()) => Some(Value::Text(text.to_owned())),
            Err(error) => {
                let problem = Problem::error(span, format!("{subject} must be a hash of a password"));
                self.push(problem.label(error.to_string()));
                None
            }
        }
    }

    pub(super) fn secret(&mut self, table: &DeTable<'_>, span: Span, subject: &Subject<'_>) -> Option<Value> {
        let help = "write { file = \"/path\" }, { env = \"NAME\" } or { credential = \"name\" }";
        let mut sources = Vec::new();
        for (key, node) in sorted(table) {
            let name: &str = key.get_ref();
            if !["env", "file", "credential"].contains(&name) {
                self.secrets.push(node.span());
                let problem =
                    Problem::error(key.span(), format!("unknown key `{name}` in the secret {subject}"));
                self.push(match nearest(name, ["env", "file", "credential"].into_iter()) {
                    Some(near) => problem.label(format!("did you mean `{near}`?")),
                    None => problem.help(help),
                });
                return None;
            }
            let inner = Subject { name, place: subject.place, each: false };
            let Some(Value::Text(text)) = self.value(node, Kind::Text, &inner) else { return None };
            if name == "credential" && (text.contains('/') || text == "." || text == "..") {
                self.push(
                    Problem::error(node.span(), "`credential` is the name of a file, without directories")
                        .help(
                            "systemd passes it in $CREDENTIALS_DIRECTORY; for a path use { file = \"...\" }",
                        ),
                );
                return None;
            }
            if name == "env" && (text.contains('=') || text.contains('\0') || text.starts_with('$')) {
                self.secrets.push(node.span());
                self.push(
                    Problem::error(node.span(), "`env` must be the name of an environment variable")
                        .help("write the bare name, without `$`"),
                );
                return None;
            }
            sources.push(match name {
                "env" => SecretSource::Env(text),
                "file" => SecretSource::File(text.into()),
                _ => SecretSource::Credential(text),
            });
        }
        if sources.len() > 1 {
            self.push(Problem::error(span, format!("{subject} comes from several places")).help(help));
            return None;
        }
        let source = sources.pop();
        if let Some(source) = &source {
            self.references.push((span, Reference::Secret(source.clone())));
        } else {
            self.push(Problem::error(span, format!("{subject} comes from nowhere")).help(help));
        }
        source.map(Value::Secret)
    }
}
