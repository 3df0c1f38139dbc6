//! What a person has asked for and may watch: its steps and its end. Bounded; the oldest finished ones are forgotten.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// More than people watch at once.
const MAX_JOBS: usize = 64;
/// An order has a dozen.
const MAX_STEPS: usize = 200;

/// Something that was asked for, as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobView {
    /// What it has done, a line each.
    pub steps: Vec<String>,
    /// How it ended: what came of it, or why not.
    pub outcome: Option<Result<String, String>>,
}

/// All of them. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub(super) struct Jobs(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    last: u64,
    jobs: BTreeMap<u64, JobView>,
}

impl Jobs {
    /// Begins one; `None` if too many are under way.
    pub(super) fn begin(&self) -> Option<Job> {
        let mut known = self.lock();
        if known.jobs.len() >= MAX_JOBS {
            let done = known.jobs.iter().find(|(_, job)| job.outcome.is_some()).map(|(number, _)| *number);
            known.jobs.remove(&done?);
        }
        known.last += 1;
        let number = known.last;
        known.jobs.insert(number, JobView::default());
        Some(Job { jobs: self.clone(), number, ended: false })
    }

    pub(super) fn view(&self, number: u64) -> Option<JobView> {
        self.lock().jobs.get(&number).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end that does the work. Dropped without an end, it says so.
#[derive(Debug)]
pub(super) struct Job {
    jobs: Jobs,
    number: u64,
    ended: bool,
}

impl Job {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn step(&self, text: impl Into<String>) {
        if let Some(job) = self.jobs.lock().jobs.get_mut(&self.number)
            && job.steps.len() < MAX_STEPS
        {
            job.steps.push(text.into());
        }
    }

    pub(super) fn end(mut self, outcome: Result<String, String>) {
        self.finish(outcome);
    }

    fn finish(&mut self, outcome: Result<String, String>) {
        self.ended = true;
        if let Some(job) = self.jobs.lock().jobs.get_mut(&self.number) {
            job.outcome = Some(outcome);
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.ended {
            let gone = "it was stopped: Starlock was shutting down or got another configuration meanwhile";
            self.finish(Err(gone.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_bounded_and_always_end() {
        let jobs = Jobs::default();
        let first = jobs.begin().unwrap();
        let number = first.number();
        first.step("one");
        assert_eq!(jobs.view(number).unwrap(), JobView { steps: vec!["one".into()], outcome: None });
        drop(first);
        assert!(jobs.view(number).unwrap().outcome.unwrap().unwrap_err().contains("stopped"));
        let under_way: Vec<Job> = (1..MAX_JOBS).map(|_| jobs.begin().unwrap()).collect();
        let last = jobs.begin().unwrap();
        assert_eq!(jobs.view(number), None, "the finished one made room");
        assert!(jobs.begin().is_none());
        last.end(Ok("done".into()));
        assert!(jobs.begin().is_some());
        drop(under_way);
    }
}
