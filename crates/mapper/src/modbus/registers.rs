//! Values of registers and bits, and back.
//!
//! The first register is the most significant one, and so is the first byte in it; `isRegisterSwap` and `isSwap` turn that round. The first bit of
//! several is the least significant one.

use super::place::Place;
use crate::value::{Kind, Value};

/// Digits of a 64-bit float that are sure: a scale of 0.1 shall not make 0.30000000000000004 of 3.
const SURE_DIGITS: usize = 14;

pub(super) fn value_of_bits(place: &Place, bits: &[bool]) -> Result<Value, String> {
    if bits.len() != usize::from(place.count) {
        return Err(format!("the device gave {} bits instead of {}", bits.len(), place.count));
    }
    if place.kind == Kind::Boolean {
        return Ok(Value::Boolean(bits.first().copied().unwrap_or_default()));
    }
    let number = bits.iter().rev().fold(0_u64, |number, bit| number << 1 | u64::from(*bit));
    whole(number as f64 * place.scale)
}

pub(super) fn bits_of_value(place: &Place, value: &Value) -> Result<Vec<bool>, String> {
    let number = match value {
        Value::Boolean(flag) => u64::from(*flag),
        Value::Int(number) => raw(*number as f64 / place.scale, place, u32::from(place.count))? as u64,
        _ => return Err("only numbers and booleans can be in bits".to_owned()),
    };
    Ok((0..place.count).map(|bit| number >> bit & 1 == 1).collect())
}

pub(super) fn value_of_words(place: &Place, mut words: Vec<u16>) -> Result<Value, String> {
    if words.len() != usize::from(place.count) {
        return Err(format!("the device gave {} registers instead of {}", words.len(), place.count));
    }
    swap(place, &mut words);
    match place.kind {
        Kind::Int if place.scale == 1.0 => {
            let number = number_of(&words);
            let number = if place.signed { Ok(signed(number, place.count)) } else { i64::try_from(number) };
            number.map(Value::Int).map_err(|_| "the number in the registers is too great".to_owned())
        }
        Kind::Int => whole(integer(place, &words) * place.scale),
        Kind::Float | Kind::Double => {
            let number = match place.count {
                1 => integer(place, &words),
                // By its shortest text: 0.1 stays 0.1.
                2 => f32::from_bits(number_of(&words) as u32).to_string().parse().unwrap_or(f64::NAN),
                _ => f64::from_bits(number_of(&words)),
            };
            let scaled = if place.scale == 1.0 { number } else { sure(number * place.scale) };
            if scaled.is_finite() { Ok(Value::Number(scaled)) } else { Err("the registers hold no number".to_owned()) }
        }
        Kind::Boolean => Ok(Value::Boolean(number_of(&words) != 0)),
        Kind::Bytes => Ok(Value::Bytes(bytes_of(&words))),
        Kind::Text => {
            let mut bytes = bytes_of(&words);
            bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
            String::from_utf8(bytes).map(Value::Text).map_err(|_| "the registers hold no text (UTF-8)".to_owned())
        }
    }
}

pub(super) fn words_of_value(place: &Place, value: &Value) -> Result<Vec<u16>, String> {
    let bits = u32::from(place.count) * 16;
    let mut words = match value {
        Value::Int(number) if place.scale == 1.0 => words_of(whole_raw(*number, place)?, place.count),
        Value::Int(number) => words_of(raw(*number as f64 / place.scale, place, bits)? as u64, place.count),
        Value::Number(number) => {
            let number = if place.scale == 1.0 { *number } else { sure(number / place.scale) };
            match place.count {
                1 => words_of(raw(number, place, bits)? as u64, 1),
                2 if !(number as f32).is_finite() => return Err(format!("{number} is too great for 32 bits")),
                2 => words_of((number as f32).to_bits().into(), 2),
                _ => words_of(number.to_bits(), 4),
            }
        }
        Value::Boolean(flag) => words_of(u64::from(*flag), place.count),
        Value::Text(text) => words_of_bytes(text.as_bytes(), place.count)?,
        Value::Bytes(bytes) => words_of_bytes(bytes, place.count)?,
    };
    swap(place, &mut words);
    Ok(words)
}

/// Its own inverse.
fn swap(place: &Place, words: &mut [u16]) {
    if place.swap_words {
        words.reverse();
    }
    if place.swap_bytes {
        words.iter_mut().for_each(|word| *word = word.swap_bytes());
    }
}

fn number_of(words: &[u16]) -> u64 {
    words.iter().fold(0, |number, word| number << 16 | u64::from(*word))
}

fn words_of(number: u64, count: u16) -> Vec<u16> {
    (0..count.min(4)).rev().map(|word| (number >> (16 * word)) as u16).collect()
}

fn bytes_of(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// What is shorter is filled up with zeros.
fn words_of_bytes(bytes: &[u8], count: u16) -> Result<Vec<u16>, String> {
    if bytes.len() > usize::from(count) * 2 {
        return Err(format!("{} bytes do not fit into {count} registers", bytes.len()));
    }
    let byte = |at: usize| bytes.get(at).copied().unwrap_or_default();
    Ok((0..usize::from(count)).map(|word| u16::from_be_bytes([byte(word * 2), byte(word * 2 + 1)])).collect())
}

/// Two's complement of so many registers.
fn signed(number: u64, count: u16) -> i64 {
    let unused = 64 - 16 * u32::from(count.min(4));
    (number << unused) as i64 >> unused
}

fn integer(place: &Place, words: &[u16]) -> f64 {
    let number = number_of(words);
    if place.signed { signed(number, place.count) as f64 } else { number as f64 }
}

fn sure(number: f64) -> f64 {
    format!("{number:.SURE_DIGITS$e}").parse().unwrap_or(number)
}

fn whole(number: f64) -> Result<Value, String> {
    let number = sure(number).round();
    // A float of 2^63 is the first that is too great.
    if number >= -(2_f64.powi(63)) && number < 2_f64.powi(63) {
        Ok(Value::Int(number as i64))
    } else {
        Err("the number in the registers is too great".to_owned())
    }
}

/// The whole number to write, of so many bits.
fn raw(number: f64, place: &Place, bits: u32) -> Result<i128, String> {
    let rounded = sure(number).round();
    let (least, most) = range(place, bits);
    if rounded.is_finite() && (least..=most).contains(&(rounded as i128)) {
        Ok(rounded as i128)
    } else {
        Err(format!("{number} does not fit into {bits} bits: {least} to {most} (of the scaled number) do"))
    }
}

fn whole_raw(number: i64, place: &Place) -> Result<u64, String> {
    let bits = u32::from(place.count) * 16;
    let (least, most) = range(place, bits);
    if (least..=most).contains(&i128::from(number)) {
        Ok(number as u64)
    } else {
        Err(format!("{number} does not fit into {bits} bits: {least} to {most} do"))
    }
}

fn range(place: &Place, bits: u32) -> (i128, i128) {
    if place.signed { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

#[cfg(test)]
#[path = "registers_tests.rs"]
mod tests;
