//! Agreement on version and features. `Hello` and `Welcome`, `Attach` and `Attached` each begin with an *offer*, whose layout
//! is the same in all versions; each end computes the same [`Negotiated`] from its own and the
//! other's. A node that can't agree, or can't read what came, may say so in a `Reject` before it
//! closes.
//!
//! Offer, 24 bytes, little endian:
//!
//! | offset | bytes | field         | meaning                                      |
//! |-------:|------:|---------------|----------------------------------------------|
//! |      0 |     2 | `min_version` | lowest protocol version that the sender reads |
//! |      2 |     2 | `max_version` | highest one                                  |
//! |      4 |     4 | reserved      | 0; not looked at                             |
//! |      8 |     8 | `features`    | one bit each that the sender has             |
//! |     16 |     8 | `required`    | those of them that the other must have too   |
//!
//! Reject, 32 bytes: the offer, then `reason` (2 bytes), then 6 reserved bytes.

use super::VERSION;
use super::error::WireError;
use std::fmt;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A set of optional abilities of the protocol, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Features(pub u64);

impl Features {
    /// None.
    pub const NONE: Self = Self(0);

    /// Clients' writes have numbers that replicas keep (RULES 12): a replica that does not could be
    /// promoted and execute a write twice, so it is required.
    pub const NUMBERS: Self = Self(1);

    /// Those that are in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those of this set that are not in the other.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Is there none?
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What one end of a connection can speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Lowest version.
    pub min_version: u16,
    /// Highest version.
    pub max_version: u16,
    /// Features that it has.
    pub features: Features,
    /// Features that the other end must have.
    pub required: Features,
}

/// What this program offers.
pub const LOCAL_OFFER: Offer = Offer {
    min_version: VERSION,
    max_version: VERSION,
    features: Features::NUMBERS,
    required: Features::NUMBERS,
};

/// What the two ends of a connection speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The highest version that both can.
    pub version: u16,
    /// The features that both have.
    pub features: Features,
}

/// What follows from two offers; the same on both ends.
///
/// # Errors
/// The offers can't be met: [`WireError::BadOffer`], [`WireError::NoCommonVersion`],
/// [`WireError::UnknownFeatures`], [`WireError::MissingFeatures`].
pub fn negotiate(ours: Offer, theirs: Offer) -> Result<Negotiated, WireError> {
    if theirs.min_version > theirs.max_version
        || !theirs.required.difference(theirs.features).is_empty()
    {
        return Err(WireError::BadOffer { theirs });
    }
    let version = ours.max_version.min(theirs.max_version);
    if version < ours.min_version.max(theirs.min_version) {
        return Err(WireError::NoCommonVersion { theirs, ours });
    }
    let features = theirs.required.difference(ours.features);
    if !features.is_empty() {
        return Err(WireError::UnknownFeatures { features });
    }
    let features = ours.required.difference(theirs.features);
    if !features.is_empty() {
        return Err(WireError::MissingFeatures { features });
    }
    Ok(Negotiated {
        version,
        features: ours.features.intersection(theirs.features),
    })
}

/// The offer as it lies in a frame; the table is in the module's description.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawOffer {
    min_version: U16,
    max_version: U16,
    reserved: [u8; 4],
    features: U64,
    required: U64,
}

/// Bytes of an offer.
pub(super) const OFFER_BYTES: usize = 24;
const _: () = assert!(size_of::<RawOffer>() == OFFER_BYTES);

/// Body of a `Reject`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RejectBody {
    pub(super) offer: RawOffer,
    pub(super) reason: U16,
    pub(super) reserved: [u8; 6],
}
const _: () = assert!(size_of::<RejectBody>() == OFFER_BYTES + 8);

impl From<Offer> for RawOffer {
    fn from(offer: Offer) -> Self {
        Self {
            min_version: offer.min_version.into(),
            max_version: offer.max_version.into(),
            reserved: [0; 4],
            features: offer.features.0.into(),
            required: offer.required.0.into(),
        }
    }
}

impl From<RawOffer> for Offer {
    fn from(raw: RawOffer) -> Self {
        Self {
            min_version: raw.min_version.get(),
            max_version: raw.max_version.get(),
            features: Features(raw.features.get()),
            required: Features(raw.required.get()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(min_version: u16, max_version: u16, features: u64, required: u64) -> Offer {
        Offer {
            min_version,
            max_version,
            features: Features(features),
            required: Features(required),
        }
    }

    #[test]
    fn both_ends_agree_on_the_highest_common_version_and_the_common_features() {
        let (a, b) = (offer(1, 3, 0b111, 0b1), offer(2, 5, 0b1011, 0b10));
        let agreed = Negotiated {
            version: 3,
            features: Features(0b11),
        };
        assert_eq!(negotiate(a, b), Ok(agreed));
        assert_eq!(negotiate(b, a), Ok(agreed));
    }

    #[test]
    fn without_a_common_version_the_error_names_both_offers() {
        let (ours, theirs) = (offer(1, 2, 0, 0), offer(3, 4, 0, 0));
        let error = negotiate(ours, theirs).unwrap_err();
        assert_eq!(error, WireError::NoCommonVersion { theirs, ours });
        assert_eq!(
            error.to_string(),
            "the peer speaks protocol versions 3 to 4, this node 1 to 2: upgrade the older one"
        );
        assert!(negotiate(theirs, ours).is_err());
    }

    #[test]
    fn required_features_that_one_end_lacks_are_refused_on_both_ends() {
        let (a, b) = (offer(1, 1, 0b1, 0), offer(1, 1, 0b110, 0b100));
        let features = Features(0b100);
        assert_eq!(
            negotiate(a, b),
            Err(WireError::UnknownFeatures { features })
        );
        assert_eq!(
            negotiate(b, a),
            Err(WireError::MissingFeatures { features })
        );
    }

    #[test]
    fn features_that_only_one_end_has_are_not_used() {
        let agreed = negotiate(offer(1, 1, 0b1, 0), offer(1, 1, 0b10, 0)).unwrap();
        assert!(agreed.features.is_empty());
    }

    #[test]
    fn an_offer_that_contradicts_itself_is_refused() {
        for theirs in [offer(2, 1, 0, 0), offer(1, 1, 0b1, 0b10)] {
            assert_eq!(
                negotiate(LOCAL_OFFER, theirs),
                Err(WireError::BadOffer { theirs })
            );
        }
    }
}
