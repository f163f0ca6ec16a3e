//! Floor 1: the published rules, pure: no tensors, no I/O, no clock.
