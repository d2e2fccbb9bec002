//! Resource quantities (`100m`, `1.5Gi`, `2e3`) as whole thousandths, rounded up (Kubernetes API conventions).

use serde_json::Value;

/// A quantity in thousandths of its unit: milli-CPU, or 1/1000 byte. `None` if it is no quantity.
pub fn milli(value: &Value) -> Option<i128> {
    match value {
        Value::String(text) => parse(text),
        Value::Number(n) => n.as_i64().map(|n| i128::from(n) * 1000).or_else(|| parse(&n.to_string())),
        _ => None,
    }
}

fn parse(text: &str) -> Option<i128> {
    let text = text.trim();
    let end = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (binary, scale): (bool, i32) = match suffix {
        "" => (false, 0),
        "n" => (false, -9),
        "u" => (false, -6),
        "m" => (false, -3),
        "k" => (false, 3),
        "M" => (false, 6),
        "G" => (false, 9),
        "T" => (false, 12),
        "P" => (false, 15),
        "E" => (false, 18),
        "Ki" => (true, 10),
        "Mi" => (true, 20),
        "Gi" => (true, 30),
        "Ti" => (true, 40),
        "Pi" => (true, 50),
        "Ei" => (true, 60),
        other => (false, other.strip_prefix(['e', 'E'])?.parse().ok().filter(|e: &i32| e.abs() <= 24)?),
    };
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (int, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if int.is_empty() && fraction.is_empty() || int.len() + fraction.len() > 24 {
        return None;
    }
    let mantissa: i128 = format!("{int}{fraction}").parse().ok()?;
    let fraction_digits = i32::try_from(fraction.len()).ok()?;
    let (mut numerator, mut ten) = (mantissa, 3 - fraction_digits);
    if binary {
        numerator = numerator.checked_mul(1_i128 << scale)?;
    } else {
        ten += scale;
    }
    let result = if ten >= 0 {
        numerator.checked_mul(10_i128.checked_pow(ten.unsigned_abs())?)?
    } else {
        let divisor = 10_i128.checked_pow(ten.unsigned_abs())?;
        numerator.div_euclid(divisor) + i128::from(numerator.rem_euclid(divisor) > 0)
    };
    Some(if negative { -result } else { result })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities() {
        for (text, expected) in [
            (json!("100m"), Some(100)),
            (json!("1"), Some(1000)),
            (json!(2), Some(2000)),
            (json!("1.5"), Some(1500)),
            (json!("1.5Gi"), Some(1_610_612_736_000)),
            (json!("128Mi"), Some(134_217_728_000)),
            (json!("1k"), Some(1_000_000)),
            (json!("2e3"), Some(2_000_000)),
            (json!("1n"), Some(1)),
            (json!("-1"), Some(-1000)),
            (json!("much"), None),
            (json!(""), None),
            (json!("1Zi"), None),
        ] {
            assert_eq!(milli(&text), expected, "{text}");
        }
    }
}
