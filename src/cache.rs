//! Floor 2: the paged KV cache: pool, tables, tiers, prefix sharing.
