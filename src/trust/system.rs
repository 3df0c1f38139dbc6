//! The system's own store: a directory for local anchors, and a program that takes them over.

use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::run::{find, run};
use super::{Anchor, Direction, Outcome, Step, read};

/// A bundle of every public root is a quarter of a mebibyte.
const MAX_BUNDLE: u64 = 8 << 20;

/// How a family of systems does it.
struct System {
    name: &'static str,
    /// Below the root; its being there shows the family.
    anchors: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    /// Below the root: what the program makes of all anchors. Whether a change was taken over is seen here.
    bundle: &'static str,
    /// Tried first when something was taken away: Debian leaves a dangling link otherwise.
    fresh: &'static [&'static str],
}

/// The first whose directory and program are there is meant.
const SYSTEMS: [System; 4] = [
    System {
        name: "Fedora and its kin",
        anchors: "etc/pki/ca-trust/source/anchors",
        program: "update-ca-trust",
        arguments: &["extract"],
        bundle: "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        fresh: &["extract"],
    },
    System {
        name: "Arch",
        anchors: "etc/ca-certificates/trust-source/anchors",
        program: "update-ca-trust",
        arguments: &["extract"],
        bundle: "etc/ca-certificates/extracted/tls-ca-bundle.pem",
        fresh: &["extract"],
    },
    System {
        name: "SUSE",
        anchors: "etc/pki/trust/anchors",
        program: "update-ca-certificates",
        arguments: &[],
        bundle: "var/lib/ca-certificates/ca-bundle.pem",
        fresh: &["--fresh"],
    },
    System {
        name: "Debian and Alpine",
        anchors: "usr/local/share/ca-certificates",
        program: "update-ca-certificates",
        arguments: &[],
        bundle: "etc/ssl/certs/ca-certificates.crt",
        fresh: &["--fresh"],
    },
];

pub(super) fn apply(anchors: &[Anchor], root: &Path, direction: Direction) -> Vec<Step> {
    if cfg!(target_os = "macos") && root == Path::new("/") {
        return anchors.iter().map(|anchor| keychain(anchor, direction)).collect();
    }
    let Some(system) = SYSTEMS.iter().find(|system| program(system, root).is_some()) else {
        let why = "neither update-ca-certificates nor update-ca-trust is there: install the package ca-certificates, or add what `starlock trust --print` writes by hand";
        return vec![Step { store: store(root, "the system"), outcome: Outcome::Skipped(why.to_owned()) }];
    };
    let place = root.join(system.anchors);
    let mut changed = Vec::new();
    let mut steps = Vec::new();
    for anchor in anchors {
        let file = place.join(anchor.file_name());
        let outcome = match (change(anchor, &file, direction), direction) {
            (Ok(false), _) => Outcome::Unchanged,
            (Ok(true), Direction::Install) => {
                changed.push(file.clone());
                Outcome::Done(format!("wrote {}", file.display()))
            }
            (Ok(true), Direction::Uninstall) => {
                changed.push(file.clone());
                Outcome::Done(format!("removed {}", file.display()))
            }
            (Err(error), _) => Outcome::Failed(format!("{}: {error}", file.display())),
        };
        steps.push(Step { store: store(root, &format!("{}: {}", system.name, anchor.label)), outcome });
    }
    // A former run may have changed the files and ended before the program had taken them over.
    let behind = is_behind(anchors, &root.join(system.bundle), direction);
    if behind && changed.is_empty() && !steps.iter().any(|step| matches!(step.outcome, Outcome::Failed(_))) {
        changed.extend(anchors.iter().map(|anchor| place.join(anchor.file_name())));
    }
    if !changed.is_empty() {
        let outcome = match update(system, root, direction) {
            Ok(what) => Outcome::Done(format!("ran {what}")),
            Err(error) => {
                // Half a change would be taken for a whole one the next time.
                if direction == Direction::Install {
                    changed.iter().for_each(|file| drop(std::fs::remove_file(file)));
                }
                Outcome::Failed(error)
            }
        };
        steps.push(Step { store: store(root, system.name), outcome });
    }
    steps
}

/// Whether what the program made does not show the wish yet; `false` if there is nothing to see it by.
fn is_behind(anchors: &[Anchor], bundle: &Path, direction: Direction) -> bool {
    let mut text = String::new();
    let read = std::fs::File::open(bundle).and_then(|file| file.take(MAX_BUNDLE).read_to_string(&mut text));
    if read.is_err() {
        return false;
    }
    let bare = |text: &str| text.split_ascii_whitespace().collect::<String>();
    let bundle = bare(&text);
    let wanted = direction == Direction::Install;
    anchors.iter().any(|anchor| bundle.contains(&bare(&anchor.pem)) != wanted)
}

fn store(root: &Path, what: &str) -> String {
    match root == Path::new("/") {
        true => format!("system ({what})"),
        false => format!("image {} ({what})", root.display()),
    }
}

/// Whether anything had to change.
fn change(anchor: &Anchor, file: &Path, direction: Direction) -> std::io::Result<bool> {
    match direction {
        Direction::Install if read(file).as_deref() == Some(&anchor.pem) => Ok(false),
        Direction::Install => {
            if let Some(dir) = file.parent() {
                std::fs::create_dir_all(dir)?;
            }
            std::fs::write(file, &anchor.pem)?;
            // Everybody has to read it, whatever the umask of whoever installs it.
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644))?;
            Ok(true)
        }
        Direction::Uninstall => match std::fs::remove_file(file) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        },
    }
}

/// The system's program, as a path inside `root`.
fn program(system: &System, root: &Path) -> Option<PathBuf> {
    let parent = Path::new(system.anchors).parent()?;
    if !root.join(system.anchors).is_dir() && !root.join(parent).is_dir() {
        return None;
    }
    let dirs = ["usr/sbin", "usr/bin", "sbin", "bin"];
    let found =
        dirs.iter().map(|dir| Path::new(dir).join(system.program)).find(|file| root.join(file).is_file())?;
    Some(Path::new("/").join(found))
}

fn update(system: &System, root: &Path, direction: Direction) -> Result<String, String> {
    let Some(program) = program(system, root) else {
        return Err(format!("{} has gone", system.program));
    };
    let call = |arguments: &[&str]| {
        let words: String = arguments.iter().map(|argument| format!(" {argument}")).collect();
        if root == Path::new("/") {
            run(&program, arguments, None)?;
            return Ok(format!("{}{words}", program.display()));
        }
        // The image's own program, inside the image: it knows its places, and links point to where they will be.
        let chroot = find("chroot").ok_or("chroot is not there: it runs the image's own program")?;
        let mut all = vec![root.as_os_str().to_owned(), program.clone().into_os_string()];
        all.extend(arguments.iter().map(Into::into));
        run(&chroot, &all, None)?;
        Ok(format!("{}{words} inside {}", program.display(), root.display()))
    };
    match direction {
        Direction::Install => call(system.arguments),
        // Not every program of this name knows the option.
        Direction::Uninstall => call(system.fresh).or_else(|_: String| call(system.arguments)),
    }
}

/// macOS: the system keychain.
fn keychain(anchor: &Anchor, direction: Direction) -> Step {
    const KEYCHAIN: &str = "/Library/Keychains/System.keychain";
    let store = format!("system (keychain: {})", anchor.label);
    let security = Path::new("/usr/bin/security");
    let there = run(security, &["find-certificate", "-c", &anchor.label, "-p", KEYCHAIN], None)
        .is_ok_and(|pem| pem.trim() == anchor.pem.trim());
    let with_file = |verb: &[&str]| {
        // A name that nobody can have prepared, in a directory that all share.
        let name = format!("{:016x}-{}", rand::random::<u64>(), anchor.file_name());
        let file = std::env::temp_dir().join(name);
        let made = std::fs::OpenOptions::new().mode(0o600).create_new(true).write(true).open(&file);
        let written = made.and_then(|mut made| made.write_all(anchor.pem.as_bytes()));
        written.map_err(|e| format!("{}: {e}", file.display()))?;
        let path = file.to_string_lossy().into_owned();
        let mut arguments = verb.to_vec();
        arguments.push(&path);
        let outcome = run(security, &arguments, None);
        drop(std::fs::remove_file(&file));
        outcome
    };
    let outcome = match (direction, there) {
        (Direction::Install, true) | (Direction::Uninstall, false) => Outcome::Unchanged,
        (Direction::Install, false) => {
            match with_file(&["add-trusted-cert", "-d", "-r", "trustRoot", "-k", KEYCHAIN]) {
                Ok(_) => Outcome::Done(format!("added to {KEYCHAIN}")),
                Err(error) => Outcome::Failed(error),
            }
        }
        (Direction::Uninstall, true) => {
            let removed = with_file(&["remove-trusted-cert", "-d"])
                .and_then(|_| run(security, &["delete-certificate", "-c", &anchor.label, KEYCHAIN], None));
            match removed {
                Ok(_) => Outcome::Done(format!("removed from {KEYCHAIN}")),
                Err(error) => Outcome::Failed(error),
            }
        }
    };
    Step { store, outcome }
}
