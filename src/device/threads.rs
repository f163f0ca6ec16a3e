//! How many threads compute.

/// What candle's own pool, which multiplies quantised weights, takes its size from when it first works.
const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";

/// Sets the number of threads for the whole process: rayon's pool, and candle's unless the environment names its size.
/// Its threads wait by spinning: more of them than cores are left would slow down everything. To be called before
/// anything is computed; what is asked for later has no effect.
#[allow(unsafe_code)]
pub fn compute_on(threads: usize) {
    if std::env::var_os(CANDLE_THREADS).is_none() {
        // SAFETY: Rust's own readers and writers of the environment exclude each other, and no foreign code of this
        // program reads it while the program prepares to compute.
        unsafe { std::env::set_var(CANDLE_THREADS, threads.to_string()) };
    }
    // Fails only where a pool exists already, which then is the one that an earlier call made.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
}
