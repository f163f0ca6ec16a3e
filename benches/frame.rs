//! Drawing one whole frame of every view at 200×50 cells into a buffer, from the state of a real run.
//!
//! A frame has a budget of 4 ms: at 30 frames a second that leaves the rest of a core to the engine. Beside criterion's
//! statistics one line per view says how it stands; a median over the budget fails the benchmark.

use std::hint::black_box;
use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use kvista::app::{App, Cursor as TokenCursor, Launch, Msg, Recorded, View};
use kvista::engine::{Engine, Prompt};
use kvista::event::{Settings, StepId};
use kvista::model::demo;
use kvista::state::State;
use kvista::trace::{Recording, Writer};
use kvista::ui::draw;
use kvista::ui::theme::{Depth, Styles, Symbols, Theme};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

const AREA: Rect = Rect::new(0, 0, 200, 50);
const BUDGET: Duration = Duration::from_millis(4);
/// Frames per view for the verdict.
const FRAMES: usize = 200;
const DECODE_STEPS: u32 = 40;
/// Steps between keyframes.
const KEYFRAME_EVERY: StepId = 16;

/// The demo, with a budget that evicts and a read set that pulls, recorded in memory.
fn recorded() -> Recording {
    let model = Arc::new(demo::load().expect("the embedded model"));
    let hidden = demo::passkey(0, demo::TOKENS, demo::DEPTH);
    let prompt = Prompt {
        text: hidden.context,
        question: hidden.question,
        expected: Some(hidden.key),
        ..Prompt::default()
    };
    let settings = Settings {
        policy: "h2o:budget=25%".into(),
        read: "kcache:n=16,l=1".into(),
        compress: "context".into(),
        max_tokens: DECODE_STEPS,
        ignore_eos: true,
        ..Settings::default()
    };
    let mut engine = Engine::new(model, &settings, &prompt).expect("the demo's settings");
    let mut state = State::new(Arc::clone(engine.info())).expect("a small model");
    let mut bytes = Cursor::new(Vec::new());
    let mut writer = Writer::new("memory", &mut bytes, engine.info()).expect("memory can be written");
    while let Some(step) = engine.step().expect("the engine runs") {
        state.fold(&step).expect("a step of this run");
        writer.step(&step).expect("memory can be written");
        if step.step % KEYFRAME_EVERY == KEYFRAME_EVERY - 1 {
            writer.keyframe(step.step, state.at_ns, &state.keyframe()).expect("memory can be written");
        }
    }
    writer.finish().expect("memory can be written");
    Recording::from_bytes("memory", bytes.into_inner()).expect("a finished recording")
}

/// The application at the newest step, with a token of the prompt selected.
fn app() -> App {
    let recording = recorded();
    let (_, last) = recording.bounds().expect("the run took steps");
    let store = Box::new(Recorded::new(recording));
    let mut app = App::replay("frame".into(), true, store, Launch::default()).expect("a sound recording");
    app.look_at(View::Overview, Some(last), TokenCursor { seq: 0, position: Some(200), layer: 1, head: 3 });
    app
}

/// Opens a view as the screen does: what a first drawing tells about the room there is decides what is listed.
fn open(app: &mut App, view: View, styles: &Styles) {
    app.look_at(view, None, app.cursor);
    let viewport = draw::render(&mut Buffer::empty(AREA), AREA, app, styles);
    app.update(Msg::Viewport(viewport));
}

/// Median and 99th percentile of [`FRAMES`] frames.
fn timed(buf: &mut Buffer, app: &App, styles: &Styles) -> (Duration, Duration) {
    let mut times: Vec<Duration> = (0..FRAMES)
        .map(|_| {
            let start = Instant::now();
            buf.reset();
            black_box(draw::render(buf, AREA, app, styles));
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    (times[FRAMES / 2], times[FRAMES * 99 / 100])
}

fn frames(criterion: &mut Criterion) {
    let mut app = app();
    let styles = Theme::built_in("dark").expect("a built-in theme").styles(Depth::True, Symbols::Block);
    let mut buf = Buffer::empty(AREA);
    let mut group = criterion.benchmark_group("frame");
    let mut over = Vec::new();
    for view in View::ALL {
        open(&mut app, view, &styles);
        let (median, p99) = timed(&mut buf, &app, &styles);
        println!("{:<10} median {median:>10.1?}  p99 {p99:>10.1?}  of {BUDGET:?}", view.name());
        if median > BUDGET {
            over.push(view.name());
        }
        group.bench_function(view.name(), |bencher| {
            bencher.iter(|| {
                buf.reset();
                black_box(draw::render(&mut buf, AREA, &app, &styles))
            });
        });
    }
    group.finish();
    assert!(over.is_empty(), "a frame takes more than {BUDGET:?} in: {}", over.join(", "));
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = frames
}
criterion_main!(benches);
