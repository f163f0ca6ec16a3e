//! A model hub on this machine that sends a folder's files, as slowly as a test wants.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Bytes sent at a time.
const SLICE: usize = 64 << 10;

/// Serves `org/name`.
pub(crate) struct Hub {
    /// What `HF_ENDPOINT` is set to.
    pub(crate) address: String,
    transfers: Arc<Mutex<Vec<(String, usize)>>>,
}

impl Hub {
    pub(crate) fn start(folder: &Path, pause: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let transfers = Arc::new(Mutex::new(Vec::new()));
        let (folder, log) = (folder.to_owned(), Arc::clone(&transfers));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (folder, log) = (folder.clone(), Arc::clone(&log));
                // A client that goes away is the test's doing.
                std::thread::spawn(move || drop(answer(&stream.unwrap(), &folder, pause, &log)));
            }
        });
        Self { address, transfers }
    }

    /// First bytes of the transfers of a file.
    pub(crate) fn transfers_of(&self, file: &str) -> Vec<usize> {
        let transfers = self.transfers.lock().unwrap();
        transfers.iter().filter(|(name, _)| name == file).map(|(_, from)| *from).collect()
    }
}

fn answer(
    stream: &TcpStream,
    folder: &Path,
    pause: Duration,
    log: &Mutex<Vec<(String, usize)>>,
) -> std::io::Result<()> {
    const COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut range = (0, None);
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some((from, to)) = line.strip_prefix("range: bytes=").and_then(|range| range.split_once('-')) {
            range = (from.parse().unwrap_or(0), to.parse::<usize>().ok());
        }
    }
    let mut out = stream;
    if path == "/api/models/org/name/revision/main" {
        let names: Vec<String> = std::fs::read_dir(folder)?
            .map(|entry| Ok(format!(r#"{{"rfilename": "{}"}}"#, entry?.file_name().display())))
            .collect::<std::io::Result<_>>()?;
        let body = format!(r#"{{"sha": "{COMMIT}", "siblings": [{}]}}"#, names.join(","));
        return write!(
            out,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }
    let name = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/")).map(ToOwned::to_owned);
    let file: Option<(String, PathBuf)> = name.map(|name| (name.clone(), folder.join(name)));
    let Some((name, bytes)) = file.and_then(|(name, path)| Some((name, std::fs::read(path).ok()?))) else {
        return write!(out, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let from = range.0.min(bytes.len());
    let end = range.1.map_or(bytes.len(), |to| (to + 1).min(bytes.len()));
    write!(
        out,
        "HTTP/1.1 206 Partial Content\r\nETag: \"{}-{}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {from}-{}/{}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        name.replace('.', "-"),
        bytes.len(),
        end.saturating_sub(1),
        bytes.len(),
        end - from
    )?;
    if range.1.is_none() {
        log.lock().unwrap().push((name, from));
    }
    for slice in bytes[from..end].chunks(SLICE) {
        out.write_all(slice)?;
        std::thread::sleep(pause);
    }
    Ok(())
}
