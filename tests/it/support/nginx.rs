//! nginx as a server behind Starlock.

use std::path::Path;
use std::process::Command;

use super::process::Process;
use super::{eventually, free_port};

/// A running nginx.
pub(crate) struct Nginx {
    pub(crate) port: u16,
    _process: Process,
    dir: tempfile::TempDir,
}

impl Nginx {
    /// Starts it with `server` as the inside of its only `server` block, in which PORT is a free port, and DIR a directory of its
    /// own with `files` in it.
    pub(crate) fn start(server: &str, files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let (port, path) = (free_port(), dir.path().display().to_string());
        let server = server.replace("PORT", &port.to_string()).replace("DIR", &path);
        let config = format!(
            "daemon off; master_process off; pid {path}/pid; error_log stderr notice; events {{ worker_connections 1024; }}\n\
             http {{ access_log off; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy; fastcgi_temp_path {path}/f; \
             uwsgi_temp_path {path}/u; scgi_temp_path {path}/s; client_max_body_size 0; server {{ {server} }} }}\n"
        );
        std::fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let mut command = Command::new("nginx");
        command.args(["-p", &path, "-c", &format!("{path}/nginx.conf"), "-e", "stderr"]);
        let mut process = Process::start(&mut command, &dir.path().join("log"));
        eventually("nginx runs", || {
            assert!(process.is_running(), "nginx ended: {}", process.log());
            dir.path().join("pid").metadata().ok().filter(|meta| meta.len() > 0)
        });
        Self { port, _process: process, dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}
