#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (kvista_fuzz::parser("gguf").drive)(input);
});
