//! The clock of the cores: `CLOCK_BOOTTIME`, which never goes back and counts the time that the machine
//! was suspended (RULES 4).

use std::time::Duration;
use vocabulary::Time;

/// The present time.
pub(super) fn now() -> Time {
    let since_boot = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .map_or(Duration::ZERO, Duration::from);
    Time(u64::try_from(since_boot.as_nanos()).unwrap_or(u64::MAX))
}

/// How long from now until then.
pub(super) fn until(then: Time) -> Duration {
    Duration::from_nanos(then.0.saturating_sub(now().0))
}
