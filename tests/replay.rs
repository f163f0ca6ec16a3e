//! Golden replays: the sample recordings in `traces/` fold to the state their runs ended in, and every view draws them
//! as it did when they were made (see `traces/README.md`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvista::app::{App, Cursor, Launch, Msg, Recorded, View};
use kvista::state::State;
use kvista::trace::Recording;
use kvista::ui;
use kvista::ui::theme::{Depth, Symbols, Theme};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

/// File, last step, state hash of the run that wrote it, whether its answer was right.
const SAMPLES: [(&str, u64, &str, bool); 3] = [
    ("passkey-full", 33, "46d3746645d308ef85630120ef69b84a872838dce7904abc0c4cce6458f1890f", true),
    ("passkey-h2o-25", 33, "1383364488fbf86dcc190e71e9b5fdcec0df879ee2d3995fe4843dcbcdd925df", false),
    ("passkey-kcache-16", 33, "22350a31de97bb464d79725f1e9512e30e7f76b21fcc7f252a739309464b4305", true),
];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("traces").join(name).with_extension("mcap")
}

#[test]
fn every_sample_folds_to_the_state_its_run_ended_in() {
    for (name, last, hash, right) in SAMPLES {
        let recording = Recording::open(&path(name)).unwrap();
        assert!(recording.complete(), "{name}");
        assert!(recording.bytes() < 1_000_000, "{name}: {} bytes", recording.bytes());
        let mut state = State::new(Arc::new(recording.run().clone())).unwrap();
        for step in recording.read(0..u64::MAX) {
            state.fold(&step.unwrap()).unwrap();
        }
        assert_eq!(state.step, Some(last), "{name}");
        assert_eq!(state.hash.to_string(), hash, "{name}");
        let expected = recording.run().expected.clone().unwrap();
        assert_eq!(state.seqs[0].answer(&expected), Some(right), "{name}");
    }
}

#[test]
fn a_seek_gives_the_state_that_folding_from_the_start_gives() {
    for (name, last, ..) in SAMPLES {
        let recording = Recording::open(&path(name)).unwrap();
        let run = Arc::new(recording.run().clone());
        let mut folded = State::new(Arc::clone(&run)).unwrap();
        for step in recording.read(0..last + 1) {
            let step = step.unwrap();
            folded.fold(&step).unwrap();
            let Some((at, bytes)) = recording.keyframe_at_or_before(step.step).unwrap() else { continue };
            let mut sought = State::from_keyframe(Arc::clone(&run), &bytes).unwrap();
            for step in recording.read(at + 1..step.step + 1) {
                sought.fold(&step.unwrap()).unwrap();
            }
            assert!(sought == folded, "{name}, step {}", step.step);
        }
    }
}

#[test]
fn every_view_of_every_sample_is_drawn_as_it_was() {
    for (name, last, ..) in SAMPLES {
        let recording = Recording::open(&path(name)).unwrap();
        let mut app =
            App::replay(format!("{name}.mcap"), true, Box::new(Recorded::new(recording)), Launch::default())
                .unwrap();
        for view in View::ALL {
            for (width, height) in [(80, 24), (120, 40)] {
                let cursor = Cursor { seq: 0, position: Some(186), layer: 1, head: 0 };
                app.look_at(view, Some(last), cursor);
                insta::assert_snapshot!(
                    format!("{name}_{}_{width}x{height}", view.name()),
                    frame(&mut app, width, height)
                );
            }
        }
    }
}

/// One frame without colour: glyphs and letters carry everything.
fn frame(app: &mut App, width: u16, height: u16) -> String {
    let styles = Theme::built_in("mono").expect("it is built in").styles(Depth::None, Symbols::Block);
    let area = Rect::new(0, 0, width, height);
    let mut buf = Buffer::empty(area);
    let viewport = ui::draw::render(&mut buf, area, app, &styles);
    app.update(Msg::Viewport(viewport));
    app.update(Msg::Tick { now_ns: 1 });
    buf.reset();
    ui::draw::render(&mut buf, area, app, &styles);
    ui::export::text(&buf)
}
