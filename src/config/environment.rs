//! Where things lie when the file does not say it.

use std::ffi::OsString;
use std::path::PathBuf;

/// Default places, injected so that reading a configuration stays pure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// State that must survive: `storage.path`.
    pub state_dir: PathBuf,
    /// What dies with the machine: the admin socket.
    pub runtime_dir: PathBuf,
}

impl Environment {
    /// The places of this process: systemd's directories, else `/var/lib` and `/run` as root, else the XDG directories.
    pub fn of_process() -> Self {
        Self::from_variables(|name| std::env::var_os(name), rustix::process::geteuid().is_root())
    }

    /// The same over any variables.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>, root: bool) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        // systemd joins several directories with colons; the first is ours.
        let systemd = |name: &str| {
            let first = set(name)?.to_string_lossy().split(':').next().map(PathBuf::from)?;
            first.is_absolute().then_some(first)
        };
        let xdg = |name: &str| set(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || set("HOME").map(PathBuf::from).unwrap_or_else(std::env::temp_dir);
        let state_dir = systemd("STATE_DIRECTORY").unwrap_or_else(|| match root {
            true => "/var/lib/starlock".into(),
            false => xdg("XDG_STATE_HOME").unwrap_or_else(|| home().join(".local/state")).join("starlock"),
        });
        let runtime_dir = systemd("RUNTIME_DIRECTORY").unwrap_or_else(|| match root {
            true => "/run/starlock".into(),
            // Without a session there is no runtime directory; the state directory is ours alone too.
            false => xdg("XDG_RUNTIME_DIR").map_or_else(|| state_dir.join("run"), |dir| dir.join("starlock")),
        });
        Self { state_dir, runtime_dir }
    }

    /// The admin socket of a configuration that names none.
    pub fn admin_socket(&self) -> PathBuf {
        self.runtime_dir.join("admin.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)], root: bool) -> (String, String) {
        let variable =
            |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        let env = Environment::from_variables(variable, root);
        (env.state_dir.display().to_string(), env.runtime_dir.display().to_string())
    }

    #[test]
    fn systemd_then_root_then_xdg() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let systemd = [("STATE_DIRECTORY", "/var/lib/a:/var/lib/b"), ("RUNTIME_DIRECTORY", "/run/a")];
        assert_eq!(of(&systemd, false), pair("/var/lib/a", "/run/a"));
        assert_eq!(of(&[], true), pair("/var/lib/starlock", "/run/starlock"));
        let home = [("HOME", "/home/ada"), ("XDG_RUNTIME_DIR", "/run/user/7"), ("XDG_STATE_HOME", "")];
        assert_eq!(of(&home, false), pair("/home/ada/.local/state/starlock", "/run/user/7/starlock"));
        let bare = [("HOME", "/home/ada"), ("XDG_STATE_HOME", "/x")];
        assert_eq!(of(&bare, false), pair("/x/starlock", "/x/starlock/run"));
    }
}
