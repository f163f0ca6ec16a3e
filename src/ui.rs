//! Floor 6: terminal guard, layout, views, widgets, theme. Draws, never decides.
