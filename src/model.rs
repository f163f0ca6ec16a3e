//! Floor 3: decoder, weights, tokenizers.
