//! Who may connect, and what he may read and write.

use std::num::NonZeroU32;
use std::sync::Arc;

use ring::{hmac, pbkdf2};
use tokio::sync::{Semaphore, watch};

use crate::topic::{covers, is_filter};

/// Rounds of a password's hash at most: each try to log in costs that much.
const MAX_ROUNDS: u32 = 1_000_000;
/// Passwords that are hashed at a time; whoever else logs in waits. Each takes a core, of which a node has few.
const HASHES: usize = 2;

/// Somebody who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The password.
    pub password: Password,
    /// What he may do: what no rule allows is refused.
    pub rules: Vec<Rule>,
}

/// A password as it is configured.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// The password itself.
    Plain(String),
    /// As `mosquitto_passwd` writes it: `$7$ROUNDS$SALT$HASH`, PBKDF2 with SHA-512, in base64.
    Hashed(String),
}

/// Allows something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What.
    pub access: Access,
    /// On which topics.
    pub filter: String,
}

/// What is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To subscribe.
    Read,
    /// To publish.
    Write,
    /// Both.
    ReadWrite,
}

/// Users that cannot be used as they are configured.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A hash is none.
    #[error("the password of MQTT user {0:?} is not of the form $7$ROUNDS$SALT$HASH that mosquitto_passwd writes")]
    Hash(String),
    /// A filter is none.
    #[error("MQTT user {user:?} has a rule for {filter:?}, which is no topic filter")]
    Filter {
        /// Whose.
        user: String,
        /// Which.
        filter: String,
    },
    /// Two of one name.
    #[error("there are two MQTT users {0:?}")]
    Twice(String),
}

/// Never shows the password.
impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Plain(_)) { "Plain" } else { "Hashed" })
    }
}

/// All users. Without any, everybody may do everything.
pub(crate) struct Users {
    known: watch::Sender<Known>,
    hashes: Arc<Semaphore>,
}

/// Who is known at a time.
type Known = Arc<[(Arc<User>, Arc<Secret>)]>;

enum Secret {
    Plain(String),
    Hashed { rounds: NonZeroU32, salt: Vec<u8>, hash: Vec<u8> },
}

/// What the peer of one connection may do.
#[derive(Clone)]
pub(crate) struct Rights {
    /// Who it is; nobody when everybody may do everything.
    user: Option<Arc<User>>,
    known: watch::Receiver<Known>,
}

impl Users {
    pub(crate) fn new(users: Vec<User>) -> Result<Self, AccessError> {
        Ok(Self { known: watch::Sender::new(Self::known(users)?), hashes: Arc::new(Semaphore::new(HASHES)) })
    }

    /// From now on it is these. Who is not what he was is sent away.
    pub(crate) fn replace(&self, users: Vec<User>) -> Result<(), AccessError> {
        self.known.send_replace(Self::known(users)?);
        Ok(())
    }

    fn known(users: Vec<User>) -> Result<Known, AccessError> {
        let mut all: Vec<(Arc<User>, Arc<Secret>)> = Vec::new();
        for user in users {
            if all.iter().any(|(other, _)| other.name == user.name) {
                return Err(AccessError::Twice(user.name));
            }
            if let Some(rule) = user.rules.iter().find(|rule| !is_filter(&rule.filter)) {
                return Err(AccessError::Filter { filter: rule.filter.clone(), user: user.name });
            }
            let secret = match &user.password {
                Password::Plain(password) => Secret::Plain(password.clone()),
                Password::Hashed(hash) => parse(hash).ok_or_else(|| AccessError::Hash(user.name.clone()))?,
            };
            all.push((Arc::new(user), Arc::new(secret)));
        }
        Ok(all.into())
    }

    /// The rights of who says this; `None` when he may not come in. A hash takes long, and others go on meanwhile.
    pub(crate) async fn admit(&self, user: Option<&str>, password: Option<&[u8]>) -> Option<Rights> {
        // Whatever changes from here on is noticed by `withdrawn`.
        let known = self.known.subscribe();
        let all = known.borrow().clone();
        if all.is_empty() {
            return Some(Rights { user: None, known });
        }
        let (user, password) = (user?, password?);
        let (user, secret) = all.iter().find(|(known, _)| known.name == user)?;
        let is_right = match **secret {
            Secret::Plain(_) => secret.is(password),
            Secret::Hashed { .. } => {
                let place = self.hashes.clone().acquire_owned().await.ok()?;
                let (secret, password) = (secret.clone(), password.to_vec());
                let hashing = tokio::task::spawn_blocking(move || {
                    // Held until it is done, also when nobody waits for it any more.
                    let _place = place;
                    secret.is(&password)
                });
                hashing.await.unwrap_or(false)
            }
        };
        is_right.then(|| Rights { user: Some(user.clone()), known })
    }
}

impl Rights {
    pub(crate) fn user(&self) -> Option<&str> {
        self.user.as_ref().map(|user| user.name.as_str())
    }

    pub(crate) fn may_write(&self, topic: &str) -> bool {
        self.has(topic, Access::Read)
    }

    pub(crate) fn may_read(&self, filter: &str) -> bool {
        self.has(filter, Access::Write)
    }

    fn has(&self, filter: &str, not_enough: Access) -> bool {
        self.user.as_ref().is_none_or(|user| user.has(filter, not_enough))
    }

    /// Whether the user of that name may do so by now, which may not be what he might when he came.
    pub(crate) fn may_still_write(&self, topic: &str) -> bool {
        let known = self.known.borrow();
        match &self.user {
            None => known.is_empty(),
            Some(user) => known.iter().any(|(now, _)| now.name == user.name && now.has(topic, Access::Read)),
        }
    }

    /// Waits until the user is gone, or has another password or other rules.
    pub(crate) async fn withdrawn(&self) {
        let mut known = self.known.clone();
        while known.changed().await.is_ok() {
            let known = known.borrow_and_update();
            let stands = match &self.user {
                None => known.is_empty(),
                Some(user) => known.iter().any(|(now, _)| now == user),
            };
            if !stands {
                return;
            }
        }
        // The broker ends.
        std::future::pending().await
    }
}

impl User {
    fn has(&self, filter: &str, not_enough: Access) -> bool {
        self.rules.iter().any(|rule| rule.access != not_enough && covers(&rule.filter, filter))
    }
}

impl Secret {
    /// In a time that does not tell where they differ.
    fn is(&self, password: &[u8]) -> bool {
        match self {
            Self::Plain(expected) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, b"mqtt password");
                hmac::verify(&key, password, hmac::sign(&key, expected.as_bytes()).as_ref()).is_ok()
            }
            Self::Hashed { rounds, salt, hash } => {
                pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA512, *rounds, salt, password, hash).is_ok()
            }
        }
    }
}

fn parse(hash: &str) -> Option<Secret> {
    use base64::Engine;
    let base64 = base64::engine::general_purpose::STANDARD;
    let mut parts = hash.strip_prefix("$7$")?.split('$');
    let rounds: NonZeroU32 = parts.next()?.parse().ok()?;
    let (salt, hash) = (base64.decode(parts.next()?).ok()?, base64.decode(parts.next()?).ok()?);
    (parts.next().is_none() && rounds.get() <= MAX_ROUNDS && hash.len() == 64).then_some(Secret::Hashed {
        rounds,
        salt,
        hash,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// `secret`, as `mosquitto_passwd -b` writes it.
    fn hashed() -> Password {
        use base64::Engine;
        let base64 = base64::engine::general_purpose::STANDARD;
        let (rounds, mut hash) = (NonZeroU32::new(101).unwrap(), [0; 64]);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA512, rounds, b"salt", b"secret", &mut hash);
        Password::Hashed(format!("$7$101${}${}", base64.encode(b"salt"), base64.encode(hash)))
    }

    #[tokio::test]
    async fn users_have_passwords_and_rights() {
        let rule = |access, filter: &str| Rule { access, filter: filter.to_owned() };
        let rules = vec![rule(Access::Read, "in/#"), rule(Access::Write, "out/+"), rule(Access::ReadWrite, "both")];
        let user = |name: &str, password| User { name: name.to_owned(), password, rules: rules.clone() };
        let users = vec![user("a", Password::Plain("secret".to_owned())), user("b", hashed())];
        let users = Users::new(users).unwrap();
        for name in ["a", "b"] {
            let rights = users.admit(Some(name), Some(b"secret")).await.unwrap();
            assert!(rights.may_read("in/+/x") && !rights.may_read("#") && !rights.may_read("out/x"));
            assert!(rights.may_write("out/x") && !rights.may_write("in/x") && rights.may_write("both"));
            assert!(
                users.admit(Some(name), Some(b"Secret")).await.is_none()
                    && users.admit(Some(name), None).await.is_none()
            );
        }
        assert!(users.admit(Some("c"), Some(b"secret")).await.is_none() && users.admit(None, None).await.is_none());
        assert!(Users::new(vec![user("a", Password::Hashed("$6$x".to_owned()))]).is_err());
        assert!(!format!("{:?}", user("a", Password::Plain("secret".to_owned()))).contains("secret"));
    }

    #[tokio::test]
    async fn few_passwords_are_hashed_at_a_time_and_nobody_else_waits() {
        let user = |name: &str, password| User { name: name.to_owned(), password, rules: Vec::new() };
        let slow = format!("$7$100000$AAAA${}==", "A".repeat(86));
        let users = vec![user("plain", Password::Plain("secret".to_owned())), user("slow", Password::Hashed(slow))];
        let users = Users::new(users).unwrap();
        let all = users.hashes.clone().try_acquire_many_owned(HASHES as u32).unwrap();
        let mut admitted = Box::pin(users.admit(Some("slow"), Some(b"secret")));
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut admitted).await.is_err(), "others are hashed");
        assert!(users.admit(Some("plain"), Some(b"secret")).await.is_some());
        drop(all);
        tokio::select! {
            biased;
            _ = &mut admitted => panic!("it was hashed here"),
            () = std::future::ready(()) => {}
        }
        assert!(admitted.await.is_none());
        assert_eq!(users.hashes.available_permits(), HASHES);
    }
}
