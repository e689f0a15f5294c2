//! Patience with what a killed predecessor still holds. `kill -9` returns before the process has
//! ended, and the kernel takes its ring apart later still: for a moment its directory, stores and
//! ports are taken although nobody uses them.

use std::time::{Duration, Instant};

/// Taken for longer than this: by somebody who lives.
const FREE_LIMIT: Duration = Duration::from_secs(2);
/// Between two tries.
const FREE_PAUSE: Duration = Duration::from_millis(10);

/// Tries again for a moment while the error says that something is taken. Blocks the thread.
pub(crate) fn once_free<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    is_taken: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let deadline = Instant::now() + FREE_LIMIT;
    loop {
        match attempt() {
            Err(error) if is_taken(&error) && Instant::now() < deadline => {
                std::thread::sleep(FREE_PAUSE);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_taken_is_tried_again() {
        let mut tries = 0;
        let third = once_free(
            || {
                tries += 1;
                if tries < 3 { Err("taken") } else { Ok(tries) }
            },
            |error| *error == "taken",
        );
        assert_eq!(third, Ok(3));
        let mut tries = 0;
        let first = once_free(
            || {
                tries += 1;
                Err::<(), _>("broken")
            },
            |error| *error == "taken",
        );
        assert_eq!((first, tries), (Err("broken"), 1));
    }
}
