//! How long a lookup in the table of certificates takes.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use rand::seq::SliceRandom;
use starlock::tls::{Bundle, CertTable};

use crate::servers::Fleet;

const LOOKUPS: usize = 2_000_000;
const ROUNDS: usize = 7;

pub fn measure(fleet: &Fleet) {
    let bundles = fleet.pems().map(|path| {
        let pem = std::fs::read_to_string(path).unwrap();
        Arc::new(Bundle::from_pem(&pem, &pem).unwrap())
    });
    let table = CertTable::new(bundles, None);
    let mut names = fleet.names().to_vec();
    names.shuffle(&mut rand::rng());
    let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| round(&table, &names)).collect();
    rounds.sort_by(f64::total_cmp);
    println!(
        "\nLookup of a random name in Starlock's table of {}: {:.0} ns ({:.0} to {:.0}).",
        table.len(),
        rounds[ROUNDS / 2],
        rounds[0],
        rounds[ROUNDS - 1]
    );
}

fn round(table: &CertTable, names: &[String]) -> f64 {
    let begun = Instant::now();
    for name in names.iter().cycle().take(LOOKUPS) {
        assert!(black_box(table.lookup(black_box(name))).is_some());
    }
    begun.elapsed().as_secs_f64() * 1e9 / LOOKUPS as f64
}
