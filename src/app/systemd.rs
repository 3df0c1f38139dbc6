//! What systemd is told. Without systemd nothing is sent.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::task::{OnExit, Supervisor};

/// Serving.
pub(super) fn ready(what: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(what)]);
}

/// A reload begins; [`ready`] ends it, whatever came of it.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "no monotonic clock for systemd"),
    }
}

/// Draining, at most for so long.
pub(super) fn stopping(limit: Duration) {
    let microseconds = u32::try_from(limit.as_micros()).unwrap_or(u32::MAX);
    send(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(microseconds)]);
}

/// Keeps the watchdog fed from the control plane, at half its interval, if the unit has one.
pub(super) fn watch(supervisor: &Supervisor) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    supervisor.spawn("watchdog".into(), OnExit::Done, move |shutdown| async move {
        loop {
            send(&[NotifyState::Watchdog]);
            tokio::select! {
                () = tokio::time::sleep(interval / 2) => {}
                // Draining takes its own time, which was announced; the watchdog is fed until the process ends.
                () = shutdown.wait() => return,
            }
        }
    });
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd could not be told");
    }
}
