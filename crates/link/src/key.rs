//! P-256 private keys in their two DER forms. Upstream stores SEC 1; the issuing library reads PKCS#8.

/// `SEQUENCE { INTEGER 1, OCTET STRING (32) …`: how a SEC 1 key of P-256 begins.
const SEC1_HEAD: [u8; 7] = [0x30, 0x77, 0x02, 0x01, 0x01, 0x04, 0x20];
/// `[0] { OID prime256v1 }, [1] { BIT STRING …`: between the private and the public part of a SEC 1 key.
const SEC1_MIDDLE: [u8; 17] =
    [0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0xa1, 0x44, 0x03, 0x42, 0x00];
/// Everything before the private part of a PKCS#8 key of P-256.
const PKCS8_HEAD: [u8; 36] = [
    0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08,
    0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30, 0x6b, 0x02, 0x01, 0x01, 0x04, 0x20,
];
/// Between the private and the public part of a PKCS#8 key.
const PKCS8_MIDDLE: [u8; 5] = [0xa1, 0x44, 0x03, 0x42, 0x00];
const PRIVATE: usize = 32;
const PUBLIC: usize = 65;

/// The bytes are no P-256 private key in SEC 1 or PKCS#8 form with its public part.
#[derive(Debug, thiserror::Error)]
#[error("not a P-256 private key (SEC 1 or PKCS#8 DER)")]
pub struct NotP256;

/// A key in PKCS#8, whichever form it has.
///
/// # Errors
/// It is no P-256 key.
pub fn to_pkcs8(der: &[u8]) -> Result<Vec<u8>, NotP256> {
    let (private, public) = parts(der)?;
    Ok([&PKCS8_HEAD[..], private, &PKCS8_MIDDLE, public].concat())
}

/// A key in SEC 1, whichever form it has.
///
/// # Errors
/// It is no P-256 key.
pub fn to_sec1(der: &[u8]) -> Result<Vec<u8>, NotP256> {
    let (private, public) = parts(der)?;
    Ok([&SEC1_HEAD[..], private, &SEC1_MIDDLE, public].concat())
}

fn parts(der: &[u8]) -> Result<(&[u8], &[u8]), NotP256> {
    split(der, &SEC1_HEAD, &SEC1_MIDDLE).or_else(|| split(der, &PKCS8_HEAD, &PKCS8_MIDDLE)).ok_or(NotP256)
}

fn split<'a>(der: &'a [u8], head: &[u8], middle: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (private, rest) = der.strip_prefix(head)?.split_at_checked(PRIVATE)?;
    let public = rest.strip_prefix(middle)?;
    (public.len() == PUBLIC).then_some((private, public))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_turn_into_each_other() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("key").serialize_der();
        let sec1 = to_sec1(&key).expect("PKCS#8 of the library");
        assert_eq!(sec1.len(), 121);
        assert_eq!(to_pkcs8(&sec1).expect("back"), key);
        assert_eq!(to_sec1(&sec1).expect("as it is"), sec1);
        assert!(to_pkcs8(&sec1[..120]).is_err() && to_sec1(b"").is_err());
    }
}
