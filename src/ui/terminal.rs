//! The terminal: entered once, given back whatever happens.
//!
//! Raw mode, the alternate screen, mouse capture, bracketed paste, focus events and synchronised output are global state
//! of a terminal that outlives the program. [`restore`] undoes all of it, is safe to call twice and from anywhere, and
//! is what every way out goes through: the guard's drop, the panic hook, a signal, suspension.

use std::io::{self, BufWriter, Stdout, Write};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crossterm::clipboard::CopyToClipboard;
use crossterm::event::{
    DisableBracketedPaste, DisableFocusChange, DisableMouseCapture, EnableBracketedPaste, EnableFocusChange,
    EnableMouseCapture,
};
use crossterm::terminal::{
    BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
    disable_raw_mode, enable_raw_mode,
};
use crossterm::{cursor, execute, queue};
use ratatui::backend::CrosstermBackend;
use ratatui::layout::{Position, Rect};
use ratatui::{Frame, Terminal};
use rustix::process::{Signal, getpid, getsid, kill_current_process_group};

/// Whether the terminal is in our hands.
static IS_ENTERED: AtomicBool = AtomicBool::new(false);
/// The last words of a thread that is not the one drawing.
static WORKER_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// A full frame of a large screen in true colour; smaller buffers would tear it over several writes.
const BUFFER_BYTES: usize = 512 * 1024;
/// After a stop, a shell may take a moment to make us the foreground group again.
const CLAIM_ATTEMPTS: u32 = 10;

/// How to enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether to capture the mouse. Captured, it selects text only with Shift held.
    pub mouse: bool,
    /// Whether to send colours. Decided by [`Depth::detect`](super::theme::Depth::detect), not by the backend: it
    /// would drop colours for `NO_COLOR` even when a person asked for them on the command line.
    pub colors: bool,
}

/// Gives the terminal back as it was found. Does nothing the second time.
pub fn restore() {
    if IS_ENTERED.swap(false, Ordering::SeqCst) {
        // Whoever ends up here may be about to die: what fails, fails.
        let _ = leave(&mut io::stdout());
        let _ = disable_raw_mode();
    }
}

fn leave(out: &mut impl Write) -> io::Result<()> {
    execute!(
        out,
        EndSynchronizedUpdate,
        DisableMouseCapture,
        DisableBracketedPaste,
        DisableFocusChange,
        LeaveAlternateScreen,
        cursor::Show
    )
}

fn enter(out: &mut impl Write, mouse: bool) -> io::Result<()> {
    queue!(out, EnterAlternateScreen, EnableBracketedPaste, EnableFocusChange, cursor::Hide)?;
    if mouse {
        queue!(out, EnableMouseCapture)?;
    }
    out.flush()
}

/// Standard output while the terminal is ours, nothing otherwise: half a frame that is still in a buffer when a panic
/// gives the terminal back must not follow.
struct Screen(Stdout);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if IS_ENTERED.load(Ordering::SeqCst) { self.0.write(bytes) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The terminal while it is ours.
pub struct TerminalGuard {
    terminal: Terminal<CrosstermBackend<BufWriter<Screen>>>,
    options: Options,
}

impl TerminalGuard {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// When standard output is not a terminal or cannot be written to; the terminal is then as it was.
    pub fn enter(options: Options) -> io::Result<Self> {
        crossterm::style::force_color_output(options.colors);
        let out = BufWriter::with_capacity(BUFFER_BYTES, Screen(io::stdout()));
        let mut guard = Self { terminal: Terminal::new(CrosstermBackend::new(out))?, options };
        guard.resume()?;
        Ok(guard)
    }

    /// Draws a frame, inside a synchronised update so that it appears at once.
    ///
    /// # Errors
    /// When the terminal cannot be written to.
    pub fn draw(&mut self, render: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        queue!(self.terminal.backend_mut(), BeginSynchronizedUpdate)?;
        let drawn = self.terminal.draw(render).map(|_| ());
        // Also after an error: a terminal left waiting for the end of an update shows nothing.
        execute!(self.terminal.backend_mut(), EndSynchronizedUpdate)?;
        drawn
    }

    /// Forgets what is on the screen, so that the next frame is drawn whole.
    ///
    /// # Errors
    /// When the terminal cannot be written to.
    pub fn clear(&mut self) -> io::Result<()> {
        // Not `Terminal::clear`: it asks the terminal where the cursor is, and waits for an answer that the reader of
        // events may have taken.
        let size = self.terminal.size()?;
        self.terminal.resize(Rect::from((Position::ORIGIN, size)))
    }

    /// Captures the mouse or lets it go.
    ///
    /// # Errors
    /// When the terminal cannot be written to.
    pub fn set_mouse(&mut self, mouse: bool) -> io::Result<()> {
        self.options.mouse = mouse;
        let out = self.terminal.backend_mut();
        if mouse { execute!(out, EnableMouseCapture) } else { execute!(out, DisableMouseCapture) }
    }

    /// Whether the mouse is captured.
    pub const fn has_mouse(&self) -> bool {
        self.options.mouse
    }

    /// Puts text on the clipboard of the machine the terminal runs on (OSC 52), if it allows that.
    ///
    /// # Errors
    /// When the terminal cannot be written to.
    pub fn copy(&mut self, text: &str) -> io::Result<()> {
        execute!(self.terminal.backend_mut(), CopyToClipboard::to_clipboard_from(text))
    }

    /// Stops the program as Ctrl-Z does elsewhere, and comes back when it is continued. In raw mode Ctrl-Z is a key like
    /// any other, so this is what it must be bound to; a SIGTSTP from outside must come here too.
    ///
    /// The whole process group stops, or a parent such as `just` would wait for us forever. A session leader has nobody
    /// to continue it and does not stop.
    ///
    /// # Errors
    /// When the terminal cannot be taken over again.
    pub fn suspend(&mut self) -> io::Result<()> {
        if getsid(None).is_ok_and(|leader| leader == getpid()) {
            return Ok(());
        }
        restore();
        kill_current_process_group(Signal::STOP)?;
        self.resume()
    }

    /// Takes the terminal over again, after [`restore`].
    ///
    /// # Errors
    /// When the terminal does not let itself be taken.
    pub fn resume(&mut self) -> io::Result<()> {
        let mut attempt = 1;
        while let Err(error) = enable_raw_mode() {
            if attempt == CLAIM_ATTEMPTS {
                return Err(error);
            }
            thread::sleep(Duration::from_millis(20 * u64::from(attempt)));
            attempt += 1;
        }
        IS_ENTERED.store(true, Ordering::SeqCst);
        enter(self.terminal.backend_mut(), self.options.mouse)
            .and_then(|()| self.clear())
            .inspect_err(|_| restore())
    }
}

impl Drop for TerminalGuard {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes panics leave a usable terminal, and tell themselves in one line. Must be called on the thread that draws.
///
/// A panic there restores the terminal and then says on one line of standard error what happened and where. A panic
/// elsewhere must not write over the screen: it is kept for [`take_worker_panic`] while the terminal is ours, and told
/// like any other when it is not.
pub fn install_panic_hook() {
    let ui = thread::current().id();
    std::panic::set_hook(Box::new(move |info| {
        if crate::model::tokenizer::catches_panics() {
            return;
        }
        let report = report(info);
        if thread::current().id() == ui {
            restore();
            // A panic within the hook would end the program with the recording unfinished.
            let _ = writeln!(io::stderr(), "{report}");
            return;
        }
        if !IS_ENTERED.load(Ordering::SeqCst) {
            let _ = writeln!(io::stderr(), "{report}");
        }
        // The first panic is the cause; later ones are often its echo.
        WORKER_PANIC.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(report);
    }));
}

/// What a thread other than the drawing one died of, once.
pub fn take_worker_panic() -> Option<String> {
    WORKER_PANIC.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn report(info: &PanicHookInfo<'_>) -> String {
    let thread = thread::current().name().unwrap_or("unnamed").to_owned();
    let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let payload = info.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let message = super::text::safe(message.as_bytes(), super::theme::Symbols::Ascii);
    format!("kvista: internal fault in thread '{thread}' at {place}: {message}")
}

/// Lets at most so many frames through in a second. Time comes from outside: `now` is since any fixed moment.
#[derive(Clone, Copy, Debug)]
pub struct FrameGate {
    interval: Duration,
    next: Duration,
}

impl FrameGate {
    /// A gate for `fps` frames a second, at least one.
    pub fn new(fps: u32) -> Self {
        Self { interval: Duration::from_secs(1) / fps.max(1), next: Duration::ZERO }
    }

    /// Whether a frame may be drawn now; if so, it counts as drawn.
    pub fn pass(&mut self, now: Duration) -> bool {
        let may = self.wait(now).is_zero();
        if may {
            self.next = now + self.interval;
        }
        may
    }

    /// How long until a frame may be drawn.
    pub const fn wait(&self, now: Duration) -> Duration {
        self.next.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(bytes: &[u8]) -> vt100::Parser {
        let size = |n| std::num::NonZeroU16::new(n).unwrap();
        let mut parser = vt100::Parser::new(size(24), size(80), 0);
        parser.process(bytes);
        parser
    }

    #[test]
    fn leaving_undoes_everything_that_entering_did() {
        let mut bytes = Vec::new();
        enter(&mut bytes, true).unwrap();
        let parser = screen(&bytes);
        assert!(parser.screen().alternate_screen());
        assert!(parser.screen().hide_cursor());
        assert!(parser.screen().bracketed_paste());
        assert_ne!(parser.screen().mouse_protocol_mode(), vt100::MouseProtocolMode::None);

        leave(&mut bytes).unwrap();
        let parser = screen(&bytes);
        assert!(!parser.screen().alternate_screen());
        assert!(!parser.screen().hide_cursor());
        assert!(!parser.screen().bracketed_paste());
        assert_eq!(parser.screen().mouse_protocol_mode(), vt100::MouseProtocolMode::None);
        let text = String::from_utf8(bytes).unwrap();
        for mode in ["?1004l", "?2026l"] {
            assert!(text.contains(mode), "{mode} is missing");
        }
    }

    #[test]
    fn the_mouse_is_only_taken_when_asked_for() {
        let mut bytes = Vec::new();
        enter(&mut bytes, false).unwrap();
        assert_eq!(screen(&bytes).screen().mouse_protocol_mode(), vt100::MouseProtocolMode::None);
    }

    /// Set in a child of the tests below: what it shall do with its terminal.
    const CHILD: &str = "KVISTA_TEST_TERMINAL";

    /// Does nothing on its own: the body of the children.
    #[test]
    fn child() {
        let Ok(act) = std::env::var(CHILD) else { return };
        install_panic_hook();
        let mut guard = TerminalGuard::enter(Options { mouse: true, colors: true }).unwrap();
        guard.draw(|frame| frame.render_widget("drawn", frame.area())).unwrap();
        // A key says that the parent has seen this much.
        io::Read::read_exact(&mut io::stdin(), &mut [0]).unwrap();
        match act.as_str() {
            "panic" => guard.draw(|_| panic!("the reason")).unwrap(),
            "worker panic" => {
                thread::spawn(|| panic!("a worker's reason")).join().unwrap_err();
                let report = take_worker_panic().unwrap();
                assert!(report.contains("a worker's reason"), "{report}");
                assert_eq!(take_worker_panic(), None);
                guard.draw(|frame| frame.render_widget("told", frame.area())).unwrap();
                // The parent reads what was drawn; leaving would take it away.
                std::process::exit(0);
            }
            "suspend" => {
                guard.suspend().unwrap();
                guard.draw(|frame| frame.render_widget("back", frame.area())).unwrap();
                std::process::exit(0);
            }
            _ => drop(guard),
        }
    }

    /// A child on a terminal of its own, below a shell that is the session's leader.
    struct Session {
        screen: vt100::Parser,
        bytes: Vec<u8>,
        output: Box<dyn io::Read + Send>,
        keys: Box<dyn Write + Send>,
        shell: Box<dyn portable_pty::Child + Send + Sync>,
        _master: Box<dyn portable_pty::MasterPty + Send>,
    }

    impl Session {
        fn start(act: &str) -> Self {
            let size = portable_pty::PtySize { rows: 24, cols: 80, pixel_width: 0, pixel_height: 0 };
            let pty = portable_pty::native_pty_system().openpty(size).unwrap();
            let mut command = portable_pty::CommandBuilder::new("sh");
            // The trailing command keeps the shell from replacing itself by the child.
            command
                .args(["-c", "\"$0\" --exact ui::terminal::tests::child --nocapture --test-threads 1; exit"]);
            command.arg(std::env::current_exe().unwrap());
            command.env(CHILD, act);
            let shell = pty.slave.spawn_command(command).unwrap();
            let output = pty.master.try_clone_reader().unwrap();
            let keys = pty.master.take_writer().unwrap();
            let mut session =
                Self { screen: screen(&[]), bytes: Vec::new(), output, keys, shell, _master: pty.master };
            session.read_until(Self::shows("drawn"));
            assert!(!is_given_back(session.screen.screen()));
            session.keys.write_all(b" ").unwrap();
            session
        }

        /// Reads until a condition holds; the end of the output is the only other way out.
        fn read_until(&mut self, holds: impl Fn(&vt100::Screen) -> bool) {
            let mut bytes = [0; 4096];
            while !holds(self.screen.screen()) {
                match self.output.read(&mut bytes) {
                    Ok(n) if n > 0 => {
                        self.screen.process(&bytes[..n]);
                        self.bytes.extend_from_slice(&bytes[..n]);
                    }
                    _ => panic!("the output ended with:\n{}", self.screen.screen().contents()),
                }
            }
        }

        fn shows(text: &'static str) -> impl Fn(&vt100::Screen) -> bool {
            move |screen| screen.contents().contains(text)
        }
    }

    impl Drop for Session {
        fn drop(&mut self) {
            let _ = self.shell.kill();
            let _ = self.shell.wait();
        }
    }

    fn is_given_back(screen: &vt100::Screen) -> bool {
        !screen.alternate_screen()
            && !screen.hide_cursor()
            && !screen.bracketed_paste()
            && screen.mouse_protocol_mode() == vt100::MouseProtocolMode::None
    }

    #[test]
    fn a_panic_gives_the_terminal_back_and_says_why_and_where() {
        let mut session = Session::start("panic");
        session.read_until(Session::shows("the reason"));
        assert!(is_given_back(session.screen.screen()));
        let text = session.screen.screen().contents();
        assert!(text.contains("kvista: internal fault") && text.contains("src/ui/terminal.rs:"), "{text}");

        // Until the end: the frame that the panic interrupted must not come after the terminal was given back.
        session.read_until(Session::shows("test result"));
        let bytes = String::from_utf8_lossy(&session.bytes);
        let (_, after) = bytes.split_once("\x1b[?1049l").unwrap();
        assert!(!after.contains("\x1b[?2026h"), "{after:?}");
    }

    #[test]
    fn a_worker_panic_leaves_the_screen_alone() {
        let mut session = Session::start("worker panic");
        session.read_until(Session::shows("told"));
        assert!(!is_given_back(session.screen.screen()));
        assert!(!session.screen.screen().contents().contains("reason"));
    }

    #[test]
    fn leaving_gives_the_terminal_back() {
        let mut session = Session::start("leave");
        session.read_until(is_given_back);
    }

    #[test]
    fn suspending_gives_the_terminal_back_until_continued() {
        let mut session = Session::start("suspend");
        let group =
            session.shell.process_id().and_then(|id| rustix::process::Pid::from_raw(id as i32)).unwrap();
        // Continuing what runs does nothing: wait until the group has stopped.
        let stopped = rustix::process::WaitOptions::UNTRACED;
        let status = rustix::process::waitpid(Some(group), stopped).unwrap().unwrap().1;
        assert!(status.stopped());
        rustix::process::kill_process_group(group, Signal::CONT).unwrap();
        session.read_until(Session::shows("back"));
        assert!(!is_given_back(session.screen.screen()));
        let bytes = String::from_utf8_lossy(&session.bytes);
        let (_, after) = bytes.split_once("\x1b[?1049l").unwrap();
        assert!(after.contains("\x1b[?1049h"), "{after:?}");
    }

    #[test]
    fn the_gate_lets_thirty_frames_through_in_a_second() {
        let mut gate = FrameGate::new(30);
        let frames = (0..1000).filter(|&ms| gate.pass(Duration::from_millis(ms))).count();
        assert!((29..=30).contains(&frames), "{frames}");
        let mut gate = FrameGate::new(10);
        assert!(gate.pass(Duration::from_secs(5)));
        assert!(!gate.pass(Duration::from_millis(5_099)));
        assert_eq!(gate.wait(Duration::from_millis(5_040)), Duration::from_millis(60));
        assert!(gate.pass(Duration::from_millis(5_100)));
    }
}
