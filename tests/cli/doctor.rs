//! `kvista doctor` against drivers that a test makes: none of them is a GPU, all of them answer as one would.

use std::path::Path;
use std::process::Command;

use crate::program::{Ran, command, finish};

/// What the program finds where the first `libcuda.so.1` was compiled from `driver.c` with these definitions.
fn doctor(definitions: [&str; 3], args: &[&str]) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-w", "-o"])
        .arg(dir.path().join("libcuda.so.1"))
        .args(definitions.map(|definition| format!("-D{definition}")))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/driver.c"))
        .status()
        .unwrap();
    assert!(compiled.success());
    let mut program = command();
    program.arg("doctor").args(args).env("LD_LIBRARY_PATH", dir.path());
    finish(&mut program)
}

#[test]
fn a_gpu_is_named_and_its_copies_are_measured() {
    let ran = doctor(["INIT=0", "GPUS=1", "FULL=0"], &["--json"]).ok();
    let found = &ran.lines()[0];
    let driver = &found["driver"]["present"];
    assert_eq!(driver["cuda"], "13.1");
    let gpu = &driver["gpus"][0];
    assert_eq!((gpu["capability"].as_str(), gpu["multiprocessors"].as_u64()), (Some("9.0"), Some(132)));
    let memory = &gpu["memory"]["present"];
    assert_eq!(memory["free_bytes"], 3u64 << 30);
    for way in ["h2d_gb_per_s", "d2h_gb_per_s", "d2d_gb_per_s"] {
        // Copies of memory by memory: never as slow, never as fast.
        let speed = memory[way].as_f64().unwrap();
        assert!((0.05..2000.0).contains(&speed), "{way} {speed}");
    }
    let ran = doctor(["INIT=0", "GPUS=1", "FULL=0"], &[]).ok();
    let text = ran.out();
    assert!(
        text.contains("gpu 0") && text.contains("compute capability 9.0") && text.contains("measured"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "what a driver calls its device never reaches the terminal raw");
}

#[test]
fn what_is_wrong_with_a_driver_is_said_with_what_to_do() {
    for (definitions, expected) in [
        (["INIT=100", "GPUS=0", "FULL=0"], ["CUDA_ERROR_NO_DEVICE", "CUDA_VISIBLE_DEVICES"]),
        (["INIT=34", "GPUS=0", "FULL=0"], ["CUDA_ERROR_STUB_LIBRARY", "not a driver"]),
        (["INIT=0", "GPUS=1", "FULL=1"], ["CUDA_ERROR_OUT_OF_MEMORY", "free memory on the device"]),
    ] {
        let text = doctor(definitions, &[]).ok().out();
        assert!(expected.iter().all(|part| text.contains(part)), "{definitions:?}: {text}");
    }
}

#[test]
fn without_a_driver_the_processor_is_told_and_nothing_fails() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("libcuda.so.1"), "not a library").unwrap();
    let mut program = command();
    program.arg("doctor").env("LD_LIBRARY_PATH", dir.path());
    let text = finish(&mut program).ok().out();
    assert!(text.contains("cpu ") && text.contains("no NVIDIA driver"), "{text}");
}
