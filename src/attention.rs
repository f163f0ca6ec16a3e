//! Floor 2: attention over pages, decode and chunked prefill.
