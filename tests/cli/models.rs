//! Models by name, from a hub on this machine.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::hub::Hub;
use crate::program::{command, finish, hostile_model, run};

fn of_hub(hub: &str, home: &Path) -> Command {
    let mut command = command();
    command.args([
        "run",
        "--headless",
        "--json",
        "--model",
        "org/name",
        "--prompt",
        "a",
        "--max-tokens",
        "2",
    ]);
    command.env("HF_ENDPOINT", hub).env("HF_HOME", home).env("NO_PROXY", "127.0.0.1");
    command
}

#[test]
fn a_killed_download_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let model = hostile_model(dir.path());
    let hub = Hub::start(&model, Duration::from_millis(25));
    let home = dir.path().join("home");
    let mut first = of_hub(&hub.address, &home).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let part = home.join("hub/models--org--name/blobs/model-safetensors-5824944.part");
    let begun = Instant::now();
    while part.metadata().map_or(0, |m| m.len()) < 300_000 {
        assert!(begun.elapsed() < Duration::from_secs(30), "no part of the weights came");
        assert!(first.try_wait().unwrap().is_none(), "the run ended before its weights were there");
        std::thread::sleep(Duration::from_millis(5));
    }
    first.kill().unwrap();
    first.wait().unwrap();
    let kept = part.metadata().unwrap().len();

    let ran = finish(&mut of_hub(&hub.address, &home)).ok();
    assert!(ran.err().contains("loading org/name/model.safetensors: "), "{}", ran.err());
    let transfers = hub.transfers_of("model.safetensors");
    assert!(matches!(transfers[..], [0, from] if from as u64 == kept), "{transfers:?} after {kept} bytes");
    // The same model as the folder that the hub has, and its name is how to have it again.
    let own = run(["run", "--headless", "--json", "--prompt", "a", "--max-tokens", "2", "--model"]
        .iter()
        .map(std::ffi::OsStr::new)
        .chain([model.as_os_str()]))
    .ok();
    assert_eq!(ran.summary()["state_hash"], own.summary()["state_hash"]);

    // Everything is there: no network is needed.
    finish(&mut of_hub("http://127.0.0.1:1", &home)).ok();
}

#[test]
fn what_the_hub_does_not_have_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let model = hostile_model(dir.path());
    let hub = Hub::start(&model, Duration::ZERO);
    for (endpoint, name, words) in [
        (hub.address.as_str(), "org/other", "has no such model (404)"),
        (hub.address.as_str(), "org/name/m.gguf", "has no file m.gguf of it (404)"),
        ("http://127.0.0.1:1", "org/name", "cannot reach http://127.0.0.1:1"),
    ] {
        let mut command = command();
        command.args(["run", "--headless", "--prompt", "a", "--model", name]);
        command
            .env("HF_ENDPOINT", endpoint)
            .env("HF_HOME", dir.path().join("home"))
            .env("NO_PROXY", "127.0.0.1");
        let ran = finish(&mut command);
        assert_eq!(ran.code, Some(2), "{}", ran.err());
        assert!(ran.err().contains(&format!("{name}: ")) && ran.err().contains(words), "{}", ran.err());
        assert_eq!(ran.err().lines().count(), 1, "{}", ran.err());
    }
}

#[test]
fn a_gguf_file_is_run_inspected_and_put_into_another_type() {
    let Some(data) = std::env::var_os("KVISTA_TEST_DATA") else {
        eprintln!("skipped: KVISTA_TEST_DATA is not set");
        return;
    };
    let file = Path::new(&data).join("stories260k/stories260K-f32.gguf");
    let file = file.to_str().unwrap();
    let with = |more: &[&str]| {
        let args =
            ["run", "--headless", "--model", file, "--prompt", "Once upon a time", "--max-tokens", "8"];
        run(args.iter().chain(more))
    };
    assert!(with(&["--json"]).ok().summary()["text"].as_str().unwrap().starts_with(", there was a"));
    let plain = with(&["--plain", "--weights", "f16"]).ok();
    assert!(plain.out().contains("stories260K-f32.gguf --weights f16 --prompt"), "{}", plain.out());
    for (weights, words) in [
        (
            "q8_0",
            "the rows of model.layers.0.mlp.down_proj.weight have 172 elements; types that fit: f32, f16, bf16",
        ),
        ("q9", "--weights q9: no type of weights; there are f32, f16"),
    ] {
        let ran = with(&["--weights", weights]);
        assert_eq!(ran.code, Some(2));
        assert!(ran.err().contains(words), "{}", ran.err());
    }
    let ran = run(["inspect", file]).ok();
    assert!(ran.out().contains("llama") && ran.out().contains("512"), "{}", ran.out());
}

#[test]
fn weights_that_are_no_numbers_are_said_to_be_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let model = hostile_model(dir.path());
    let weights = model.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for half in bytes[header..].chunks_exact_mut(2) {
        half.copy_from_slice(&0x7e00u16.to_le_bytes());
    }
    std::fs::write(&weights, bytes).unwrap();
    let ran = run(["run", "--headless", "--prompt", "a", "--model"]
        .iter()
        .map(std::ffi::OsStr::new)
        .chain([model.as_os_str()]));
    assert_eq!(ran.code, Some(2), "{}", ran.err());
    let said = ran.err();
    assert!(said.lines().count() == 1 && said.contains("the weights may be damaged"), "{said}");
}
