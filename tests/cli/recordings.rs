//! Recordings that were cut, damaged or never ours.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::program::{Ran, run, short_run};

/// Cut lengths tried, besides the whole file.
const CUTS: usize = 60;

fn replay(file: &Path) -> Ran {
    run(["replay", "--headless", "--format", "json", file.to_str().unwrap()])
}

fn verb(verb: &str, file: &Path) -> Ran {
    run([verb, file.to_str().unwrap()])
}

/// Records the short run and returns its bytes and its lines.
fn recorded(file: &Path) -> (Vec<u8>, String) {
    let live = short_run(&["--record", file.to_str().unwrap()]).ok();
    (fs::read(file).unwrap(), live.out())
}

#[test]
fn a_recording_cut_anywhere_replays_a_prefix_or_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, live) = recorded(&dir.path().join("run.mcap"));
    let steps: Vec<&str> = live.lines().filter(|line| line.starts_with("{\"step\"")).collect();
    let cut = dir.path().join("cut.mcap");
    let (mut refusals, mut shorter) = (0, 0);
    for nth in 0..CUTS {
        // Evenly spread, the last ones within the final bytes, where every record of the file's end is met.
        let length = if nth < CUTS / 4 * 3 {
            bytes.len() * nth / (CUTS / 4 * 3)
        } else {
            bytes.len() - 1 - (nth % 15) * 9
        };
        fs::write(&cut, &bytes[..length]).unwrap();
        let ran = replay(&cut);
        if ran.code == Some(2) {
            ran.refusal();
            refusals += 1;
            continue;
        }
        let out = ran.ok().out();
        let (summary, replayed) =
            out.lines().collect::<Vec<_>>().split_last().map(|(s, r)| (*s, r.to_vec())).unwrap();
        assert!(steps.starts_with(&replayed), "cut at {length} of {}: {out}", bytes.len());
        let summary: Value = serde_json::from_str(summary).unwrap();
        assert_eq!(summary["summary"]["steps"], replayed.len());
        shorter += usize::from(replayed.len() < steps.len());
    }
    assert!(refusals > 0 && shorter + refusals < CUTS, "{refusals} refused, {shorter} shorter");
}

#[test]
fn a_long_recording_cut_in_the_middle_keeps_its_first_steps() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.mcap");
    // Two seconds at 40 steps a second: the flush of each second closes chunks.
    let args = [
        "run",
        "--headless",
        "--prompt",
        "Mia",
        "--max-tokens",
        "80",
        "--pace",
        "40",
        "--ignore-eos",
        "--record",
    ];
    run(args.iter().copied().chain([file.to_str().unwrap()])).ok();
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() * 3 / 4]).unwrap();
    let steps = replay(&file).ok().summary()["steps"].as_u64().unwrap();
    assert!((1..80).contains(&steps), "{steps} steps");

    let verified = verb("verify", &file);
    assert_eq!(verified.code, Some(1), "{}", verified.err());
    assert!(verified.out().contains("NOT SOUND"), "{}", verified.out());
    let repaired = dir.path().join("repaired.mcap");
    run(["repair", file.to_str().unwrap(), "-o", repaired.to_str().unwrap()]).ok();
    let verified = verb("verify", &repaired).ok().out();
    assert!(verified.ends_with("sound\n"), "{verified}");
    assert_eq!(replay(&repaired).ok().summary(), replay(&file).ok().summary());
    assert_eq!(fs::read(&file).unwrap().len(), bytes.len() * 3 / 4, "repair does not touch what it reads");
}

#[test]
fn verify_tells_sound_from_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.mcap");
    let (bytes, live) = recorded(&file);
    let hash =
        serde_json::from_str::<Value>(live.lines().last().unwrap()).unwrap()["summary"]["state_hash"].clone();
    let verified = run(["verify", "--json", file.to_str().unwrap()]).ok().lines().remove(0);
    assert_eq!((&verified["state_hash"], &verified["problems"]), (&hash, &serde_json::json!([])));

    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 0xff;
    fs::write(&file, damaged).unwrap();
    let verified = verb("verify", &file);
    assert_eq!(verified.code, Some(1), "{}{}", verified.out(), verified.err());

    let out = file.to_str().unwrap();
    run(["repair", out, "-o", out]).refusal();
}

#[test]
fn files_that_are_no_recordings_are_refused_by_every_verb() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, _) = recorded(&dir.path().join("run.mcap"));
    let mut noise = bytes.clone();
    noise.iter_mut().zip(0u32..).for_each(|(byte, i)| *byte = (i.wrapping_mul(2_654_435_761) >> 13) as u8);
    let after_magic = [&bytes[..8], &noise[8..]].concat();
    let files: [(&str, Vec<u8>); 7] = [
        ("empty", Vec::new()),
        ("noise", noise),
        ("noise after the magic", after_magic),
        ("text", b"hello, world\n".to_vec()),
        ("cut in the magic", bytes[..5].to_vec()),
        ("cut in the header", bytes[..20].to_vec()),
        ("foreign", foreign()),
    ];
    for (name, content) in files {
        let file = dir.path().join(name);
        fs::write(&file, content).unwrap();
        let output = dir.path().join("out.mcap");
        let shown = file.to_str().unwrap();
        for args in [
            &["replay", "--headless", "--format", "json", shown][..],
            &["replay", "--headless", shown],
            &["verify", shown],
            &["inspect", shown],
            &["repair", shown, "-o", output.to_str().unwrap()],
        ] {
            let line = run(args).refusal();
            assert!(line.contains(name), "{args:?}: {line}");
        }
    }
    for verb in ["replay", "verify", "inspect"] {
        let line = run([verb, "/nonexistent/run.mcap"]).refusal();
        assert!(line.contains("/nonexistent/run.mcap"), "{line}");
    }
}

/// A whole MCAP file of somebody else's.
fn foreign() -> Vec<u8> {
    let mut out = std::io::Cursor::new(Vec::new());
    let mut writer = mcap::Writer::new(&mut out).unwrap();
    let channel = writer.add_channel(0, "/imu", "json", &std::collections::BTreeMap::new()).unwrap();
    let header =
        mcap::records::MessageHeader { channel_id: channel, sequence: 0, log_time: 1, publish_time: 1 };
    writer.write_to_known_channel(&header, b"{}").unwrap();
    writer.finish().unwrap();
    drop(writer);
    out.into_inner()
}

#[test]
fn at_counts_from_both_ends() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.mcap");
    let (_, live) = recorded(&file);
    let steps = |at: &str| {
        let ran = run(["replay", "--headless", "--format", "json", "--at", at, file.to_str().unwrap()]).ok();
        ran.summary()["steps"].as_u64().unwrap() as usize
    };
    let all = live.lines().count() - 1;
    assert_eq!((steps("0"), steps("3"), steps("-1"), steps("-2")), (1, 4, all, all - 1));
}
