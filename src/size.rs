//! Sizes and times as people write them: `1GiB`, `512M`, `4096`; `30m`, `1h`.

/// Why a word is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SizeError {
    #[error("\"{0}\" is not a size: a number with KiB, MiB, GiB or TiB behind it, or bytes")]
    NotASize(String),
    #[error("\"{0}\" is more than 2^63 bytes")]
    TooLarge(String),
}

/// The number of bytes. K, M, G and T mean powers of 1024, with or without `iB` or `B`.
pub(crate) fn parse_size(word: &str) -> Result<u64, SizeError> {
    let not = || SizeError::NotASize(word.to_owned());
    let digits = word.len() - word.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = word.split_at(digits);
    if number.is_empty() {
        return Err(not());
    }
    let unit = unit.trim().to_ascii_lowercase();
    let shift = match unit
        .strip_suffix("ib")
        .or(unit.strip_suffix('b'))
        .unwrap_or(&unit)
    {
        "" if unit.starts_with('i') => return Err(not()),
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(not()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .filter(|&bytes| i64::try_from(bytes).is_ok())
        .ok_or_else(|| SizeError::TooLarge(word.to_owned()))
}

/// Why a word is not a time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a time: a number with s, m, h or d behind it")]
pub(crate) struct DurationError(String);

/// The number of seconds.
pub(crate) fn parse_duration(word: &str) -> Result<u64, DurationError> {
    let not = || DurationError(word.to_owned());
    let digits = word.trim_end_matches(|c: char| !c.is_ascii_digit());
    let seconds: u64 = match &word[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(not()),
    };
    let number: u64 = digits.parse().map_err(|_| not())?;
    number.checked_mul(seconds).ok_or_else(not)
}

/// The bytes in the largest unit that leaves three digits before the point.
pub(crate) fn show_size(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        let whole = bytes >> shift;
        if whole > 0 {
            let tenths = ((u128::from(bytes) * 10) >> shift) % 10;
            return if tenths == 0 {
                format!("{whole} {unit}")
            } else {
                format!("{whole}.{tenths} {unit}")
            };
        }
    }
    format!("{bytes} B")
}

/// The bytes in the largest unit that shows them exactly; [`parse_size`] reads it.
pub(crate) fn exact_size(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes > 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (word, bytes) in [
            ("4096", 4096),
            ("4096B", 4096),
            ("1GiB", 1 << 30),
            ("1 GiB", 1 << 30),
            ("2g", 2 << 30),
            ("512M", 512 << 20),
            ("3KB", 3 << 10),
        ] {
            assert_eq!(parse_size(word), Ok(bytes), "{word}");
        }
        for word in ["", "GiB", "-1", "1.5G", "1PiB", "1iB", "ten"] {
            assert!(
                matches!(parse_size(word), Err(SizeError::NotASize(_))),
                "{word}"
            );
        }
        for word in ["99999999999999999999", "9000000T"] {
            assert!(
                matches!(parse_size(word), Err(SizeError::TooLarge(_))),
                "{word}"
            );
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (4096, "4 KiB"),
            (1 << 30, "1 GiB"),
            ((1 << 30) + (1 << 29), "1.5 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(show_size(bytes), text);
        }
    }

    #[test]
    fn exact_sizes_are_read_again_as_they_were() {
        for bytes in [0, 4096, 1 << 30, 3 << 30, (1 << 30) + 4096, 5 << 40] {
            assert_eq!(parse_size(&exact_size(bytes)), Ok(bytes));
        }
        assert_eq!(exact_size(100 << 30), "100GiB");
    }

    #[test]
    fn times_are_read_in_their_units() {
        for (word, seconds) in [("30s", 30), ("10m", 600), ("1h", 3600), ("2d", 172_800)] {
            assert_eq!(parse_duration(word), Ok(seconds));
        }
        for bad in ["", "1", "h", "-1h", "1.5h", "1 h", "99999999999999999999d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert!(parse_duration("9999999999999999d").is_err());
    }
}
