//! Bodies stream: a gibibyte each way costs no memory.

use std::process::Command;

use crate::support::alone;
use crate::support::starlock::{Starlock, local_root};
use crate::support::web::Upstream;

const GIB: u64 = 1 << 30;

#[test]
fn a_gibibyte_up_and_down_stays_under_64_mib() {
    let _alone = alone();
    let app = Upstream::start("app");
    let mut starlock = Starlock::start(&format!(
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[log]\naccess = \"off\"\n[routes]\n\"app.localhost\" = \"{}\"\n",
        app.url()
    ));
    let address = starlock.address("https");
    let root = starlock.path("root.pem");
    std::fs::write(&root, local_root(&starlock)).unwrap();
    let curl = |protocol: &str, rest: &str| {
        let script = format!(
            "{rest} --max-time 300 -sS --fail {protocol} --cacert {} --connect-to app.localhost::{address}",
            root.display()
        );
        let output = Command::new("bash").args(["-o", "pipefail", "-c", &script]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for protocol in ["--http1.1", "--http2"] {
        let down = format!("curl https://app.localhost/bytes/{GIB} -o /dev/null -w '%{{size_download}}'");
        assert_eq!(curl(protocol, &down), GIB.to_string());
        let up = format!("head -c {GIB} /dev/zero | curl -T - https://app.localhost/upload");
        assert!(curl(protocol, &up).contains(&format!("received {GIB}")));
        let peak = starlock.process().peak_kib();
        assert!(peak < 64 * 1024, "{protocol}: {peak} KiB were resident at the peak");
    }
}
