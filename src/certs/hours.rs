//! How many renewals are planned for each hour, so that a new one may go where there are fewer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

const HOUR: u64 = 3600;

/// The plan of all certificates of a process: an entry for each hour that has any, so never more than there are certificates.
/// It is not stored: each certificate takes its place again when it is loaded.
#[derive(Debug, Default)]
pub(crate) struct Hours(Mutex<HashMap<u64, u32>>);

impl Hours {
    /// How many are planned for the hour that holds `moment`.
    pub(crate) fn planned(&self, moment: SystemTime) -> u32 {
        self.counts().get(&hour(moment)).copied().unwrap_or(0)
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<u64, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, hour: u64) {
        if let Entry::Occupied(mut entry) = self.counts().entry(hour) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// One certificate's place in the plan; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    hours: Arc<Hours>,
    hour: Option<u64>,
}

impl Place {
    /// None yet.
    pub(crate) fn nowhere(hours: Arc<Hours>) -> Self {
        Self { hours, hour: None }
    }

    /// The renewal is planned for `moment` from now on, or not at all.
    pub(crate) fn move_to(&mut self, moment: Option<SystemTime>) {
        let next = moment.map(hour);
        if next == self.hour {
            return;
        }
        if let Some(next) = next {
            *self.hours.counts().entry(next).or_default() += 1;
        }
        if let Some(former) = std::mem::replace(&mut self.hour, next) {
            self.hours.leave(former);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.move_to(None);
    }
}

fn hour(moment: SystemTime) -> u64 {
    moment.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d: Duration| d.as_secs() / HOUR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_counted_once_moves_and_is_given_back() {
        let hours = Arc::new(Hours::default());
        let at = |minutes: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(minutes * 60);
        let mut one = Place::nowhere(hours.clone());
        let mut two = Place::nowhere(hours.clone());
        one.move_to(Some(at(60)));
        one.move_to(Some(at(119)));
        two.move_to(Some(at(61)));
        assert_eq!([0, 59, 60, 119, 120].map(|minute| hours.planned(at(minute))), [0, 0, 2, 2, 0]);
        two.move_to(Some(at(120)));
        assert_eq!([60, 120].map(|minute| hours.planned(at(minute))), [1, 1]);
        one.move_to(None);
        drop(two);
        assert!(hours.counts().is_empty(), "nothing is kept of hours that are over");
    }
}
