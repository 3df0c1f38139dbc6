//! `basic_auth` (RFC 7617): who may come, by name and password.
//!
//! Verifying a password is slow on purpose. So it happens away from the traffic threads, few at a time ([`Turns`]), and what was
//! verified is remembered for a minute under a keyed hash. A name that nobody has costs what a known one costs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::identity::Identity;
use super::users::{self, Stamp, Users, UsersError};
use crate::secret::Secret;

/// What was verified is taken for granted this long.
const REMEMBERED: Duration = Duration::from_secs(60);
/// The file is looked at when it was not for this long.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Shards of what is remembered, so that workers seldom meet, and what each of them holds at most.
const SHARDS: usize = 16;
const PER_SHARD: usize = 256;
/// Passwords that wait for their turn; beyond them clients get 503.
const QUEUE: usize = 64;

/// Who may come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasicAuthSpec {
    /// Names and the hashes of their passwords, sorted.
    pub users: Vec<(String, String)>,
    /// More of them, as `htpasswd` writes them; read again when it changes.
    pub file: Option<PathBuf>,
    /// What browsers show.
    pub realm: String,
    /// Whether the password goes on to the server.
    pub forward_credentials: bool,
    /// The field that tells the server the name.
    pub user_header: Option<HeaderName>,
}

/// The users of a route. Survives reloads that do not change its spec.
#[derive(Debug)]
pub struct BasicAuth {
    spec: BasicAuthSpec,
    challenge: HeaderValue,
    /// Asked on slow paths only.
    users: Mutex<Users>,
    /// Goes up when the users change: what was remembered before is worth nothing then.
    generation: AtomicU64,
    /// When the file was looked at, in milliseconds after `epoch`.
    looked: AtomicU64,
    epoch: Instant,
    key: hmac::Key,
    verified: [Mutex<HashMap<Tag, Instant>>; SHARDS],
}

type Tag = [u8; 32];

/// What a request's credentials are worth at first sight.
#[derive(Debug)]
pub(super) enum Sight {
    /// There are none, or not ones that could ever be right.
    Nothing,
    /// They were right a moment ago.
    Known(Identity),
    /// They have to be verified, which takes a while.
    Unknown(Attempt),
}

/// A name and a password that nobody has looked at.
#[derive(Debug)]
pub struct Attempt {
    user: String,
    password: Secret,
}

impl BasicAuth {
    /// Reads the users. Blocking.
    pub(super) fn new(spec: &BasicAuthSpec) -> Result<Self, UsersError> {
        let users = Users::read(&spec.users, spec.file.as_deref())?;
        let realm = spec.realm.replace(['"', '\\'], "'");
        let challenge = format!("Basic realm=\"{realm}\", charset=\"UTF-8\"");
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        Ok(Self {
            spec: spec.clone(),
            challenge: HeaderValue::try_from(challenge).unwrap_or(HeaderValue::from_static("Basic")),
            users: Mutex::new(users),
            generation: AtomicU64::new(0),
            looked: AtomicU64::new(0),
            epoch: Instant::now(),
            key: key.map_err(|_| UsersError::NoRandomness)?,
            verified: std::array::from_fn(|_| Mutex::default()),
        })
    }

    /// Whether these are the users of `spec`: then they are kept over a reload.
    pub(super) fn is(&self, spec: &BasicAuthSpec) -> bool {
        self.spec == *spec
    }

    /// The field of a 401.
    pub(super) fn challenge(&self) -> HeaderValue {
        self.challenge.clone()
    }

    /// The field that only we may set.
    pub(super) fn owned(&self) -> Option<&HeaderName> {
        self.spec.user_header.as_ref()
    }

    /// Looks at a request's credentials; never slow.
    pub(super) fn sight(&self, headers: &HeaderMap, now: Instant) -> Sight {
        let Some(attempt) = attempt(headers) else { return Sight::Nothing };
        if self.is_stale(now) {
            return Sight::Unknown(attempt);
        }
        let tag = self.tag(&attempt, self.generation.load(Ordering::Acquire));
        match self.remembers(&tag, now) {
            true => Sight::Known(self.identity(&attempt)),
            false => Sight::Unknown(attempt),
        }
    }

    /// Verifies credentials, with the users of this moment. Blocking, and slow on purpose.
    pub fn verify(&self, attempt: &Attempt, now: Instant) -> Option<Identity> {
        if self.is_stale(now)
            && let Err(error) = self.look(now)
        {
            tracing::error!(%error, "the file of users cannot be used; those who could come before still can");
        }
        let (generation, known, hash) = {
            let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            let found = users.find(&attempt.user);
            let hash = found.or_else(|| users.stand_in()).cloned()?;
            (self.generation.load(Ordering::Acquire), found.is_some(), hash)
        };
        let tag = self.tag(attempt, generation);
        if self.remembers(&tag, now) {
            return Some(self.identity(attempt));
        }
        let fits = hash.verify(attempt.password.expose().as_bytes());
        if !(fits & known) {
            return None;
        }
        self.remember(tag, now);
        Some(self.identity(attempt))
    }

    /// Reads the file again if it has changed; an error leaves the users as they were. Blocking.
    pub(super) fn look(&self, now: Instant) -> Result<(), UsersError> {
        let Some(file) = &self.spec.file else { return Ok(()) };
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        self.looked.store(self.millis(now), Ordering::Release);
        if Stamp::of(file).is_ok_and(|stamp| users.stamp() == Some(&stamp)) {
            return Ok(());
        }
        let changed = Users::read(&self.spec.users, Some(file))?;
        if changed != *users {
            *users = changed;
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }

    fn is_stale(&self, now: Instant) -> bool {
        self.spec.file.is_some()
            && self.millis(now).saturating_sub(self.looked.load(Ordering::Acquire))
                >= LOOK_AGAIN.as_millis() as u64
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX)
    }

    fn tag(&self, attempt: &Attempt, generation: u64) -> Tag {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&generation.to_be_bytes());
        context.update(&(attempt.user.len() as u64).to_be_bytes());
        context.update(attempt.user.as_bytes());
        context.update(attempt.password.expose().as_bytes());
        let mut tag = Tag::default();
        tag.copy_from_slice(context.sign().as_ref());
        tag
    }

    fn remembers(&self, tag: &Tag, now: Instant) -> bool {
        let shard =
            self.verified[usize::from(tag[0]) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner);
        shard.get(tag).is_some_and(|until| now < *until)
    }

    fn remember(&self, tag: Tag, now: Instant) {
        let mut shard =
            self.verified[usize::from(tag[0]) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= PER_SHARD {
            shard.retain(|_, until| now < *until);
        }
        if shard.len() >= PER_SHARD {
            // All of them are young; whoever is forgotten is verified once more.
            shard.clear();
        }
        shard.insert(tag, now + REMEMBERED);
    }

    fn identity(&self, attempt: &Attempt) -> Identity {
        let mut identity =
            Identity { spent_credentials: !self.spec.forward_credentials, ..Identity::default() };
        // A name of a user has no control characters.
        if let (Some(name), Ok(user)) = (&self.spec.user_header, HeaderValue::from_str(&attempt.user)) {
            identity.fields.push((name.clone(), user));
        }
        identity
    }
}

/// The credentials of a request; `None` if there are none, or several, or none that this scheme knows.
fn attempt(headers: &HeaderMap) -> Option<Attempt> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Attempt { user: user.to_owned(), password: Secret::new(password) })
}

/// Who may verify a password now, over all routes: as many as half of the cores. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Turns {
    running: Arc<Semaphore>,
    queue: Arc<Semaphore>,
}

/// The right to verify one password; to be held until that is done.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held, not looked at")] OwnedSemaphorePermit);

impl Default for Turns {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { running: Arc::new(Semaphore::new((cores / 2).max(1))), queue: Arc::new(Semaphore::new(QUEUE)) }
    }
}

impl Turns {
    /// Waits for a turn; `None` if too many wait already.
    pub async fn take(&self) -> Option<Turn> {
        let _place = self.queue.try_acquire().ok()?;
        self.running.clone().acquire_owned().await.ok().map(Turn)
    }
}

/// Whether `hash` is one that can be verified; the error says which are.
pub fn check_hash(hash: &str) -> Result<(), UsersError> {
    users::Hash::parse(hash).map(drop)
}

/// An argon2id hash of `password` with a new salt, and the costs that OWASP recommends (19 MiB, 2 passes).
pub fn hash_password(password: &Secret) -> Result<String, UsersError> {
    users::Hash::make(password.expose().as_bytes())
}

/// Whether `name` can be that of a user.
pub fn check_user(name: &str) -> Result<(), UsersError> {
    users::check_name(name)
}

/// Reads a file of users and says what is wrong with it. Blocking.
pub fn check_users_file(file: &Path) -> Result<(), UsersError> {
    Users::read(&[], Some(file)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `correct` by argon2id with little memory, and by bcrypt of cost 4.
    fn cheap(password: &str) -> String {
        bcrypt::hash(password, 4).unwrap()
    }

    fn credentials(user: &str, password: &str) -> HeaderMap {
        let text = STANDARD.encode(format!("{user}:{password}"));
        [(AUTHORIZATION, HeaderValue::try_from(format!("bAsIc {text}")).unwrap())].into_iter().collect()
    }

    fn spec(file: Option<PathBuf>) -> BasicAuthSpec {
        BasicAuthSpec {
            users: vec![("alice".into(), cheap("correct"))],
            file,
            realm: "the \"inner\" circle".into(),
            forward_credentials: false,
            user_header: Some(HeaderName::from_static("remote-user")),
        }
    }

    fn verified(auth: &BasicAuth, headers: &HeaderMap, now: Instant) -> bool {
        match auth.sight(headers, now) {
            Sight::Nothing => false,
            Sight::Known(_) => true,
            Sight::Unknown(attempt) => auth.verify(&attempt, now).is_some(),
        }
    }

    #[test]
    fn the_right_password_is_remembered_for_a_while_and_a_wrong_one_never() {
        let auth = BasicAuth::new(&spec(None)).unwrap();
        assert_eq!(auth.challenge(), "Basic realm=\"the 'inner' circle\", charset=\"UTF-8\"");
        let start = auth.epoch;
        let right = credentials("alice", "correct");
        assert!(matches!(auth.sight(&right, start), Sight::Unknown(_)));
        assert!(verified(&auth, &right, start));
        let Sight::Known(identity) = auth.sight(&right, start + REMEMBERED / 2) else { panic!() };
        assert!(identity.spent_credentials && identity.fields[0].1 == "alice");
        assert!(matches!(auth.sight(&right, start + REMEMBERED), Sight::Unknown(_)));
        for (user, password) in [("alice", "wrong"), ("alice", ""), ("bob", "correct"), ("", "correct")] {
            let wrong = credentials(user, password);
            assert!(!verified(&auth, &wrong, start), "{user} {password}");
            assert!(matches!(auth.sight(&wrong, start), Sight::Unknown(_)));
        }
        let mut twice = right;
        twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        let bearer = [(AUTHORIZATION, HeaderValue::from_static("Bearer x"))].into_iter().collect();
        let broken = [(AUTHORIZATION, HeaderValue::from_static("Basic %%%"))].into_iter().collect();
        for none in [HeaderMap::new(), twice, bearer, broken] {
            assert!(matches!(auth.sight(&none, start), Sight::Nothing), "{none:?}");
        }
    }

    #[test]
    fn a_file_that_changes_is_read_again_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("htpasswd");
        let write = |text: &str| {
            std::fs::write(dir.path().join("new"), text).unwrap();
            std::fs::rename(dir.path().join("new"), &file).unwrap();
        };
        write(&format!("bob:{}\n", cheap("one")));
        let auth = BasicAuth::new(&spec(Some(file.clone()))).unwrap();
        let start = auth.epoch;
        let (one, two) = (credentials("bob", "one"), credentials("bob", "two"));
        assert!(verified(&auth, &one, start) && !verified(&auth, &two, start));
        write(&format!("# changed\nbob:{}\n", cheap("two")));
        assert!(verified(&auth, &one, start + LOOK_AGAIN - Duration::from_millis(1)), "not looked at yet");
        let later = start + LOOK_AGAIN;
        assert!(!verified(&auth, &one, later), "what was remembered is forgotten");
        assert!(verified(&auth, &two, later) && verified(&auth, &credentials("alice", "correct"), later));
        write("bob:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n");
        assert!(verified(&auth, &two, later + LOOK_AGAIN));
        assert!(auth.look(later + LOOK_AGAIN).unwrap_err().to_string().contains("line 1"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let auth = BasicAuth::new(&spec(None)).unwrap();
        for number in 0..20_000_u32 {
            let mut tag = Tag::default();
            tag[..4].copy_from_slice(&number.to_le_bytes());
            auth.remember(tag, auth.epoch);
        }
        assert!(auth.verified.iter().all(|shard| shard.lock().unwrap().len() <= PER_SHARD));
    }

    #[tokio::test]
    async fn a_crowd_is_turned_away() {
        let turns = Turns::default();
        let mut running = Vec::new();
        while let Some(turn) = futures_util::FutureExt::now_or_never(turns.take()).flatten() {
            running.push(turn);
        }
        let mut waiting: Vec<_> = (0..QUEUE).map(|_| Box::pin(turns.take())).collect();
        for wait in &mut waiting {
            assert!(futures_util::FutureExt::now_or_never(wait).is_none());
        }
        assert!(turns.take().await.is_none());
        waiting.truncate(1);
        running.pop();
        assert!(waiting.remove(0).await.is_some());
    }
}
