//! Writes the good inputs of every parser to `fuzz/corpus/TARGET/`, for the fuzzers to start from.

use std::fs;
use std::path::Path;

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for parser in &kvista_fuzz::PARSERS {
        let folder = corpus.join(parser.name);
        fs::create_dir_all(&folder)?;
        for (i, seed) in (parser.seeds)().iter().enumerate() {
            fs::write(folder.join(format!("seed-{i}")), seed)?;
        }
    }
    Ok(())
}
