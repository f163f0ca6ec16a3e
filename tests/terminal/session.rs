//! The program in a pseudo-terminal, and what a person in front of it would see.

use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::program;

/// How long anything may take; only a failing test ever waits this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// One program at a time: several at once would starve each other on a small machine.
static TURN: Mutex<()> = Mutex::new(());

/// How a program is started.
pub(crate) struct Start {
    args: Vec<String>,
    size: (u16, u16),
    variables: Vec<(String, String)>,
    background: Option<&'static str>,
    shell: bool,
    folder: Option<PathBuf>,
}

impl Start {
    pub(crate) fn new<S: Into<String>>(args: impl IntoIterator<Item = S>) -> Self {
        Self {
            args: args.into_iter().map(Into::into).collect(),
            size: (120, 40),
            variables: Vec::new(),
            background: Some("0000/0000/0000"),
            shell: false,
            folder: None,
        }
    }

    pub(crate) fn size(mut self, columns: u16, rows: u16) -> Self {
        self.size = (columns, rows);
        self
    }

    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What the terminal answers when asked for its background; `None`: nothing at all.
    pub(crate) fn background(mut self, rgb: Option<&'static str>) -> Self {
        self.background = rgb;
        self
    }

    /// Under a shell, as job of which it can be suspended; directly in a terminal it would be the session's leader.
    pub(crate) fn under_a_shell(mut self) -> Self {
        self.shell = true;
        self
    }

    /// Where the program runs.
    pub(crate) fn folder(mut self, folder: &std::path::Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    pub(crate) fn go(self) -> Session {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (columns, rows) = self.size;
        let pty = native_pty_system().openpty(pty_size(columns, rows)).unwrap();
        let mut command = if self.shell {
            // What follows the program keeps the shell from replacing itself by it.
            let mut shell = CommandBuilder::new("sh");
            shell.args(["-c", "\"$0\" \"$@\"; exit $?", program::path()]);
            shell
        } else {
            CommandBuilder::new(program::path())
        };
        command.args(&self.args);
        for name in program::DROPPED_VARIABLES {
            command.env_remove(name);
        }
        command.env("TERM", "xterm-256color");
        command.env("XDG_CONFIG_HOME", "/nonexistent");
        // A fault on purpose shall not print pages.
        command.env("RUST_BACKTRACE", "0");
        for (name, value) in &self.variables {
            command.env(name, value);
        }
        if let Some(folder) = &self.folder {
            command.cwd(folder);
        }
        let child = pty.slave.spawn_command(command).unwrap();
        drop(pty.slave);
        let seen = Arc::new(Seen {
            told: Mutex::new(Told { parser: parser(columns, rows), bytes: Vec::new(), ended: false }),
            news: Condvar::new(),
            enough: AtomicBool::new(false),
        });
        let keys: Keys = Arc::new(Mutex::new(pty.master.take_writer().unwrap()));
        let reader = read(
            pty.master.try_clone_reader().unwrap(),
            Arc::clone(&seen),
            Arc::clone(&keys),
            self.background,
        );
        Session {
            seen,
            keys: Some(keys),
            master: Some(pty.master),
            child,
            reader: Some(reader),
            shell: self.shell,
            _turn: turn,
        }
    }
}

type Keys = Arc<Mutex<Box<dyn Write + Send>>>;

fn pty_size(columns: u16, rows: u16) -> PtySize {
    PtySize { rows, cols: columns, pixel_width: 0, pixel_height: 0 }
}

fn cells(n: u16) -> NonZeroU16 {
    NonZeroU16::new(n).unwrap()
}

fn parser(columns: u16, rows: u16) -> vt100::Parser {
    vt100::Parser::new(cells(rows), cells(columns), 0)
}

struct Told {
    parser: vt100::Parser,
    bytes: Vec<u8>,
    ended: bool,
}

struct Seen {
    told: Mutex<Told>,
    news: Condvar,
    /// The reader is to leave with the next bytes.
    enough: AtomicBool,
}

impl Seen {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads for ever, and answers as a terminal does when it is asked something.
fn read(
    mut output: Box<dyn Read + Send>,
    seen: Arc<Seen>,
    keys: Keys,
    background: Option<&'static str>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut bytes = [0; 16 * 1024];
        let mut asked = Asked::default();
        while !seen.enough.load(Ordering::SeqCst) {
            let Ok(count @ 1..) = output.read(&mut bytes) else { break };
            let mut told = seen.told();
            told.parser.process(&bytes[..count]);
            told.bytes.extend_from_slice(&bytes[..count]);
            let answer = background.map(|rgb| asked.answer(&told.bytes, rgb)).unwrap_or_default();
            seen.news.notify_all();
            drop(told);
            if !answer.is_empty() {
                let mut keys = keys.lock().unwrap();
                keys.write_all(answer.as_bytes()).and_then(|()| keys.flush()).unwrap();
            }
        }
        seen.told().ended = true;
        seen.news.notify_all();
    })
}

/// Questions answered so far.
#[derive(Default)]
struct Asked {
    upto: usize,
}

impl Asked {
    /// Answers what is new, in the order asked.
    fn answer(&mut self, bytes: &[u8], rgb: &str) -> String {
        let text = String::from_utf8_lossy(&bytes[self.upto..]).into_owned();
        let mut questions: Vec<(usize, usize, String)> = Vec::new();
        for (question, answer) in [
            ("\u{1b}]10;?", "\u{1b}]10;rgb:8080/8080/8080\u{1b}\\".to_owned()),
            ("\u{1b}]11;?", format!("\u{1b}]11;rgb:{rgb}\u{1b}\\")),
            ("\u{1b}[c", "\u{1b}[?62;22c".to_owned()),
        ] {
            questions.extend(text.match_indices(question).map(|(at, q)| (at, at + q.len(), answer.clone())));
        }
        questions.sort();
        if let Some((_, end, _)) = questions.last() {
            // Questions come before the first picture, so that lossy text has the same offsets.
            self.upto += end;
        }
        questions.into_iter().map(|(_, _, answer)| answer).collect()
    }
}

/// A running program and its terminal.
pub(crate) struct Session {
    seen: Arc<Seen>,
    keys: Option<Keys>,
    master: Option<Box<dyn MasterPty + Send>>,
    child: Box<dyn Child + Send + Sync>,
    reader: Option<JoinHandle<()>>,
    shell: bool,
    _turn: MutexGuard<'static, ()>,
}

impl Session {
    /// Types keys.
    pub(crate) fn keys(&self, keys: &str) {
        let mut to = self.keys.as_ref().unwrap().lock().unwrap();
        to.write_all(keys.as_bytes()).and_then(|()| to.flush()).unwrap();
    }

    /// Waits until the screen is as wanted; fails with what it shows, or when the program ends first.
    #[track_caller]
    pub(crate) fn until(&self, wanted: &str, holds: impl Fn(&vt100::Screen) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut told = self.seen.told();
        while !holds(told.parser.screen()) {
            let now = Instant::now();
            assert!(
                now < deadline && !told.ended,
                "never saw {wanted}; the screen:\n{}",
                told.parser.screen().contents()
            );
            told =
                self.seen.news.wait_timeout(told, deadline - now).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until a text is on the screen.
    #[track_caller]
    pub(crate) fn shows(&self, text: &str) {
        self.until(text, |screen| screen.contents().contains(text));
    }

    /// Waits until a text is no longer on the screen.
    #[track_caller]
    pub(crate) fn hides(&self, text: &str) {
        self.until(&format!("{text} gone"), |screen| !screen.contents().contains(text));
    }

    /// What is on the screen.
    pub(crate) fn contents(&self) -> String {
        self.seen.told().parser.screen().contents()
    }

    /// Everything written so far.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.seen.told().bytes.clone()
    }

    /// The screen is in the program's hands.
    #[track_caller]
    pub(crate) fn is_taken(&self) {
        self.until("the terminal taken", |s| {
            s.alternate_screen()
                && s.hide_cursor()
                && s.bracketed_paste()
                && s.mouse_protocol_mode() != vt100::MouseProtocolMode::None
        });
    }

    /// The terminal is as it was found.
    #[track_caller]
    pub(crate) fn is_given_back(&self) {
        let told = self.seen.told();
        let screen = told.parser.screen();
        let left = [
            ("alternate screen", screen.alternate_screen()),
            ("hidden cursor", screen.hide_cursor()),
            ("bracketed paste", screen.bracketed_paste()),
            ("mouse", screen.mouse_protocol_mode() != vt100::MouseProtocolMode::None),
        ];
        let left: Vec<&str> = left.into_iter().filter(|(_, on)| *on).map(|(what, _)| what).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }

    /// The window gets another size. What was on it goes, as in a terminal that does not reflow.
    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        let mut told = self.seen.told();
        told.parser.screen_mut().set_size(cells(rows), cells(columns));
        told.parser.process(b"\x1b[2J");
        self.master.as_ref().unwrap().resize(pty_size(columns, rows)).unwrap();
    }

    /// Waits for the end: the exit code.
    #[track_caller]
    pub(crate) fn exit_code(&mut self) -> u32 {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the program does not end; the screen:\n{}", self.contents());
            std::thread::sleep(Duration::from_millis(20));
        };
        if self.master.is_some() {
            // The last bytes may still be under way.
            let told = self.seen.told();
            drop(self.seen.news.wait_timeout_while(told, PATIENCE, |told| !told.ended));
        }
        status.exit_code()
    }

    fn child_pid(&self) -> Pid {
        Pid::from_raw(self.child.process_id().unwrap() as i32).unwrap()
    }

    /// The program's process: the child, or the child of the shell.
    pub(crate) fn pid(&self) -> Pid {
        let child = self.child_pid().as_raw_nonzero();
        if !self.shell {
            return self.child_pid();
        }
        let children = std::fs::read_to_string(format!("/proc/{child}/task/{child}/children")).unwrap();
        Pid::from_raw(children.split_whitespace().next().expect("a child").parse().unwrap()).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// What `fg` does.
    pub(crate) fn resume(&self) {
        kill_process_group(self.child_pid(), Signal::CONT).unwrap();
    }

    /// Waits until the program is stopped.
    #[track_caller]
    pub(crate) fn is_stopped(&self) {
        let pid = self.pid().as_raw_nonzero();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let state = stat.rsplit_once(')').unwrap().1.trim_start().chars().next();
            if state == Some('T') {
                return;
            }
            assert!(Instant::now() < deadline, "never stopped: {stat}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The window is closed: every handle on the terminal goes. A key makes the program write, which wakes the reader.
    pub(crate) fn close_window(&mut self) {
        self.seen.enough.store(true, Ordering::SeqCst);
        self.keys("?");
        self.reader.take().unwrap().join().unwrap();
        self.keys = None;
        self.master = None;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Mostly it has ended; after a failed test it must, also where a stopped program waits behind a shell.
        if let Ok(None) = self.child.try_wait() {
            let _ = kill_process_group(self.child_pid(), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}
