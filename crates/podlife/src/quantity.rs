//! Kubernetes quantities (`500m`, `1Gi`) as whole numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

const NANO: i128 = 1_000_000_000;

/// In whole units, rounded up; `None` when it is no quantity. Too large ones become the largest number.
pub fn value(quantity: &Quantity) -> Option<i64> {
    nano(&quantity.0).map(|nano| clamp(div_up(nano, NANO)))
}

/// In thousandths, rounded up; `None` when it is no quantity.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    nano(&quantity.0).map(|nano| clamp(div_up(nano, NANO / 1000)))
}

/// `value / divisor`, rounded up, both in thousandths for `cpu`; a divisor of 0 counts as 1.
pub fn divided(value_of: i64, divisor: i64) -> i64 {
    clamp(div_up(i128::from(value_of), i128::from(if divisor == 0 { 1 } else { divisor })))
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn div_up(value: i128, by: i128) -> i128 {
    let quotient = value / by;
    if value % by > 0 { quotient + 1 } else { quotient }
}

/// In billionths, the smallest unit that the API knows.
fn nano(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let places = u32::try_from(fraction.len()).ok()?;
    let scaled = digits.saturating_mul(factor(suffix)?);
    Some(div_up(scaled, 10_i128.checked_pow(places)?))
}

/// A suffix in billionths of a unit.
fn factor(suffix: &str) -> Option<i128> {
    let decimal = |power: u32| 10_i128.checked_pow(power);
    let binary = |power: u32| 1024_i128.checked_pow(power).map(|factor| factor * NANO);
    match suffix {
        "n" => decimal(0),
        "u" => decimal(3),
        "m" => decimal(6),
        "" => decimal(9),
        "k" => decimal(12),
        "M" => decimal(15),
        "G" => decimal(18),
        "T" => decimal(21),
        "P" => decimal(24),
        "E" => decimal(27),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            decimal(u32::try_from(power + 9).ok()?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, whole, thousandths) in [
            ("0", 0, 0),
            ("2", 2, 2000),
            ("1500m", 2, 1500),
            ("0.1", 1, 100),
            ("1.5Gi", 1_610_612_736, 1_610_612_736_000),
            ("64Mi", 67_108_864, 67_108_864_000),
            ("1e3", 1000, 1_000_000),
            ("100u", 1, 1),
            ("5E", 5_000_000_000_000_000_000, i64::MAX),
            ("99Ei", i64::MAX, i64::MAX),
        ] {
            let quantity = Quantity(text.into());
            assert_eq!((value(&quantity), milli(&quantity)), (Some(whole), Some(thousandths)), "{text}");
        }
        for text in ["", "abc", "1x", "1..2", "--1"] {
            assert_eq!(value(&Quantity(text.into())), None, "{text}");
        }
    }

    #[test]
    fn division_rounds_up() {
        assert_eq!(divided(1500, 1000), 2);
        assert_eq!(divided(1500, 1), 1500);
        assert_eq!(divided(5, 0), 5);
    }
}
