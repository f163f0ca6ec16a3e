//! What the system says of its memory.

/// Bytes that can be had without swapping, where the system tells (Linux: `MemAvailable`).
pub fn free_bytes() -> Option<u64> {
    available_bytes(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::available_bytes;

    #[test]
    fn the_line_is_found_and_read() {
        let text = "MemTotal:       16318412 kB\nMemFree:          913016 kB\nMemAvailable:   11224040 kB\n";
        assert_eq!(available_bytes(text), Some(11_224_040 << 10));
        for odd in ["", "MemAvailable:", "MemAvailable: 12", "MemAvailable: x kB"] {
            assert_eq!(available_bytes(odd), None, "{odd}");
        }
    }
}
