//! Against a hub on this machine that misbehaves when told to.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub has, and how it behaves.
#[derive(Clone, Default)]
struct Behaviour {
    files: BTreeMap<String, Vec<u8>>,
    /// Answers every request with this status.
    status: Option<u16>,
    /// Names every file by this.
    etag: Option<String>,
    /// Sends the whole file where a part is asked for.
    ignores_ranges: bool,
    /// Sends other bytes than those it has the sum of.
    damages: bool,
    /// Claims this many bytes more than it has.
    claims_more: usize,
    /// Ends each answer after so many bytes of the file.
    cut_after: Option<usize>,
    /// Lets nobody in without it.
    token: Option<String>,
}

/// A request: path, first byte of the range, token.
#[derive(Clone, Debug, PartialEq)]
struct Request {
    path: String,
    from: Option<usize>,
    /// Whether it goes to the file's end: a transfer, and no question for the size.
    to_end: bool,
    token: Option<String>,
}

struct Server {
    address: String,
    behaviour: Arc<Mutex<Behaviour>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        let behaviour = Arc::new(Mutex::new(Behaviour { files, ..Behaviour::default() }));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (of_thread, log) = (Arc::clone(&behaviour), Arc::clone(&requests));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let behaviour = of_thread.lock().unwrap().clone();
                // A client that goes away is the test's doing.
                let _ = answer(&stream.unwrap(), &behaviour, &log);
            }
        });
        Self { address, behaviour, requests }
    }

    fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    /// The starts of the parts asked for of a file.
    fn parts_of(&self, file: &str) -> Vec<usize> {
        let requests = self.requests.lock().unwrap();
        let of_file = requests.iter().filter(|request| request.path.ends_with(file) && request.to_end);
        of_file.filter_map(|request| request.from).collect()
    }
}

fn answer(stream: &TcpStream, behaviour: &Behaviour, log: &Mutex<Vec<Request>>) -> io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut range, mut token) = (None, None);
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                range = value
                    .trim_start_matches("bytes=")
                    .split_once('-')
                    .map(|(a, b)| (a.to_owned(), b.to_owned()));
            }
            "authorization" => token = value.strip_prefix("Bearer ").map(ToOwned::to_owned),
            _ => {}
        }
    }
    let from = range.as_ref().and_then(|(from, _)| from.parse().ok());
    let to: Option<usize> = range.as_ref().and_then(|(_, to)| to.parse().ok());
    log.lock().unwrap().push(Request {
        path: path.clone(),
        from,
        to_end: to.is_none(),
        token: token.clone(),
    });
    let mut out = stream;
    let refuse = |status: u16, mut out: &TcpStream| {
        write!(out, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    };
    if let Some(status) = behaviour.status {
        return refuse(status, out);
    }
    if behaviour.token.is_some() && behaviour.token != token {
        return refuse(401, out);
    }
    if path == "/api/models/org/name/revision/main" {
        let names: Vec<String> =
            behaviour.files.keys().map(|name| format!(r#"{{"rfilename": "{name}"}}"#)).collect();
        let body = format!(r#"{{"sha": "{COMMIT}", "siblings": [{}]}}"#, names.join(","));
        return write!(
            out,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }
    let file = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/"));
    let Some(bytes) = file.and_then(|file| behaviour.files.get(file)) else { return refuse(404, out) };
    let sum = format!("{:x}", Sha256::digest(bytes));
    let etag = behaviour.etag.as_ref().unwrap_or(&sum);
    let (mut from, mut end) =
        (from.unwrap_or(0).min(bytes.len()), to.map_or(bytes.len(), |to| (to + 1).min(bytes.len())));
    if behaviour.ignores_ranges && end != 1 {
        (from, end) = (0, bytes.len());
    }
    let total = bytes.len() + behaviour.claims_more;
    let length = if to.is_some() { end - from } else { end - from + behaviour.claims_more };
    write!(
        out,
        "HTTP/1.1 206 Partial\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {from}-{end}/{total}\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    let mut body = bytes[from..end].to_vec();
    if let Some(cut) = behaviour.cut_after {
        body.truncate(cut);
    }
    if behaviour.damages && to.is_none() {
        for byte in &mut body {
            *byte ^= 1;
        }
    }
    out.write_all(&body)
}

fn weights() -> Vec<u8> {
    (0..400_000u32).map(|i| (i * 7 % 251) as u8).collect()
}

fn model() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{ }".to_vec()),
        ("model.safetensors", weights()),
    ]
}

fn serve(files: &[(&'static str, Vec<u8>)]) -> Server {
    Server::start(&files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect::<Vec<_>>())
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn go_on(_: &Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn refusal(hub: &Hub, text: &str) -> String {
    let line = hub.fetch(&name(text), &mut go_on).unwrap_err().to_string();
    assert!(line.starts_with(&format!("{text}: ")) && !line.contains(char::is_control), "{line:?}");
    line
}

#[test]
fn names_are_told_from_paths() {
    for (text, shown) in
        [("org/name", "org/name"), ("a-b/c.d_e", "a-b/c.d_e"), ("o/n/f.Q8_0.gguf", "o/n/f.Q8_0.gguf")]
    {
        assert_eq!(name(text).to_string(), shown);
    }
    for text in [
        "name",
        "./name",
        "../name",
        "/org/name",
        "org/",
        "org/name/",
        "o/n/f.bin",
        "o/f.gguf",
        "o/n/d/f.gguf",
        "o/n n",
        "demo",
    ] {
        assert_eq!(Name::parse(text), None, "{text}");
    }
}

#[test]
fn a_model_is_fetched_once_and_found_again_without_a_network() {
    let server = serve(&model());
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new(&server.address, dir.path(), Some("secret"));
    let mut seen = Vec::new();
    let folder = hub
        .fetch(&name("org/name"), &mut |p: &Progress<'_>| {
            seen.push((p.what.to_owned(), p.done_bytes, p.total_bytes));
            ControlFlow::Continue(())
        })
        .unwrap();
    for (file, bytes) in model() {
        assert_eq!(fs::read(folder.join(file)).unwrap(), bytes, "{file}");
    }
    let weights: Vec<_> = seen.iter().filter(|(what, ..)| what == "org/name/model.safetensors").collect();
    assert!(weights.windows(2).all(|pair| pair[0].1 <= pair[1].1), "bytes only grow");
    assert_eq!(weights.last().unwrap().1, 400_000);
    assert!(weights.len() > 2 && weights.iter().all(|(.., total)| *total == 400_000));
    let requests = server.requests.lock().unwrap().clone();
    assert!(requests.iter().all(|request| request.token.as_deref() == Some("secret")), "{requests:?}");
    assert!(requests.iter().all(|request| !request.path.contains("generation_config")), "only what is there");

    let dead = Hub::new("http://127.0.0.1:1", dir.path(), None);
    assert_eq!(dead.fetch(&name("org/name"), &mut go_on).unwrap(), folder);
    assert_eq!(server.requests.lock().unwrap().len(), requests.len());
}

#[test]
fn shards_are_fetched_by_their_index() {
    let index = br#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#.to_vec();
    let mut files = vec![
        ("config.json", b"{}".to_vec()),
        ("model.safetensors.index.json", index),
        ("m-1.safetensors", b"one".to_vec()),
        ("m-2.safetensors", b"two".to_vec()),
        ("other.safetensors", b"no".to_vec()),
    ];
    let server = serve(&files);
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new(&server.address, dir.path(), None);
    let folder = hub.fetch(&name("org/name"), &mut go_on).unwrap();
    assert_eq!(fs::read(folder.join("m-2.safetensors")).unwrap(), b"two");
    assert!(!folder.join("other.safetensors").exists());
    assert_eq!(
        Hub::new("http://127.0.0.1:1", dir.path(), None).fetch(&name("org/name"), &mut go_on).unwrap(),
        folder
    );

    files[1].1 = br#"{"weight_map": {"a": "../../../m-1.safetensors"}}"#.to_vec();
    let server = serve(&files);
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new(&server.address, dir.path(), None);
    let line = hub.fetch(&name("org/name"), &mut go_on).unwrap_err().to_string();
    assert!(line.contains("index.json: it names the file \"../../../m-1.safetensors\""), "{line}");
}

#[test]
fn gguf_files_are_taken_by_name_or_where_there_is_one() {
    let mut files = vec![("README.md", b"#".to_vec()), ("m-q8_0.gguf", b"GGUF8".to_vec())];
    let server = serve(&files);
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new(&server.address, dir.path(), None);
    let path = hub.fetch(&name("org/name"), &mut go_on).unwrap();
    assert_eq!(fs::read(path).unwrap(), b"GGUF8");

    files.push(("m-q4_k.gguf", b"GGUF4".to_vec()));
    let server = serve(&files);
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new(&server.address, dir.path(), None);
    let line = refusal(&hub, "org/name");
    assert!(line.contains("it has 2 GGUF files; name one, as in org/name/m-q4_k.gguf"), "{line}");
    let path = hub.fetch(&name("org/name/m-q4_k.gguf"), &mut go_on).unwrap();
    assert_eq!(fs::read(path).unwrap(), b"GGUF4");
    assert!(refusal(&hub, "org/name/m-q2_k.gguf").contains("has no file m-q2_k.gguf of it (404)"));

    let server = serve(&[("pytorch_model.bin", b"x".to_vec())]);
    let hub = Hub::new(&server.address, dir.path(), None);
    fs::remove_dir_all(dir.path().join("models--org--name")).unwrap();
    assert!(refusal(&hub, "org/name").contains("neither model.safetensors nor a GGUF file"));
}

#[test]
fn a_stopped_transfer_goes_on_where_it_ended() {
    let server = serve(&model());
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new(&server.address, dir.path(), None);
    let error = hub.fetch(&name("org/name"), &mut |p: &Progress<'_>| {
        if p.done_bytes >= 100_000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(error, Err(Error::Stopped)), "{error:?}");
    let folder = hub.fetch(&name("org/name"), &mut go_on).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), weights());
    let parts = server.parts_of(WEIGHTS);
    // The whole, and what was missing.
    assert!(matches!(parts[..], [0, from] if (50_000..400_000).contains(&from)), "{parts:?}");
}

#[test]
fn a_broken_transfer_is_taken_up_again() {
    let server = serve(&model());
    server.behave(|b| b.cut_after = Some(150_000));
    let dir = tempfile::tempdir().unwrap();
    let folder = Hub::new(&server.address, dir.path(), None).fetch(&name("org/name"), &mut go_on).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), weights());
    assert_eq!(server.parts_of(WEIGHTS), [0, 150_000, 300_000]);

    // One that breaks too often says so, and keeps what came.
    server.behave(|b| b.cut_after = Some(1000));
    let dir = tempfile::tempdir().unwrap();
    let line = refusal(&Hub::new(&server.address, dir.path(), None), "org/name");
    assert!(
        line.contains("model.safetensors broke off") && line.contains("goes on where it ended"),
        "{line}"
    );
}

#[test]
fn a_hub_that_cannot_go_on_in_the_middle_sends_all_again() {
    let server = serve(&model());
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new(&server.address, dir.path(), None);
    let _ = hub.fetch(&name("org/name"), &mut |p: &Progress<'_>| {
        if p.done_bytes >= 100_000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    server.behave(|b| b.ignores_ranges = true);
    let folder = hub.fetch(&name("org/name"), &mut go_on).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), weights());
}

#[test]
fn what_arrives_damaged_is_not_kept() {
    for (change, expected) in [
        ((|b| b.damages = true) as fn(&mut Behaviour), "config.json: its SHA-256 is not the hub's"),
        (|b| b.claims_more = 10, "broke off"),
        (
            |b| (b.etag, b.claims_more) = (Some("../../../etag".into()), 0),
            "names config.json by \"../../../etag\"",
        ),
        (|b| b.etag = Some(".".repeat(3)), "which no hub does"),
    ] {
        let server = serve(&model());
        server.behave(change);
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::new(&server.address, dir.path(), None);
        let line = refusal(&hub, "org/name");
        assert!(line.contains(expected), "{line}");
        server.behave(|b| *b = Behaviour { files: b.files.clone(), ..Behaviour::default() });
        let folder = hub.fetch(&name("org/name"), &mut go_on).unwrap();
        assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), weights());
    }
}

#[test]
fn each_refusal_says_what_to_do() {
    let server = serve(&model());
    let dir = tempfile::tempdir().unwrap();
    let hub = |token| Hub::new(&server.address, dir.path(), token);
    for (status, expected) in [
        (404, "has no such model (404), and there is no such folder here; check the name"),
        (403, "refuses access (403): no such model, or one that wants a token"),
        (503, "answers with status 503; what was fetched stays, try again later"),
        (302, "gave an answer that no hub gives"),
    ] {
        server.behave(|b| b.status = Some(status));
        let line = refusal(&hub(None), "org/name");
        assert!(line.contains(expected), "{line}");
    }
    server.behave(|b| (b.status, b.token) = (None, Some("right".into())));
    assert!(refusal(&hub(None), "org/name").contains("set HF_TOKEN"));
    assert!(refusal(&hub(Some("wrong")), "org/name").contains("refuses access (401) with the token given"));
    hub(Some("right")).fetch(&name("org/name"), &mut go_on).unwrap();

    let line = refusal(&Hub::new("http://127.0.0.1:1", dir.path(), None), "other/name");
    assert!(line.contains("cannot reach http://127.0.0.1:1") && line.contains("check the network"), "{line}");
    let line = refusal(&Hub::new("http://no-such-host.invalid", dir.path(), None), "other/name");
    assert!(line.contains("cannot reach http://no-such-host.invalid"), "{line}");
    let line = refusal(&Hub::new("not an address", dir.path(), None), "other/name");
    assert!(line.contains("is no address of a hub; set HF_ENDPOINT"), "{line}");

    // A cache that cannot be written; root writes anywhere, so a file stands in the way instead.
    server.behave(|b| b.token = None);
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let line = refusal(&Hub::new(&server.address, &file, None), "org/name");
    assert!(!line.contains("panick"), "{line}");
}
