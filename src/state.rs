//! Floor 3: reducers that fold steps into what views draw.
