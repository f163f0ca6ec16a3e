//! Floor 7: parse, dispatch, exit code.
