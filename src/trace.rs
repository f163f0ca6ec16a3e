//! Floor 3: recordings in and out.
