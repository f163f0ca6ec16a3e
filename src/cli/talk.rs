//! A conversation without a screen: each line of standard input is a turn.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use super::Failure;

/// Longest line; more is no turn.
const MAX_LINE_BYTES: u64 = 16 << 20;
/// An interrupt is noticed within this time.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The lines of standard input, read one at a time: a person may answer what the model has said.
pub(super) struct Lines {
    lines: Receiver<io::Result<String>>,
    is_asked: bool,
}

impl Lines {
    pub(super) fn of_stdin() -> Result<Self, Failure> {
        // One line ahead at most: what was not read stays for whoever reads next.
        let (sender, lines) = mpsc::sync_channel(0);
        // On a thread of its own, since a read that waits for a line does not hear of an interrupt.
        std::thread::Builder::new()
            .name("stdin".into())
            .spawn(move || {
                let mut stdin = io::stdin().lock();
                while let Some(line) = read_line(&mut stdin).transpose() {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            })
            .map_err(Failure::fault)?;
        Ok(Self { lines, is_asked: io::stdin().is_terminal() })
    }

    /// Whether a person is asked for each.
    pub(super) const fn is_asked(&self) -> bool {
        self.is_asked
    }

    /// The next line that says anything; `None` at the end, or once the program is to end.
    pub(super) fn next(&mut self, interrupted: &AtomicBool) -> Result<Option<String>, Failure> {
        if self.is_asked {
            // A prompt that cannot be written is none.
            let _ = write!(io::stderr(), "> ").and_then(|()| io::stderr().flush());
        }
        loop {
            if interrupted.load(Ordering::Relaxed) {
                return Ok(None);
            }
            match self.lines.recv_timeout(LOOK_EVERY) {
                Ok(Ok(line)) if line.trim().is_empty() => {}
                Ok(Ok(line)) => return Ok(Some(line)),
                Ok(Err(why)) => return Err(Failure::Input(format!("standard input: cannot be read: {why}"))),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }
}

/// A line without its end; `None` at the end of the input.
fn read_line(input: &mut impl BufRead) -> io::Result<Option<String>> {
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut line = Vec::new();
    input.take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() as u64 > MAX_LINE_BYTES {
        return Err(wrong("a line longer than 16 MiB"));
    }
    let line = String::from_utf8(line).map_err(|_| wrong("not UTF-8 text"))?;
    Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_where_they_should() {
        let mut input = &b"a b\r\n\n\xc3\xa4"[..];
        let lines: Vec<_> = std::iter::from_fn(|| read_line(&mut input).unwrap()).collect();
        assert_eq!(lines, ["a b", "", "ä"]);
        assert!(read_line(&mut &b"\xff\n"[..]).is_err());
    }
}
