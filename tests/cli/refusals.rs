//! Bad usage and bad input: exit code 2, nothing on standard output, one clear line.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use crate::program::{Ran, command, finish, hostile_model, is_obeyed, run, short_run};

impl Ran {
    /// Refused: exit code 2, nothing on standard output, one line on standard error. Returns the line.
    #[track_caller]
    pub(crate) fn refusal(&self) -> String {
        let line = self.one_line();
        assert_eq!((self.code, self.out().as_str()), (Some(2), ""), "{line}");
        line
    }

    /// The one line on standard error, without the line feed.
    #[track_caller]
    pub(crate) fn one_line(&self) -> String {
        let err = self.err();
        let line = err.strip_suffix('\n').unwrap_or_else(|| panic!("no line on standard error: {err:?}"));
        assert!(line.starts_with("kvista: ") && !line.contains('\n'), "{err:?}");
        assert!(!line.chars().any(is_obeyed), "{err:?}");
        line.to_owned()
    }
}

/// Runs `kvista run --headless --prompt Mia` with these arguments and wants the refusal to say all of `says`.
#[track_caller]
fn refused(args: &[&str], says: &[&str]) {
    let line = run(["run", "--headless", "--prompt", "Mia"].iter().chain(args)).refusal();
    for words in says {
        assert!(line.contains(words), "{args:?} should say {words:?}: {line}");
    }
}

#[test]
fn numbers_that_cannot_be() {
    refused(&["--policy", "nope"], &["'nope'", "full, streaming, h2o, tova"]);
    refused(&["--policy", "h2o:x=1"], &["no parameter 'x'", "budget"]);
    refused(&["--policy", "h2o:budget=0"], &["budget", "'0'", "at least 1"]);
    refused(&["--policy", "h2o:budget"], &["h2o", "'budget'"]);
    refused(&["--kcache", "n=0"], &["kcache", "'0'", "from 1"]);
    refused(&["--read", "nope"], &["'nope'", "kcache, quest, infllm"]);
    refused(&["--read", "quest:page=0"], &["page", "'0'", "from 1 to 1024"]);
    refused(&["--read", "quest:budget=0"], &["budget", "'0'", "from 1"]);
    refused(&["--read", "quest:n=4"], &["no parameter 'n'", "budget, page, dense, min"]);
    refused(&["--read", "infllm:local=0"], &["local", "'0'", "from 1"]);
    refused(&["--read", "infllm", "--policy", "h2o:budget=25%"], &["infllm", "h2o", "--policy full"]);
    refused(&["--read", "infllm", "--kv-dtype", "int8"], &["infllm", "int8", "f32 or f16"]);
    refused(&["--read", "infllm:block=24"], &["infllm", "multiples of 16", "--block-size"]);
    refused(&["--policy", "quest"], &["quest is a read set", "--read"]);
    refused(
        &["--read", "quest", "--policy", "streaming:budget=32,reposition=true"],
        &["quest", "after RoPE", "reposition=false"],
    );
    refused(&["--merge", "nope"], &["'nope'", "cam, d2o, minicache"]);
    refused(&["--merge", "cam"], &["--merge cam", "policy 'full'", "--policy h2o:budget=25%"]);
    refused(&["--merge", "h2o"], &["h2o is an eviction policy", "--policy"]);
    refused(&["--policy", "cam"], &["cam is a merge rule", "--merge"]);
    refused(&["--policy", "h2o:budget=25%", "--merge", "cam:m=0"], &["cam: m", "'0'", "from 1"]);
    refused(&["--policy", "h2o:budget=25%", "--merge", "cam+d2o"], &["both merge"]);
    refused(
        &["--policy", "h2o:budget=25%", "--merge", "d2o", "--kv-dtype", "int4"],
        &["--merge d2o", "int4", "f16 or int8"],
    );
    refused(&["--merge", "minicache:from=1"], &["minicache", "from="]);
    refused(&["--block-size", "0"], &["--block-size 0", "use 1 to"]);
    refused(&["--blocks", "0"], &["--blocks 0"]);
    refused(&["--chunk", "0"], &["--chunk 0", "use 1 to"]);
    refused(&["--shadow=every:1000000"], &["--shadow=every:1000000", "use 1 to"]);
    refused(&["--threads", "0"], &["--threads 0", "at least 1"]);
    refused(&["--batch", "0"], &["--batch 0", "use 1 to"]);
    refused(&["--max-tokens", "0"], &["--max-tokens 0"]);
    refused(&["--pace", "NaN"], &["--pace NaN"]);
    refused(&["--link", "0"], &["--link 0"]);
    refused(&["--temperature", "NaN"], &["--temperature NaN"]);
    refused(&["--top-p", "0"], &["--top-p 0"]);
    refused(&["--compact", "0"], &["--compact 0"]);
    refused(&["--kv-dtype", "int3"], &["--kv-dtype int3", "f16", "int4"]);
    refused(&["--kv-dtype", "int4", "--block-size", "16"], &["int4", "16 slots", "--block-size 32"]);
    refused(&["--kv-dtype", "int2:residual=48"], &["int2:residual=48", "multiple of the group"]);
    refused(&["--kv-dtype", "int4:window=3"], &["int4:window=3", "residual"]);
    refused(&["--kv-dtype", "nuq4:outliers=0.5"], &["nuq4:outliers=0.5", "outliers=0..0.2"]);
    refused(&["--kv-dtype", "nuq3:calibrate=8"], &["nuq3:calibrate=8", "calibrate=32..65536"]);
    refused(
        &["--kv-dtype", "int4", "--policy", "streaming:budget=32,reposition=true"],
        &["int4", "streaming"],
    );
    refused(&["--device", "cuda"], &["--device cuda", "cpu"]);
    refused(&["--device", "gpu"], &["--device gpu", "auto, cpu, cuda or cuda:N"]);
    refused(&["--compress", "context"], &["--compress context", "--question"]);
    refused(&["--compress", "nonsense"], &["--compress nonsense", "context or prompt"]);
}

/// "Mia" is two tokens with BOS.
#[test]
fn budgets_under_the_fixed_parts() {
    for (policy, fixed) in [
        ("streaming:budget=4", "sinks=4"),
        ("lm-infinite:budget=25%", "sinks=4"),
        ("scissorhands:budget=10", "recent=10"),
        ("snapkv:budget=32", "window=32"),
        ("pyramidkv:budget=8", "window=8"),
        ("fastgen:budget=4", "sinks=4"),
        ("roco:budget=10", "newest=10"),
        ("buzz:budget=3", "sinks=4"),
        ("nacl:budget=20", "window=16 and sinks=4"),
        ("expected:budget=4", "sinks=4"),
        ("snapkv:budget=32+adakv+kvcrush", "window=32"),
    ] {
        let name = policy.split(':').next().unwrap();
        refused(&["--policy", policy], &[name, "budget=", fixed, "must leave room", "use at least"]);
    }
}

#[test]
fn compositions_that_make_no_sense() {
    refused(&["--policy", "adakv"], &["adakv", "write it behind one", "h2o:budget=25%+adakv"]);
    refused(&["--policy", "h2o+tova"], &["h2o+tova", "one evictor"]);
    refused(&["--policy", "full+h2o"], &["full+h2o", "joins no other"]);
    refused(&["--policy", "full+adakv"], &["full+adakv", "nothing to wrap"]);
    refused(&["--policy", "buzz+kvcrush"], &["buzz+kvcrush", "does not rank tokens"]);
    refused(&["--policy", "tova+adakv"], &["tova+adakv", "by=head"]);
    refused(&["--policy", "h2o:by=page+kvcrush"], &["h2o+kvcrush", "kvcrush.group"]);
    refused(&["--policy", "h2o+adakv+adakv"], &["adakv", "named twice"]);
    refused(&["--policy", "h2o+kcache"], &["kcache is a read set", "--read"]);
    refused(&["--read", "h2o"], &["h2o is an eviction policy", "--policy"]);
}

#[test]
fn what_clap_refuses_has_the_same_code() {
    for args in [
        &["run", "--scores", "lots"][..],
        &["run", "--seed", "x"],
        &["run", "--shadow=3"],
        &["run", "--shadow=every:0"],
        &["run", "--prompt", "a", "--prompt-file", "b"],
        &["replay", "x.mcap", "--view", "nope"],
        &["replay"],
        &["nonsense"],
        &["config", "nonsense"],
    ] {
        let ran = run(args);
        assert_eq!((ran.code, ran.out().as_str()), (Some(2), ""), "{args:?}");
        assert!(ran.err().starts_with("error: "), "{args:?}: {}", ran.err());
    }
}

#[test]
fn prompts_that_cannot_be_read_or_fed() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let with_file = |path: &Path| {
        run(["run", "--headless", "--max-tokens", "2", "--prompt-file", path.to_str().unwrap()])
    };

    let line = with_file(&dir.path().join("nowhere")).refusal();
    assert!(line.contains("nowhere: cannot be read"), "{line}");
    let line = with_file(dir.path()).refusal();
    assert!(line.contains("cannot be read"), "{line}");
    let line = with_file(&file("latin1", b"caf\xe9")).refusal();
    assert!(line.contains("latin1: not UTF-8"), "{line}");
    let line = with_file(&file("long", "Mia was a girl. ".repeat(2_000).as_bytes())).refusal();
    assert!(line.contains("4096") && line.contains("shorten the prompt"), "{line}");

    // The demo's tokenizer begins every prompt with BOS, so that even an empty file can be continued.
    let empty = with_file(&file("empty", b"")).ok();
    assert!(!empty.out().trim().is_empty());
    // A model without BOS has nothing to begin with.
    let model = hostile_model(dir.path());
    drop_field(&model, "bos_token_id");
    let line = run(["run", "--headless", "--prompt", "", "--model", model.to_str().unwrap()]).refusal();
    assert!(line.contains("the prompt is empty"), "{line}");
}

/// Takes a field out of a model folder's configuration.
fn drop_field(model: &Path, field: &str) {
    let file = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove(field).unwrap_or_else(|| panic!("no field {field}"));
    fs::write(file, config.to_string()).unwrap();
}

#[test]
fn a_prompt_from_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt");
    fs::write(&file, "Mia was").unwrap();
    let args = ["run", "--headless", "--json", "--max-tokens", "2"];
    let piped = finish(command().args(args).arg("-").stdin(fs::File::open(&file).unwrap())).ok().summary();
    let typed = run(args.iter().chain(&["--prompt", "Mia was"])).ok().summary();
    assert_eq!(piped["state_hash"], typed["state_hash"]);
}

#[test]
fn model_folders_with_something_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let model = hostile_model(dir.path());
    let refused = |model: &Path, says: &[&str]| refused(&["--model", model.to_str().unwrap()], says);

    refused(&dir.path().join("nowhere"), &["nowhere: no such folder", "config.json"]);
    let bare = dir.path().join("bare");
    fs::create_dir(&bare).unwrap();
    refused(&bare, &["config.json: no such file"]);
    refused(&model.join("config.json"), &["not a folder"]);

    let config = fs::read(model.join("config.json")).unwrap();
    for field in
        ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"]
    {
        drop_field(&model, field);
        refused(&model, &["config.json: ", field, "missing"]);
        fs::write(model.join("config.json"), &config).unwrap();
    }
    fs::write(model.join("config.json"), "{").unwrap();
    refused(&model, &["config.json: "]);
    fs::write(model.join("config.json"), &config).unwrap();

    let weights = fs::read(model.join("model.safetensors")).unwrap();
    fs::write(model.join("model.safetensors"), reshaped(&weights)).unwrap();
    refused(&model, &["model.safetensors", "q_proj", "[256, 256]", "[128, 512]"]);
    fs::write(model.join("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    refused(&model, &["model.safetensors", "truncated"]);
    fs::write(model.join("model.safetensors"), b"not weights").unwrap();
    refused(&model, &["model.safetensors"]);
    fs::write(model.join("model.safetensors"), &weights).unwrap();

    fs::write(model.join("tokenizer.json"), "[]").unwrap();
    refused(&model, &["tokenizer.json: "]);
}

/// The weights with one query projection of the right size and the wrong shape.
fn reshaped(weights: &[u8]) -> Vec<u8> {
    let tensors = SafeTensors::deserialize(weights).unwrap();
    let wrong = "model.layers.0.self_attn.q_proj.weight";
    let views: Vec<(String, TensorView<'_>)> = tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            if name != wrong {
                return (name, view);
            }
            assert_eq!((view.dtype(), view.shape()), (Dtype::F16, &[256, 256][..]));
            let other = TensorView::new(view.dtype(), vec![128, 512], view.data()).unwrap();
            (name, other)
        })
        .collect();
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn recordings_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("nowhere/run.mcap");
    refused(&["--record", nowhere.to_str().unwrap()], &["nowhere/run.mcap", "cannot be written"]);
    refused(&["--record", dir.path().to_str().unwrap()], &["cannot be written"]);
    // A place where not even root may write.
    refused(&["--record", "/proc/run.mcap"], &["/proc/run.mcap", "cannot be written"]);
}

#[test]
fn themes_and_configurations_with_something_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.mcap");
    short_run(&["--record", file.to_str().unwrap()]).ok();
    let file = file.to_str().unwrap();
    let frame = |theme: &str| run(["replay", "--headless", file, "--theme", theme]);

    let line = frame("nope").refusal();
    assert!(line.contains("'nope'") && line.contains("kvista themes"), "{line}");
    refused(&["--theme", "nope"], &["'nope'", "kvista themes"]);
    assert!(frame("drak").refusal().contains("did you mean 'dark'?"));

    let theme = dir.path().join("mine.toml");
    fs::write(&theme, "inherits = \"dark\"\n[roles]\nnonsense = \"red\"\n").unwrap();
    let line = frame(theme.to_str().unwrap()).refusal();
    assert!(line.contains("mine.toml:3:1") && line.contains("nonsense"), "{line}");
    let line = frame(dir.path().join("nowhere.toml").to_str().unwrap()).refusal();
    assert!(line.contains("nowhere.toml: cannot be read"), "{line}");

    let config = dir.path().join("config.toml");
    fs::write(&config, "mouse = false\nnonsense = 1\n").unwrap();
    for verb in [&["replay", "--headless", file][..], &["config", "check"], &["keys"]] {
        let line = finish(command().args(verb).env("KVISTA_CONFIG", &config)).refusal();
        assert!(line.contains("config.toml:2:1") && line.contains("nonsense"), "{verb:?}: {line}");
    }
    fs::write(&config, "[keys]\n\"Ctrl-\" = \"app.help\"\n").unwrap();
    let line = finish(command().args(["keys"]).env("KVISTA_CONFIG", &config)).refusal();
    assert!(line.contains("Ctrl-"), "{line}");
    let line =
        finish(command().args(["config", "check"]).env("KVISTA_CONFIG", dir.path().join("gone"))).refusal();
    assert!(line.contains("gone: cannot be read"), "{line}");
}

#[test]
fn frames_that_cannot_be_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.mcap");
    let file = file.to_str().unwrap();
    short_run(&["--record", file]).ok();
    for (flag, value, says) in [
        ("--at", "999", "steps 0 to "),
        ("--at", "-999", "steps 0 to "),
        ("--size", "0x0", "WIDTHxHEIGHT"),
        ("--size", "80", "WIDTHxHEIGHT"),
        ("--size", "99999x9", "WIDTHxHEIGHT"),
        ("--layer", "99", "layers 0 to 3"),
        ("--head", "99", "heads 0 to 7"),
    ] {
        let line = run(["replay", "--headless", file, flag, value]).refusal();
        assert!(line.contains(says) && line.contains(value), "{line}");
    }
}

#[test]
fn the_ui_without_a_terminal_says_what_to_do_instead() {
    let line = run([""; 0]).refusal();
    assert!(line.contains("terminal") && line.contains("--headless"), "{line}");
}

#[test]
fn an_evaluation_that_cannot_be() {
    for (args, says) in [
        (&["passkey", "--lengths", "10"][..], "10 tokens: use 256 to 4096"),
        (&["recall", "--tokens", "4097", "--n", "1"], "4097 tokens: use 256 to 4096"),
        (&["passkey", "--depths", "2"], "--depths 2"),
        (&["passkey", "--n", "0"], "--n 0: use 1 to"),
        (&["passkey", "--compress", "both"], "--compress both: use context or prompt"),
        (&["passkey", "--lengths", "256", "--n", "1", "--policy", "nope"], "'nope'"),
    ] {
        let line = run(["eval"].iter().chain(args)).refusal();
        assert!(line.contains(says), "{args:?} should say {says:?}: {line}");
    }
}

#[test]
fn sweeps_that_cannot_be() {
    let refused = |args: &[&str], says: &[&str]| {
        let line = run(["eval"].iter().chain(args)).refusal();
        for words in says {
            assert!(line.contains(words), "{args:?} should say {words:?}: {line}");
        }
    };
    refused(&["passkey,recall"], &["--sweep", "name one"]);
    refused(&["perplexity"], &["add --sweep"]);
    refused(&["votes", "--sweep"], &["passkey, recall and perplexity"]);
    refused(&["passkey,recall", "--sweep", "--compress", "prompt"], &["--compress prompt", "passkey alone"]);
    refused(&["passkey", "--sweep", "--policies", "h3o"], &["'h3o'", "did you mean 'h2o'"]);
    refused(&["passkey", "--sweep", "--policies", "h2o", "--budgets", "0%"], &["h2o", "budget", "'0%'"]);
    refused(&["passkey", "--sweep", "--reads", "kcache:n=0"], &["kcache", "'0'"]);
    refused(&["passkey", "--sweep", "--lengths", "9"], &["9 tokens", "use 256 to"]);
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("letter.txt");
    fs::write(&other, "dear friend\n").unwrap();
    refused(
        &["passkey", "--sweep", "--n", "1", "--results", other.to_str().unwrap()],
        &["letter.txt", "not a file of sweep results"],
    );
    assert_eq!(fs::read_to_string(&other).unwrap(), "dear friend\n");
}
