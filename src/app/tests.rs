//! Typing keys at a whole application with an engine that is scripted.

use std::sync::Arc;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::samples::{self, MemoryStore};
use super::*;
use crate::engine::{Command as Ask, Item};
use crate::event::{Finish, Step};

/// Types keys, `<Left>` for a named one, a bare word for its characters one by one; returns all effects.
fn press(app: &mut App, keys: &str) -> Vec<Effect> {
    keys.split_whitespace()
        .map(|word| word.strip_prefix('<').and_then(|w| w.strip_suffix('>')).unwrap_or(word))
        .flat_map(|key| {
            let key: Key = key.parse().unwrap();
            app.update(Msg::Key(KeyEvent::new(key.code, key.mods)))
        })
        .collect()
}

fn type_in(app: &mut App, text: &str) {
    for c in text.chars() {
        app.update(Msg::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE)));
    }
}

fn hear(app: &mut App, item: Item) {
    app.update(Msg::Item(item));
    app.update(Msg::Tick { now_ns: app.now_ns + 1 });
}

fn hear_steps(app: &mut App, steps: &[Arc<Step>]) {
    for step in steps {
        app.update(Msg::Item(Item::Step(Arc::clone(step))));
    }
    app.update(Msg::Tick { now_ns: app.now_ns + 1 });
}

/// A live application that has heard `heard` of `count` steps, paused.
fn live(heard: usize, count: usize) -> (App, Vec<Arc<Step>>) {
    let (run, steps) = samples::run(count);
    let launch = Launch {
        settings: run.settings.clone(),
        themes: vec!["dark".into(), "light".into()],
        theme: "dark".into(),
        ..Launch::default()
    };
    let mut app = App::live(launch);
    hear(&mut app, Item::Begin(run));
    hear_steps(&mut app, &steps[..heard]);
    hear(&mut app, Item::Status(Status::Paused));
    (app, steps)
}

fn replay(count: usize) -> App {
    let (run, steps) = samples::run(count);
    let store = MemoryStore::new(run, steps, 16);
    App::replay("x.mcap".into(), true, Box::new(store), Launch::default()).unwrap()
}

fn engine(effects: Vec<Effect>) -> Vec<Ask> {
    effects.into_iter().filter_map(|e| if let Effect::Engine(ask) = e { Some(ask) } else { None }).collect()
}

#[test]
fn space_runs_and_pauses_and_dot_takes_one_step() {
    let (mut app, _) = live(4, 40);
    assert_eq!(engine(press(&mut app, "Space")), [Ask::Play]);
    hear(&mut app, Item::Status(Status::Running));
    assert_eq!(engine(press(&mut app, "Space")), [Ask::Pause]);
    hear(&mut app, Item::Status(Status::Paused));
    assert_eq!(engine(press(&mut app, ".")), [Ask::StepOnce]);
    assert_eq!(engine(press(&mut app, "}")), [Ask::Pace(Some(16.0))]);
    assert_eq!(engine(press(&mut app, "<Backspace>")), [Ask::Pace(Some(8.0))]);
    hear(&mut app, Item::Status(Status::Finished(Finish::EndToken)));
    assert!(press(&mut app, "Space").is_empty());
    assert!(app.notice.as_deref().is_some_and(|n| n.contains("r runs it again")));
}

#[test]
fn stepping_back_leaves_the_live_edge_while_capture_goes_on() {
    let (mut app, steps) = live(10, 40);
    press(&mut app, ", ,");
    assert_eq!((app.step(), app.time.at), (Some(7), Some(7)));
    hear_steps(&mut app, &steps[10..20]);
    assert_eq!((app.step(), app.timeline.len()), (Some(7), 20));
    assert!(engine(press(&mut app, ".")).is_empty());
    assert_eq!(app.step(), Some(8));
    press(&mut app, "g l");
    assert_eq!((app.step(), app.time.at), (Some(19), None));
    press(&mut app, "g 5");
    assert_eq!(app.step(), Some(9));
    // Walking into the edge follows it again.
    press(&mut app, &". ".repeat(10));
    assert_eq!(app.time.at, None);
}

#[test]
fn a_frozen_picture_stands_still() {
    let (mut app, steps) = live(10, 40);
    press(&mut app, "Ctrl-f");
    let before = app.state.clone();
    hear_steps(&mut app, &steps[10..20]);
    assert_eq!(app.state, before);
    assert!(app.frozen);
    press(&mut app, "F");
    assert_eq!((app.step(), app.frozen), (Some(19), false));
}

#[test]
fn following_the_edge_never_copies_the_state() {
    let (mut app, steps) = live(10, 40);
    let before = Arc::as_ptr(app.newest().unwrap());
    hear_steps(&mut app, &steps[10..20]);
    assert_eq!(Arc::as_ptr(app.newest().unwrap()), before);
    assert_eq!(app.step(), Some(19));
}

#[test]
fn the_budget_is_lowered_live_and_a_rerun_takes_it_along() {
    let (mut app, _) = live(10, 40);
    let asked = engine(press(&mut app, "p j <Left> r"));
    let [Ask::Tune(name, value), Ask::Rerun(settings, _)] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!((name.as_str(), value.as_str()), ("budget", "23"));
    assert_eq!(settings.policy, "h2o:budget=23");
    assert_eq!(app.params.rows[1].origin, Origin::ByHand);
    assert!(app.by_hand().unwrap().contains("--policy h2o:budget=23"));
    press(&mut app, "<Esc> u");
    assert_eq!((app.pending.policy.as_str(), app.by_hand()), ("h2o:budget=24", None));
    press(&mut app, "U");
    assert_eq!(app.pending.policy, "h2o:budget=23");
}

#[test]
fn what_was_evicted_stays_lost_and_the_screen_says_so() {
    let (mut app, _) = live(20, 40);
    press(&mut app, "p j <Shift-Right>");
    let notice = app.notice.clone().unwrap();
    assert!(notice.contains("do not come back"), "{notice}");
}

#[test]
fn a_typed_value_is_taken_or_refused_in_place() {
    let (mut app, _) = live(10, 40);
    press(&mut app, "p j <Enter> Ctrl-u");
    type_in(&mut app, "none");
    press(&mut app, "<Enter>");
    assert!(app.params.error.as_deref().is_some_and(|e| e.contains("use slots")), "{:?}", app.params.error);
    press(&mut app, "Ctrl-u");
    type_in(&mut app, "50%");
    let asked = engine(press(&mut app, "<Enter>"));
    assert_eq!(asked, [Ask::Tune("budget".into(), "50%".into())]);
    assert!(app.params.edit.is_none());
    // Space: the value at the start, and back.
    press(&mut app, "Space");
    assert_eq!(app.pending.policy, "h2o:budget=24");
    press(&mut app, "Space");
    assert_eq!(app.pending.policy, "h2o:budget=50%");
}

#[test]
fn parameters_that_are_not_live_wait_for_the_rerun() {
    let (mut app, _) = live(10, 40);
    press(&mut app, "p");
    while app.params.rows[app.params.selected].name != "kv-dtype" {
        press(&mut app, "j");
    }
    assert!(engine(press(&mut app, "<Right>")).is_empty());
    assert_eq!(app.pending.kv_dtype, "f16");
    assert!(app.params.rows[app.params.selected].waiting);
    press(&mut app, "g");
    press(&mut app, "<Esc> <Esc>");
    assert!(app.overlays.is_empty());
}

#[test]
fn another_rule_brings_its_own_rows_and_keeps_the_budget() {
    let (mut app, _) = live(10, 40);
    press(&mut app, "p <Right>");
    assert_eq!(app.pending.policy, "tova:budget=24");
    assert!(app.params.rows.iter().any(|r| r.name == "budget" && !r.live));
    while app.params.rows[app.params.selected].name != "read" {
        press(&mut app, "j");
    }
    press(&mut app, "<Right>");
    assert!(app.pending.read.starts_with("kcache"));
    assert!(app.params.rows.iter().any(|r| r.name == "n" && r.indented));
}

fn select_param(app: &mut App, name: &str) {
    let to =
        app.params.rows.iter().position(|row| row.name == name).unwrap_or_else(|| panic!("no row {name}"));
    while app.params.selected != to {
        press(app, if app.params.selected < to { "j" } else { "k" });
    }
}

#[test]
fn wrappers_come_and_go_and_what_does_not_fit_is_refused_by_its_own_line() {
    let (mut app, _) = live(10, 40);
    press(&mut app, "p");
    for wrapper in crate::policy::registry::wrappers() {
        select_param(&mut app, wrapper.name);
        let row = app.params.selected;
        assert_eq!((app.params.rows[row].value.as_str(), app.params.rows[row].wraps), ("off", true));
        assert!(engine(press(&mut app, "<Right>")).is_empty());
        assert!(app.pending.policy.contains(&format!("+{}", wrapper.name)), "{}", app.pending.policy);
        assert_eq!((app.params.selected, app.params.rows[row].waiting), (row, true));
        for param in wrapper.params {
            assert!(app.params.rows.iter().any(|r| r.name == param.name && !r.live), "{}", param.name);
        }
    }
    let all = app.pending.policy.clone();
    let first = crate::policy::registry::wrappers().next().unwrap();
    select_param(&mut app, first.name);
    press(&mut app, "<Right>");
    assert!(!app.pending.policy.contains(first.name), "{}", app.pending.policy);
    press(&mut app, "u");
    assert_eq!(app.pending.policy, all);
    // Back to the plain rule, then to one that no wrapper goes with.
    for wrapper in crate::policy::registry::wrappers() {
        select_param(&mut app, wrapper.name);
        press(&mut app, "<Left>");
    }
    assert_eq!(app.pending.policy, "h2o:budget=24");
    app.pending.policy = "full".into();
    press(&mut app, "k j");
    app.update(Msg::Tick { now_ns: app.now_ns + 1 });
    select_param(&mut app, first.name);
    press(&mut app, "<Right>");
    let why = app.params.error.clone().unwrap();
    assert!(why.starts_with(&format!("full+{}: ", first.name)), "{why}");
    assert_eq!(app.pending.policy, "full");
}

#[test]
fn a_page_type_keeps_its_window() {
    let (mut app, _) = live(10, 40);
    app.pending.block_size = 16;
    press(&mut app, "p");
    select_param(&mut app, "kv-dtype");
    press(&mut app, "<Enter>");
    while !app.params.edit.as_ref().unwrap().text().is_empty() {
        press(&mut app, "<Backspace>");
    }
    type_in(&mut app, "int4:residual=64");
    press(&mut app, "<Enter>");
    assert_eq!((app.pending.kv_dtype.as_str(), app.pending.block_size), ("int4:residual=64", 32));
    press(&mut app, "<Right>");
    assert_eq!(app.pending.kv_dtype, "int2:residual=64");
    press(&mut app, "<Left>");
    assert_eq!(app.pending.kv_dtype, "int4:residual=64");
    press(&mut app, "<Left>");
    assert_eq!((app.pending.kv_dtype.as_str(), app.pending.block_size), ("int8", 16));
    press(&mut app, "<Enter>");
    type_in(&mut app, "9");
    press(&mut app, "<Enter>");
    assert!(app.params.error.as_ref().is_some_and(|why| why.starts_with("kv-dtype: use f32")));
}

#[test]
fn a_refused_value_is_taken_back() {
    let (mut app, _) = live(10, 40);
    press(&mut app, "p j <Left>");
    hear(&mut app, Item::Status(Status::Refused("no".into())));
    assert_eq!(app.pending.policy, "h2o:budget=24");
    assert_eq!(app.notice.as_deref(), Some("no"));
}

#[test]
fn a_turn_is_typed_said_and_said_again() {
    let (mut app, steps) = live(20, 20);
    hear(&mut app, Item::Status(Status::Finished(Finish::MaxTokens)));
    app.prompt.text = "Once".into();
    assert!(engine(press(&mut app, "I")).is_empty());
    press(&mut app, "<Enter>");
    assert!(matches!(app.overlay(), Some(Overlay::Turn { error: Some(why), .. }) if why.contains("empty")));
    type_in(&mut app, "go on");
    assert!(matches!(app.overlay(), Some(Overlay::Turn { error: None, sent: false, .. })));
    assert_eq!(engine(press(&mut app, "<Enter>")), [Ask::Say("go on".into())]);
    // Once is enough; the line stays until the engine has taken it.
    assert!(engine(press(&mut app, "<Enter>")).is_empty());
    hear(&mut app, Item::Status(Status::Unsaid("no such word".into())));
    assert!(
        matches!(app.overlay(), Some(Overlay::Turn { error: Some(why), sent: false, .. }) if why == "no such word")
    );
    assert!(matches!(app.status, Status::Finished(_)), "the run is as it was");
    type_in(&mut app, "!");
    assert_eq!(engine(press(&mut app, "<Enter>")), [Ask::Say("go on!".into())]);
    hear(&mut app, Item::Reference(Reference { ids: vec![1], text: "x".into() }));
    hear(&mut app, Item::Status(Status::Said { text: "go on!".into(), line: "turn 2: 3 tokens".into() }));
    assert!(app.overlay().is_none() && app.reference.is_none());
    assert_eq!(app.notice.as_deref(), Some("turn 2: 3 tokens"));
    // A run again says all of it, another prompt none.
    let said = |asked: Vec<Ask>| match &asked[..] {
        [Ask::Rerun(_, prompt)] => prompt.turns.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(said(engine(press(&mut app, "r"))), ["go on!"]);
    press(&mut app, "P");
    type_in(&mut app, "anew");
    assert!(said(engine(press(&mut app, "<Enter>"))).is_empty());
    drop(steps);

    // What is refused later, when nobody types any more, is told on the line for that.
    hear(&mut app, Item::Status(Status::Unsaid("too long".into())));
    assert_eq!(app.notice.as_deref(), Some("too long"));
    let mut app = replay(4);
    press(&mut app, "I");
    assert!(app.overlay().is_none() && app.notice.as_deref().is_some_and(|n| n.contains("recording")));
}

#[test]
fn a_conversation_without_a_first_turn_asks_for_it() {
    let settings = Settings { chat: true, ..Settings::default() };
    let mut app = App::live(Launch { settings, ..Launch::default() });
    hear(&mut app, Item::Status(Status::Listening));
    assert!(matches!(app.overlay(), Some(Overlay::Turn { .. })));
    app.update(Msg::Paste("Hi\nthere".into()));
    assert_eq!(engine(press(&mut app, "<Enter>")), [Ask::Say("Hi\nthere".into())]);
    hear(&mut app, Item::Status(Status::Said { text: "Hi\nthere".into(), line: "turn 1".into() }));
    assert_eq!((app.prompt.text.as_str(), app.prompt.turns.len()), ("Hi\nthere", 0));
    // What is pasted over a view is the next turn.
    app.update(Msg::Paste("More".into()));
    assert!(matches!(app.overlay(), Some(Overlay::Turn { line, .. }) if line.text() == "More"));
}

/// A parameter turned after the end is in force for the turn.
#[test]
fn what_was_tuned_in_silence_is_in_force_for_the_turn() {
    let (mut app, _) = live(20, 20);
    hear(&mut app, Item::Status(Status::Finished(Finish::MaxTokens)));
    assert!(engine(press(&mut app, "p j <Left> <Esc>")).is_empty());
    press(&mut app, "I");
    type_in(&mut app, "on");
    let asked = engine(press(&mut app, "<Enter>"));
    assert!(matches!(&asked[..], [Ask::Tune(name, _), Ask::Say(_)] if name == "budget"), "{asked:?}");
}

#[test]
fn runs_are_compared_token_by_token() {
    let (mut app, steps) = live(20, 20);
    assert_eq!(app.right, Some(true));
    let (run, _) = samples::run(1);
    hear(&mut app, Item::Reference(Reference { ids: vec![0, 1, 2, 9], text: " the key is 12".into() }));
    let full = app.divergences[0].clone();
    assert_eq!((full.with, full.at, full.theirs.as_str()), ("full cache", Some(3), " 12"));
    hear(&mut app, Item::Begin(run));
    assert_eq!((app.past.len(), app.right), (1, None));
    let mut other = steps[..6].to_vec();
    for step in &mut other[4..] {
        let seq = &mut Arc::make_mut(step).seqs[0];
        seq.sampled.as_mut().unwrap().id = 60;
        seq.sampled.as_mut().unwrap().piece = " lost".into();
    }
    hear_steps(&mut app, &other[..5]);
    let last = app.divergences.iter().find(|d| d.with == "last run").unwrap();
    assert_eq!((last.at, last.compared), (Some(3), 4));
    assert!(last.theirs.starts_with(" 4711"), "{}", last.theirs);
    assert_eq!(app.right, Some(false));
}

#[test]
fn the_victims_lead_the_cursor() {
    let (mut app, _) = live(20, 40);
    press(&mut app, "4");
    assert!(app.victims.rows.total() > 0);
    press(&mut app, "/");
    type_in(&mut app, "token~471");
    assert!(app.victims.rows.len() < app.victims.rows.total());
    assert!(app.victims.rows.rows_from(0).all(|r| r.token == " 4711"));
    type_in(&mut app, " scor<1");
    assert!(app.filter_error.is_some());
    press(&mut app, "<Enter>");
    assert!(matches!(app.overlay(), Some(Overlay::Filter { .. })));
    press(&mut app, "<Esc>");
    assert!(app.filter.is_empty() && app.filter_error.is_none());
    press(&mut app, "g g");
    let row = app.victims.rows.current().unwrap().clone();
    assert_eq!((app.cursor.position, app.cursor.layer), (Some(row.position), row.layer));
    press(&mut app, "o o o");
    assert_eq!(VICTIM_COLUMNS[app.sort.0], Field::Position);
    let positions: Vec<_> = app.victims.rows.rows_from(0).map(|r| r.position).collect();
    assert!(positions.is_sorted());
    press(&mut app, "O");
    assert_eq!(app.victims.rows.get(0).map(|r| r.position), positions.last().copied());
    // The selection stayed on its row.
    assert_eq!(app.victims.rows.current().map(VictimRow::key), Some(row.key()));
    press(&mut app, "<Enter>");
    assert_eq!((app.view, app.step()), (View::Attention, Some(row.step - 1)));
}

#[test]
fn the_log_follows_until_one_looks_back() {
    let (mut app, steps) = live(10, 40);
    press(&mut app, "7");
    assert_eq!(app.log.lines.current().map(|l| l.step), Some(9));
    let kinds: Vec<_> = app.log.lines.rows_from(0).map(|l| l.kind).collect();
    assert_eq!(&kinds[..3], [LogKind::Run, LogKind::Prefill, LogKind::Prefill]);
    press(&mut app, "k k");
    let line = app.log.lines.current().unwrap().clone();
    hear_steps(&mut app, &steps[10..12]);
    assert_eq!(app.log.lines.current(), Some(&line));
    press(&mut app, "<Enter>");
    assert_eq!(app.step(), Some(line.step));
    assert!(app.log.lines.rows_from(0).all(|l| l.step <= line.step));
    press(&mut app, "F");
    assert_eq!(app.log.lines.current().map(|l| l.step), Some(11));
    hear_steps(&mut app, &steps[12..]);
    assert_eq!(app.log.lines.rows_from(0).filter(|l| l.kind == LogKind::Finish).count(), 1);
    // Written bit by bit or at once, the lines are the same.
    let bit_by_bit: Vec<_> = app.log.lines.rows_from(0).cloned().collect();
    app.log = Log::default();
    app.update(Msg::Tick { now_ns: app.now_ns + 1 });
    assert!(app.log.lines.rows_from(0).eq(&bit_by_bit));
}

#[test]
fn one_cursor_moves_in_every_pane() {
    let (mut app, _) = live(20, 40);
    app.update(Msg::Viewport(Viewport {
        tokens_per_line: 10,
        rows: 20,
        panes: vec![[0, 0, 40, 10], [40, 0, 40, 10], [0, 10, 40, 10], [40, 10, 40, 10]],
    }));
    press(&mut app, "8 h");
    let last = app.cursor.position.unwrap();
    press(&mut app, "k h");
    assert_eq!(app.cursor.position, Some(last - 11));
    press(&mut app, "3 j j j j j j");
    assert_eq!(app.cursor.head, 3);
    press(&mut app, "2 g g j j");
    assert_eq!((app.cursor.position, app.cursor.layer, app.cursor.head), (Some(0), 1, 2));
    press(&mut app, "> ( <");
    assert_eq!((app.cursor.layer, app.cursor.head), (0, 1));
    press(&mut app, "1 <Shift-Right> <Shift-Down>");
    assert_eq!(app.pane, 3);
    press(&mut app, "<Tab>");
    assert_eq!(app.pane, 0);
    press(&mut app, "<Shift-Tab> h");
    assert_eq!(app.step(), Some(18));
}

#[test]
fn time_is_zoomed_searched_and_marked() {
    let (mut app, _) = live(40, 60);
    press(&mut app, "g 5 m g 0 m ]");
    assert_eq!(app.step(), Some(19));
    press(&mut app, "w w");
    let (a, b) = app.time.range.unwrap();
    assert!(a <= 19 && 19 <= b && b - a < 15);
    press(&mut app, "d d d d d d d d d d d d d d d d d d d d d d d d d d d d");
    assert_eq!(app.time.range.map(|(_, b)| b), Some(39));
    press(&mut app, "f f");
    assert_eq!(app.time.range, None);
    press(&mut app, "g 0 e");
    assert_eq!(app.step(), Some(1));
    press(&mut app, "v . . . o . <Enter>");
    assert_eq!((app.time.range, app.time.selection), (Some((2, 4)), None));
    press(&mut app, "=");
    assert_eq!(app.time.range, None);
    assert_eq!(app.bookmark_rows().len(), 2);
    press(&mut app, "' x <Enter>");
    assert_eq!((app.bookmarks.len(), app.step()), (1, Some(19)));
}

#[test]
fn a_replay_plays_at_its_pace_pauses_at_the_end_and_loops() {
    let mut app = replay(30);
    assert_eq!((app.step(), app.status.clone()), (Some(0), Status::Paused));
    assert_eq!(app.timeline.len(), 30);
    app.update(Msg::Tick { now_ns: 1 });
    press(&mut app, "Space");
    let mut now_ns = 1;
    let mut play = |app: &mut App, ns: u64| {
        for _ in 0..10 {
            now_ns += ns / 10;
            app.update(Msg::Tick { now_ns });
        }
    };
    play(&mut app, 1_000_000_010);
    assert_eq!(app.step(), Some(8));
    press(&mut app, "T");
    play(&mut app, 5_000_000);
    assert_eq!(app.step(), Some(13));
    play(&mut app, 1_000_000_000);
    assert_eq!((app.step(), app.status.clone()), (Some(29), Status::Paused));
    press(&mut app, "g 0 v . . . L");
    assert_eq!(app.time.looped, Some((0, 3)));
    press(&mut app, "Space");
    play(&mut app, 4_500_000);
    assert!(app.step() < Some(4) && app.status == Status::Running);
    assert!(engine(press(&mut app, "r . ,")).is_empty());
}

#[test]
fn closing_backs_out_level_by_level_and_only_q_leaves() {
    let (mut app, _) = live(10, 40);
    press(&mut app, "? <Esc> p t <Esc> z");
    assert_eq!(app.overlays, [Overlay::Params]);
    assert!(press(&mut app, "q").is_empty());
    assert!(app.overlays.is_empty());
    assert!(app.zoomed);
    for _ in 0..5 {
        assert!(press(&mut app, "<Esc>").is_empty());
    }
    assert!(!app.zoomed);
    app.update(Msg::Item(Item::Status(Status::Recording {
        file: Some("a.mcap".into()),
        line: String::new(),
    })));
    assert!(press(&mut app, "q").is_empty());
    press(&mut app, "n");
    assert!(app.overlays.is_empty());
    assert_eq!(press(&mut app, "q y"), [Effect::Engine(Ask::Quit), Effect::Quit { keep_screen: false }]);
    press(&mut app, "/");
    assert_eq!(press(&mut app, "Ctrl-c").last(), Some(&Effect::Quit { keep_screen: false }));
    press(&mut app, "<Esc>");
    assert_eq!(press(&mut app, "Q").last(), Some(&Effect::Quit { keep_screen: true }));
}

#[test]
fn a_theme_is_previewed_and_given_back() {
    let (mut app, _) = live(10, 40);
    assert_eq!(press(&mut app, "t j"), [Effect::SetTheme("light".into())]);
    assert_eq!(press(&mut app, "<Esc>"), [Effect::SetTheme("dark".into())]);
    press(&mut app, "t j <Enter>");
    assert_eq!(app.theme, "light");
}

#[test]
fn a_prompt_is_pasted_and_run() {
    let (mut app, _) = live(10, 40);
    app.update(Msg::Paste("two\r\nlines".into()));
    type_in(&mut app, "!");
    let asked = engine(press(&mut app, "<Enter>"));
    let [Ask::Rerun(_, prompt)] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!((prompt.text.as_str(), prompt.expected.as_ref()), ("two\nlines!", None));
    assert!(app.overlays.is_empty());
}

#[test]
fn held_keys_repeat_motions_but_not_switches() {
    let (mut app, _) = live(10, 40);
    let mut event = KeyEvent::new(KeyCode::Char('z'), KeyModifiers::NONE);
    event.kind = KeyEventKind::Repeat;
    app.update(Msg::Key(event));
    assert!(!app.zoomed);
    event.code = KeyCode::Char(',');
    app.update(Msg::Key(event));
    assert_eq!(app.step(), Some(8));
    event.kind = KeyEventKind::Release;
    app.update(Msg::Key(event));
    assert_eq!(app.step(), Some(8));
}

#[test]
fn a_hesitant_chord_shows_how_it_goes_on() {
    let (mut app, _) = live(10, 40);
    press(&mut app, "g");
    assert!(app.continuations().is_empty());
    app.update(Msg::Tick { now_ns: 1_000_000_000 });
    assert!(app.continuations().iter().any(|(keys, c)| keys == "3" && c.name == "time.jump-30%"));
    press(&mut app, "<Esc>");
    assert!(app.continuations().is_empty() && app.pending_keys.is_empty());
}

#[test]
fn the_help_is_searched() {
    let (mut app, _) = live(10, 40);
    press(&mut app, "?");
    assert_eq!(app.help_rows().len(), COMMANDS.len());
    type_in(&mut app, "next evic");
    let rows = app.help_rows();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].0.name, rows[0].1.as_str()), ("time.next-eviction", "e"));
}

#[test]
fn a_contradicting_step_is_a_fault_and_not_a_panic() {
    let (mut app, steps) = live(10, 40);
    hear_steps(&mut app, &steps[20..22]);
    assert!(matches!(app.overlay(), Some(Overlay::Fault { .. })));
    press(&mut app, "<Esc> 1 2 3 4 5 6 7 8 9 , . r");
    let (run, steps) = samples::run(5);
    hear(&mut app, Item::Begin(run));
    hear_steps(&mut app, &steps);
    assert_eq!(app.step(), Some(4));
}

#[test]
fn a_resync_goes_on_from_the_state_it_brings() {
    let (mut app, steps) = live(5, 40);
    let mut state = State::clone(app.newest().unwrap());
    for step in &steps[5..30] {
        state.fold(step).unwrap();
    }
    press(&mut app, ",");
    hear(&mut app, Item::Resync(Box::new(state)));
    assert_eq!(app.step(), Some(3));
    press(&mut app, "F");
    assert_eq!(app.step(), Some(29));
    hear_steps(&mut app, &steps[30..32]);
    assert_eq!((app.step(), app.timeline.len()), (Some(31), 32));
}

#[test]
fn the_hints_lead_through_the_demo() {
    let (mut app, steps) = live(2, 40);
    let says = |app: &App, what: &str| {
        let hint = app.hint.clone().unwrap_or_default();
        assert!(hint.contains(what), "expected '{what}' in '{hint}'");
    };
    says(&app, "Space runs");
    press(&mut app, "Space");
    hear_steps(&mut app, &steps[2..]);
    hear(&mut app, Item::Status(Status::Finished(Finish::MaxTokens)));
    says(&app, "lower the budget");
    press(&mut app, "p j <Left>");
    says(&app, "r runs");
    press(&mut app, "r <Esc>");
    let (run, mut steps) = samples::run(20);
    hear(&mut app, Item::Begin(run));
    for step in &mut steps[1..] {
        let seq = &mut Arc::make_mut(step).seqs[0];
        seq.sampled.as_mut().unwrap().piece = " wrong".into();
        if seq.fed.len() == 1 {
            seq.fed[0].piece = " wrong".into();
        }
    }
    hear_steps(&mut app, &steps);
    says(&app, "4 opens the Evictions");
    press(&mut app, "4");
    says(&app, "token~");
    press(&mut app, "j");
    says(&app, "raise the budget");
    // The panel opens on the row it was left on.
    press(&mut app, "p <Right>");
    says(&app, "stays lost");
    press(&mut app, "r");
    assert_eq!(app.hint, None);
}

#[test]
fn any_keys_in_any_order_leave_it_standing() {
    use proptest::prelude::*;
    let keys: Vec<KeyEvent> = COMMANDS
        .iter()
        .flat_map(|c| c.keys)
        .flat_map(|chord| chord.parse::<Chord>().unwrap().0)
        .map(|key| KeyEvent::new(key.code, key.mods))
        .collect();
    let config = ProptestConfig { cases: 24, ..ProptestConfig::default() };
    proptest!(config, |(picks in prop::collection::vec(0..keys.len(), 0..200), is_live: bool)| {
        let mut app = if is_live { live(30, 40).0 } else { replay(30) };
        for pick in picks {
            app.update(Msg::Key(keys[pick]));
            app.update(Msg::Tick { now_ns: app.now_ns + 30_000_000 });
            prop_assert!(app.pane < app.view.panes().len());
            let tokens = app.state.as_ref().map_or(0, |s| s.seqs[0].tokens.len() as u32);
            prop_assert!(app.cursor.position.is_none_or(|p| p < tokens));
            prop_assert!(app.time.range.is_none_or(|(a, b)| a <= b));
        }
    });
}

#[test]
fn a_rule_left_and_taken_up_again_is_told_its_value() {
    let (mut app, _) = live(10, 40);
    press(&mut app, "p <Right> j");
    assert!(engine(press(&mut app, "<Left> <Left>")).is_empty());
    let asked = engine(press(&mut app, "k <Left>"));
    assert_eq!(asked, [Ask::Tune("budget".into(), "22".into())]);
    assert!(!app.params.rows[1].waiting);
}
