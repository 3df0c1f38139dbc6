//! Ways to choose one of several weighted servers. Tables are made when a plan is loaded; a choice allocates nothing.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Points on the ring for a server of average weight: shares differ by about a tenth from what the weights say.
const POINTS: usize = 160;
/// The longest sequence of round robin; weights that would need more are rounded.
const SEQUENCE: usize = 1 << 14;
/// A server over 5/4 of its share of the requests in flight sends its keys on to the next...
const BOUND: (i64, i64) = (5, 4);
/// ...but not while it has fewer than these, where shares are noise.
const SLACK: i64 = 10;
/// Redraws before all servers are looked at.
const DRAWS: usize = 4;

/// A way to choose one of `weights.len()` servers.
#[derive(Debug)]
pub(super) enum Choice {
    P2c(Draw),
    Random(Draw),
    RoundRobin(Sequence),
    Hash(Ring),
}

/// What a choice may look at. Indices count the servers that the choice was made for.
pub(super) struct View<'a, F, L> {
    /// Whether a server can take this request.
    pub(super) usable: F,
    /// Requests it is working on.
    pub(super) load: L,
    pub(super) weights: &'a [u32],
    /// Of the request.
    pub(super) key: u64,
    /// Where round robin stands.
    pub(super) cursor: &'a AtomicUsize,
}

impl Choice {
    /// The index of a usable server; `None` if there is none.
    pub(super) fn choose<F: Fn(usize) -> bool, L: Fn(usize) -> i64>(
        &self,
        view: &View<'_, F, L>,
    ) -> Option<usize> {
        let count = view.weights.len();
        if count <= 1 {
            return (count == 1 && (view.usable)(0)).then_some(0);
        }
        match self {
            Self::P2c(draw) => draw.two(view, rand::random),
            Self::Random(draw) => draw.one(view, rand::random),
            Self::RoundRobin(sequence) => sequence.next(view),
            Self::Hash(ring) => ring.of(view),
        }
    }
}

/// Draws by weight in constant time (Walker's and Vose's alias method).
#[derive(Debug)]
pub(super) struct Draw {
    /// For each column: below this it is the column's own server, else the other one.
    columns: Box<[(u32, u32)]>,
}

impl Draw {
    pub(super) fn new(weights: &[u32]) -> Self {
        let count = weights.len() as u64;
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        // A column is `total` high; a server has `weight * count` to put into columns.
        let mut left: Vec<u64> = weights.iter().map(|w| u64::from(*w) * count).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..weights.len()).partition(|n| left[*n] < total);
        let mut columns = vec![(u32::MAX, 0); weights.len()];
        for (own, column) in columns.iter_mut().enumerate() {
            column.1 = own as u32;
        }
        while let (Some(poor), Some(rich)) = (small.pop(), large.pop()) {
            columns[poor] = ((left[poor] * u64::from(u32::MAX) / total) as u32, rich as u32);
            left[rich] -= total - left[poor];
            if left[rich] < total { small.push(rich) } else { large.push(rich) }
        }
        Self { columns: columns.into() }
    }

    fn draw(&self, dice: u64) -> usize {
        let column = (((dice >> 32) * self.columns.len() as u64) >> 32) as usize;
        let (threshold, other) = self.columns[column];
        if dice as u32 <= threshold { column } else { other as usize }
    }

    /// The less loaded of two different usable servers that were drawn by weight.
    fn two<F: Fn(usize) -> bool, L: Fn(usize) -> i64>(
        &self,
        view: &View<'_, F, L>,
        mut dice: impl FnMut() -> u64,
    ) -> Option<usize> {
        let first = self.one(view, &mut dice)?;
        let second = (0..DRAWS).map(|_| self.draw(dice())).find(|n| *n != first && (view.usable)(*n));
        // So unlucky is who has one usable server, or one that weighs more than all others.
        let second = second.or_else(|| after(first, view).filter(|n| *n != first));
        Some(lighter(first, second, view))
    }

    fn one<F: Fn(usize) -> bool, L: Fn(usize) -> i64>(
        &self,
        view: &View<'_, F, L>,
        mut dice: impl FnMut() -> u64,
    ) -> Option<usize> {
        let drawn = (0..DRAWS).map(|_| self.draw(dice())).find(|n| (view.usable)(*n));
        drawn.or_else(|| weighed(view, dice()))
    }
}

/// The one with fewer requests in flight for its weight; the first if they are equal.
fn lighter<F, L: Fn(usize) -> i64>(first: usize, second: Option<usize>, view: &View<'_, F, L>) -> usize {
    let Some(second) = second else { return first };
    let load = |n: usize, other: usize| (view.load)(n) * i64::from(view.weights[other]);
    if load(second, first) < load(first, second) { second } else { first }
}

/// The next usable one after `n`, around the end.
fn after<F: Fn(usize) -> bool, L>(n: usize, view: &View<'_, F, L>) -> Option<usize> {
    let count = view.weights.len();
    (1..=count).map(|step| (n + step) % count).find(|n| (view.usable)(*n))
}

/// One of all usable servers, by weight.
fn weighed<F: Fn(usize) -> bool, L>(view: &View<'_, F, L>, dice: u64) -> Option<usize> {
    let usable = || (0..view.weights.len()).filter(|n| (view.usable)(*n));
    let total: u64 = usable().map(|n| u64::from(view.weights[n])).sum();
    let mut at = ((u128::from(dice) * u128::from(total)) >> 64) as u64;
    let found = usable().find(|n| {
        let weight = u64::from(view.weights[*n]);
        let hit = at < weight;
        at = at.saturating_sub(weight);
        hit
    });
    // Health may have changed between the two looks.
    found.or_else(|| usable().next())
}

/// Smooth weighted round robin, as nginx does it, written out for a whole period.
#[derive(Debug)]
pub(super) struct Sequence(Box<[u16]>);

impl Sequence {
    pub(super) fn new(weights: &[u32]) -> Self {
        let divisor = weights.iter().fold(0, |a, b| gcd(a, *b)).max(1);
        let sum = weights.iter().map(|w| (w / divisor) as usize).sum::<usize>();
        let scale = sum.div_ceil(SEQUENCE).max(1);
        let weights: Vec<i64> =
            weights.iter().map(|w| i64::from(w / divisor) / scale as i64).map(|w| w.max(1)).collect();
        let total: i64 = weights.iter().sum();
        let mut credit = vec![0; weights.len()];
        let next = |_| {
            for (credit, weight) in credit.iter_mut().zip(&weights) {
                *credit += weight;
            }
            let best = (0..credit.len()).max_by_key(|n| (credit[*n], std::cmp::Reverse(*n))).unwrap_or(0);
            credit[best] -= total;
            best as u16
        };
        Self((0..total).map(next).collect())
    }

    fn next<F: Fn(usize) -> bool, L>(&self, view: &View<'_, F, L>) -> Option<usize> {
        // A turn of a server that cannot take it is used up, so that the others share it evenly.
        for _ in 0..self.0.len().min(64) {
            let turn = view.cursor.fetch_add(1, Ordering::Relaxed) % self.0.len();
            let n = usize::from(self.0[turn]);
            if (view.usable)(n) {
                return Some(n);
            }
        }
        weighed(view, rand::random())
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016): a key goes to the next point on a ring; if
/// that server is over its bound, to the one after it.
#[derive(Debug)]
pub(super) struct Ring(Box<[(u64, u32)]>);

impl Ring {
    /// `names` places the servers on the ring: the same names make the same ring, on every machine.
    pub(super) fn new<'n>(names: impl Iterator<Item = &'n str>, weights: &[u32]) -> Self {
        let total: usize = weights.iter().map(|w| *w as usize).sum();
        let mut points = Vec::new();
        for (n, name) in names.enumerate() {
            let share = POINTS * weights.len() * weights[n] as usize;
            let count = (share / total.max(1)).clamp(1, POINTS * 64);
            let seed = hash(name.as_bytes());
            points.extend((0..count as u64).map(|k| (mix(seed ^ mix(k)), n as u32)));
        }
        points.sort_unstable();
        Self(points.into())
    }

    fn of<F: Fn(usize) -> bool, L: Fn(usize) -> i64>(&self, view: &View<'_, F, L>) -> Option<usize> {
        let start = self.0.partition_point(|(point, _)| *point < view.key);
        let walk = || {
            let (before, from) = self.0.split_at(start);
            from.iter().chain(before).map(|(_, n)| *n as usize)
        };
        let first = walk().find(|n| (view.usable)(*n))?;
        if (view.load)(first) < SLACK {
            return Some(first);
        }
        let usable = (0..view.weights.len()).filter(|n| (view.usable)(*n));
        let (requests, weight) =
            usable.fold((1, 0), |(r, w), n| (r + (view.load)(n), w + i64::from(view.weights[n])));
        let over = |n: usize| {
            let load = (view.load)(n);
            load >= SLACK && (load + 1) * weight * BOUND.1 > requests * i64::from(view.weights[n]) * BOUND.0
        };
        walk().find(|n| (view.usable)(*n) && !over(*n)).or(Some(first))
    }
}

/// FNV-1a with a finish that spreads it over all bits. The same in every process and version.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    }))
}

/// The finish of splitmix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests;
