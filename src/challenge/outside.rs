//! Whether resolvers outside show the records, asked over HTTPS.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::propagation::{Watch, describe};
use crate::resolver::{Doh, TxtReply};

/// Before the first question and between two: a resolver keeps a "no", for as long as the zone says.
const WAITS: [Duration; 4] =
    [Duration::from_secs(5), Duration::from_secs(5), Duration::from_secs(10), Duration::from_secs(20)];

/// Asks every resolver until each shows everything, or `limit` is over. `Err` is the table for a person.
pub(super) async fn wait(
    doh: &Doh,
    urls: &[String],
    watches: &[Watch],
    limit: Duration,
) -> Result<(), String> {
    let deadline = Instant::now() + limit;
    let mut rounds = WAITS.iter().chain(std::iter::repeat(&WAITS[3]));
    let mut pending: Vec<(&str, &Watch, String)> = watches
        .iter()
        .flat_map(|watch| urls.iter().map(move |url| (url.as_str(), watch, "not asked yet".to_owned())))
        .collect();
    loop {
        let pause = rounds.next().copied().unwrap_or(WAITS[3]);
        // The last question is asked when the time is over, not before.
        tokio::time::sleep_until((Instant::now() + pause).min(deadline)).await;
        let asking = pending.iter().map(|(url, watch, _)| doh.txt(url, &watch.name));
        let answers = join_all(asking).await;
        let mut left = Vec::new();
        for ((url, watch, _), answer) in pending.into_iter().zip(answers) {
            match answer {
                Ok(TxtReply::Values(seen)) if watch.values.iter().all(|value| seen.contains(value)) => {}
                Ok(reply) => left.push((url, watch, describe(&Ok(reply), &watch.values))),
                Err(error) => left.push((url, watch, error)),
            }
        }
        pending = left;
        if pending.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let line =
                |(url, watch, said): &(&str, &Watch, String)| format!("  {}  {url}  {said}\n", watch.name);
            return Err(pending.iter().map(line).collect());
        }
    }
}
