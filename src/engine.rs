//! Floor 4: the live loop.
