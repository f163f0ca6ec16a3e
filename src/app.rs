//! Floor 5: messages to effects, the command registry, overlays, the key map.
