//! Metadata contexts ("Metadata querying"): which of an export's contexts a client's queries name,
//! and the extents that BLOCK_STATUS answers. What a context says about a range is the device's word.

use crate::options::parse_name;
use crate::wire::{Fields, MAX_STRING_BYTES};

/// The protocol's own context: which parts are allocated, and which read as zeroes.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// [`BASE_ALLOCATION`]: nothing is allocated here. Never set is always right.
pub const HOLE: u32 = 1 << 0;
/// [`BASE_ALLOCATION`]: it reads as zeroes. Never set is always right.
pub const ZERO: u32 = 1 << 1;

/// Most contexts of an export.
pub const MAX_CONTEXTS: usize = 8;

/// A set of an export's metadata contexts, by their places in
/// [`ExportInfo::meta_contexts`](crate::ExportInfo::meta_contexts).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Contexts(u8);

impl Contexts {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// The set whose bits these are.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The bit of place n says whether that context is in it.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Is there none in it?
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Is the context at this place in it?
    #[must_use]
    pub const fn contains(self, place: usize) -> bool {
        place < MAX_CONTEXTS && self.0 & (1 << place) != 0
    }

    /// The places in ascending order.
    pub fn places(self) -> impl Iterator<Item = usize> {
        (0..MAX_CONTEXTS).filter(move |place| self.contains(*place))
    }

    /// Puts a place in; false where it was there, or there is no such place.
    pub(crate) const fn insert(&mut self, place: usize) -> bool {
        let new = place < MAX_CONTEXTS && !self.contains(place);
        if new {
            self.0 |= 1 << place;
        }
        new
    }
}

/// A context's name on the wire, once it was selected. Zero is left for "none".
pub(crate) fn id_of(place: usize) -> u32 {
    u32::try_from(place).map_or(0, |place| place + 1)
}

/// A part of the device with one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// In bytes, not 0; a multiple of the minimum block size.
    pub length: u64,
    /// What holds there, as the context defines.
    pub flags: u32,
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT: u32 length of the name, the export's name, u32
/// number of queries, and for each u32 length and the query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MetaQuestion<'a> {
    pub(crate) export: &'a str,
    queries: Vec<&'a [u8]>,
}

impl<'a> MetaQuestion<'a> {
    /// The question, or what is wrong with it. Memory is bounded by the data: each query has four
    /// bytes at least.
    pub(crate) fn parse(data: &'a [u8]) -> Result<Self, &'static str> {
        const SHORT: &str = "the option's data ends too early";
        let mut fields = Fields(data);
        let name_bytes = fields.u32().ok_or(SHORT)?;
        let export = parse_name(fields.bytes(name_bytes).ok_or(SHORT)?)?;
        let mut queries = Vec::new();
        for _ in 0..fields.u32().ok_or(SHORT)? {
            let query_bytes = fields.u32().ok_or(SHORT)?;
            let query = fields.bytes(query_bytes).ok_or(SHORT)?;
            if query.len() > MAX_STRING_BYTES {
                return Err("a query is longer than 4096 bytes");
            }
            queries.push(query);
        }
        if !fields.is_empty() {
            return Err("the option's data is longer than its contents");
        }
        Ok(Self { export, queries })
    }

    /// The contexts that SET selects: those that are named in full. What is not known is passed over.
    pub(crate) fn selected(&self, offered: &[&str]) -> Contexts {
        self.matching(offered, |name, query| name.as_bytes() == query)
    }

    /// The contexts that LIST shows: those that are named in full or by their namespace, all where
    /// nothing is asked for.
    pub(crate) fn listed(&self, offered: &[&str]) -> Contexts {
        let all = self.queries.is_empty();
        let mut contexts = self.matching(offered, |name, query| {
            let space = name.split_inclusive(':').next();
            name.as_bytes() == query || space.is_some_and(|space| space.as_bytes() == query)
        });
        for place in (0..offered.len()).filter(|_| all) {
            contexts.insert(place);
        }
        contexts
    }

    fn matching(&self, offered: &[&str], is_meant: impl Fn(&str, &[u8]) -> bool) -> Contexts {
        let mut contexts = Contexts::NONE;
        for query in &self.queries {
            for (place, name) in offered.iter().enumerate() {
                if is_meant(name, query) {
                    contexts.insert(place);
                }
            }
        }
        contexts
    }
}

/// What SET_META_CONTEXT has selected so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// The export's own name and its contexts then: the selection holds for it alone.
    export: String,
    offered: &'static [&'static str],
    contexts: Contexts,
}

impl Selection {
    pub(crate) fn new(export: &crate::ExportInfo, contexts: Contexts) -> Self {
        Self {
            export: export.name.clone(),
            offered: export.meta_contexts,
            contexts,
        }
    }

    /// What of it holds for this export.
    pub(crate) fn of(&self, export: &crate::ExportInfo) -> Contexts {
        if self.export == export.name && self.offered == export.meta_contexts {
            self.contexts
        } else {
            Contexts::NONE
        }
    }
}
