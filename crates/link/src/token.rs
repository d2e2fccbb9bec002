//! The join token: `{hash of the CA}.{JWT}`, the JWT signed with the CA's key (KubeEdge v1.23).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde::{Deserialize, Serialize};

use crate::ca::certificate_hash;

/// A longer token is refused unread.
pub const MAX_TOKEN_BYTES: usize = 8192;

/// A token is not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// Not of the form `hash.header.claims.signature`.
    #[error("the token is malformed: it must be the whole output of `keadm gettoken`")]
    Malformed,
    /// Signed by another CA's key, or changed.
    #[error("the token's signature is wrong: it belongs to another cloudcore; get a new one with `keadm gettoken`")]
    WrongSignature,
    /// Its time is over.
    #[error("the token has expired: get a new one with `keadm gettoken`")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet: is the clock right?")]
    NotYet,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exp: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<f64>,
}

#[derive(Deserialize)]
struct Head {
    alg: String,
}

/// A token that is valid until `expires` (seconds since 1970).
pub fn mint(ca_certificate: &[u8], ca_key: &[u8], expires: u64) -> String {
    let head = URL_SAFE_NO_PAD.encode(br#"{"alg":"HS256","typ":"JWT"}"#);
    let claims = URL_SAFE_NO_PAD.encode(format!("{{\"exp\":{expires}}}"));
    let signed = format!("{head}.{claims}");
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, ca_key), signed.as_bytes());
    format!("{}.{signed}.{}", certificate_hash(ca_certificate), URL_SAFE_NO_PAD.encode(tag))
}

/// The hash of the CA that a token names, and the JWT behind it.
///
/// # Errors
/// The token has not four parts.
pub fn split(token: &str) -> Result<(&str, &str), TokenError> {
    let token = token.trim();
    if token.len() > MAX_TOKEN_BYTES || token.split('.').count() != 4 {
        return Err(TokenError::Malformed);
    }
    let (hash, jwt) = token.split_once('.').ok_or(TokenError::Malformed)?;
    if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(TokenError::Malformed);
    }
    Ok((hash, jwt))
}

/// Checks a JWT's signature, then its times, against `now` (seconds since 1970). The algorithm is one of the HMAC family, never
/// what else the header may wish.
///
/// # Errors
/// The JWT is malformed, signed with another key, or not valid now.
pub fn verify(jwt: &str, ca_key: &[u8], now: u64) -> Result<(), TokenError> {
    if jwt.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::Malformed);
    }
    let (signed, tag) = jwt.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let (head, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
    let head: Head = serde_json::from_slice(&decode(head)?).map_err(|_| TokenError::Malformed)?;
    let algorithm = match head.alg.as_str() {
        "HS256" => hmac::HMAC_SHA256,
        "HS384" => hmac::HMAC_SHA384,
        "HS512" => hmac::HMAC_SHA512,
        _ => return Err(TokenError::WrongSignature),
    };
    hmac::verify(&hmac::Key::new(algorithm, ca_key), signed.as_bytes(), &decode(tag)?)
        .map_err(|_| TokenError::WrongSignature)?;
    times(&decode(claims)?, now)
}

/// Checks only the times of a JWT, for those who have no key: a mistake is found before anybody is asked.
///
/// # Errors
/// The JWT is malformed or not valid now.
pub fn check_times(jwt: &str, now: u64) -> Result<(), TokenError> {
    let claims = jwt.split('.').nth(1).filter(|_| jwt.len() <= MAX_TOKEN_BYTES).ok_or(TokenError::Malformed)?;
    times(&URL_SAFE_NO_PAD.decode(claims).map_err(|_| TokenError::Malformed)?, now)
}

fn times(claims: &[u8], now: u64) -> Result<(), TokenError> {
    let claims: Claims = serde_json::from_slice(claims).map_err(|_| TokenError::Malformed)?;
    let now = now as f64;
    if claims.exp.is_some_and(|exp| now > exp) {
        return Err(TokenError::Expired);
    }
    if claims.nbf.is_some_and(|nbf| now < nbf) {
        return Err(TokenError::NotYet);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A test vector computed with upstream's construction.
    const VECTOR: &str = "6959097001d10501ac7d54c0bdb8db61420f658f2922cc26e46d536119a31126.eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJleHAiOjE3MDAwODY0MDB9.QAdtcQINq_cUhYp6-yk96q3aeSDOu6vdaVjW1YkgsWA";

    #[test]
    fn tokens_are_those_of_upstream() {
        assert_eq!(mint(b"ca", b"key", 1_700_086_400), VECTOR);
        let (hash, jwt) = split(VECTOR).expect("token");
        assert_eq!(hash, certificate_hash(b"ca"));
        assert_eq!(verify(jwt, b"key", 1_700_086_400), Ok(()));
    }

    #[test]
    fn what_is_wrong_with_a_token_is_told() {
        let (_, jwt) = split(VECTOR).expect("token");
        assert_eq!(verify(jwt, b"key", 1_700_086_401), Err(TokenError::Expired));
        assert_eq!(verify(jwt, b"other", 1_700_000_000), Err(TokenError::WrongSignature));
        assert_eq!(verify("garbage", b"key", 0), Err(TokenError::Malformed));
        assert_eq!(verify("a.b.c", b"key", 0), Err(TokenError::Malformed));
        assert_eq!(check_times(jwt, 1_700_086_400), Ok(()));
        assert_eq!(check_times(jwt, 1_700_086_401), Err(TokenError::Expired));
        assert_eq!(check_times("a", 0), Err(TokenError::Malformed));
        for token in ["", "abc", jwt, &format!("xyz.{jwt}"), &"a.".repeat(9000)] {
            assert_eq!(split(token), Err(TokenError::Malformed), "{token}");
        }
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        assert_eq!(verify(&format!("{none}.e30."), b"key", 0), Err(TokenError::WrongSignature));
    }

    #[test]
    fn a_token_may_have_no_end_and_a_beginning() {
        let jwt = |claims: &str| {
            let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS512"}"#), URL_SAFE_NO_PAD.encode(claims));
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA512, b"key"), signed.as_bytes());
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
        };
        assert_eq!(verify(&jwt("{}"), b"key", 5), Ok(()));
        assert_eq!(verify(&jwt(r#"{"nbf":9}"#), b"key", 5), Err(TokenError::NotYet));
        assert_eq!(verify(&jwt("7"), b"key", 5), Err(TokenError::Malformed));
    }
}
