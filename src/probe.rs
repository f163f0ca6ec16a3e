//! Floor 2: clock and ring: what observing is made of.
