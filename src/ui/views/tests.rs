//! Views at the sizes people have, in the moments that are not the usual one.

use std::sync::Arc;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::app::{App, VICTIM_COLUMNS};
use crate::event::crush::BitRow;
use crate::event::{Cells, CodingError, Crush, LayerReads, RunInfo, ScoreLevel, Settings, attention};
use crate::state::{CodedLayer, EvictionLog, Reads, SeqState, State, Traffic};
use crate::ui::draw::render;
use crate::ui::draw::samples::{STEPS, app, press, sampled_app, shadowed_app};
use crate::ui::export::{styled_dump, text};
use crate::ui::theme::{dark, plain};

const VIEWS: [(&str, &str); 5] =
    [("2", "blocks"), ("3", "attention"), ("4", "evictions"), ("5", "traffic"), ("6", "latency")];

fn drawn(app: &App, width: u16, height: u16, styles: &crate::ui::theme::Styles) -> Buffer {
    let area = Rect::new(0, 0, width, height);
    let mut buf = Buffer::empty(area);
    render(&mut buf, area, app, styles);
    buf
}

fn words(app: &App, width: u16, height: u16) -> String {
    text(&drawn(app, width, height, &plain()))
}

fn state(app: &mut App) -> &mut State {
    Arc::make_mut(app.state.as_mut().unwrap())
}

fn settings(app: &mut App, change: impl FnOnce(&mut Settings)) {
    let mut run: RunInfo = app.run.as_deref().unwrap().clone();
    change(&mut run.settings);
    app.run = Some(Arc::new(run));
}

/// Turns the picture into one of another level.
fn at_level(seq: &mut SeqState, level: ScoreLevel) {
    let (_, map) = seq.attention.as_mut().unwrap();
    map.level = level;
    for group in &mut map.groups {
        let positions: Vec<u32> = group.iter_positions().collect();
        for row in &mut group.rows {
            row.cells = match level {
                ScoreLevel::Blocks => {
                    Cells::Blocks(vec![attention::quantise(0.5), attention::quantise(0.25), 0])
                }
                _ => Cells::Top(positions.iter().take(2).map(|&p| (p, attention::quantise(0.3))).collect()),
            };
            row.dropped = 0.4;
        }
    }
}

#[test]
fn five_views_on_a_large_screen() {
    let mut app = app(STEPS);
    for (digit, name) in VIEWS {
        press(&mut app, digit);
        insta::assert_snapshot!(format!("200x60_{name}"), words(&app, 200, 60));
    }
}

#[test]
fn styles_of_the_lists() {
    let mut app = app(STEPS);
    press(&mut app, "4 j j z");
    insta::assert_snapshot!("victims_zoomed", styled_dump(&drawn(&app, 110, 20, &dark())));
    press(&mut app, "z 2 z");
    insta::assert_snapshot!("tables_zoomed", styled_dump(&drawn(&app, 90, 24, &dark())));
}

#[test]
fn every_pane_alone_on_a_small_screen() {
    let mut app = app(STEPS);
    for (digit, name) in VIEWS {
        press(&mut app, digit);
        for pane in 0..app.view.panes().len() {
            app.pane = pane;
            let drawn = words(&app, 50, 14);
            insta::assert_snapshot!(format!("50x14_{name}_{}", app.view.panes()[pane]), drawn);
        }
    }
}

#[test]
fn levels_of_attention_are_drawn_for_what_they_are() {
    let mut app = app(STEPS);
    press(&mut app, "3");
    at_level(&mut state(&mut app).seqs[0], ScoreLevel::Top(2));
    insta::assert_snapshot!("attention_top", words(&app, 100, 30));
    at_level(&mut state(&mut app).seqs[0], ScoreLevel::Blocks);
    insta::assert_snapshot!("attention_blocks", words(&app, 100, 30));
    state(&mut app).seqs[0].attention = None;
    settings(&mut app, |s| s.scores = ScoreLevel::Off);
    assert!(words(&app, 100, 30).contains("--scores full"));
}

#[test]
fn an_old_picture_says_so() {
    let mut app = app(STEPS);
    press(&mut app, "3");
    let state = state(&mut app);
    let shown = state.step.unwrap();
    state.seqs[0].attention.as_mut().unwrap().0 = shown - 2;
    assert!(words(&app, 120, 30).contains("2 steps old"));
}

#[test]
fn without_victims_the_reason_is_told() {
    let mut app = app(STEPS);
    state(&mut app).evictions = EvictionLog::default();
    settings(&mut app, |s| s.policy = "full".into());
    press(&mut app, "4");
    let drawn = words(&app, 100, 30);
    assert!(drawn.contains("nothing was lost") && drawn.contains("full keeps everything"), "{drawn}");
    settings(&mut app, |s| s.policy = "h2o:budget=90".into());
    let drawn = words(&app, 100, 30);
    assert!(drawn.contains("has not reached its budget") && drawn.contains("of 90 slots"), "{drawn}");
}

#[test]
fn without_a_read_set_the_flag_that_makes_one_is_named() {
    let mut app = app(STEPS);
    let state = state(&mut app);
    let still = |t: &mut Vec<_>| t.iter_mut().for_each(|t| *t = crate::event::LayerTraffic::default());
    let Traffic { last, total, .. } = &mut state.traffic;
    still(last);
    still(total);
    settings(&mut app, |s| s.read = String::new());
    press(&mut app, "5");
    assert!(words(&app, 80, 24).contains("--kcache n=64,l=1"));
}

#[test]
fn what_pulling_pays_from_is_told_once_rows_were_pulled() {
    let mut app = app(3);
    press(&mut app, "5");
    let prompt = words(&app, 80, 24);
    assert!(prompt.contains("s* not known yet") && !prompt.contains("0.57x"), "{prompt}");
    let mut app = self::app(STEPS);
    press(&mut app, "5");
    let shown = words(&app, 80, 24);
    // N' of 4; a step sums 34 values in the time in which it pulls 8.
    for figure in ["s* 21 tokens d", "context 12 d = 0.57x s* d", "overlap 0.0% ~"] {
        assert!(shown.contains(figure), "{figure}: {shown}");
    }
    let at_200 = words(&app, 200, 60);
    assert!(!at_200.contains("overlap ~") && at_200.contains("s* at --link 4 ~"), "{at_200}");
    let Traffic { last, total, .. } = &mut state(&mut app).traffic;
    last.iter_mut().chain(total).for_each(|t| t.stall_ns /= 4);
    let at_200 = words(&app, 200, 60);
    assert!(at_200.contains("overlap ~") && at_200.contains("75.6%"), "{at_200}");
}

#[test]
fn shares_are_of_the_steps_that_were_clocked() {
    let mut app = sampled_app(STEPS);
    press(&mut app, "6");
    let shown = words(&app, 200, 60);
    for title in ["times s, shares d", "p50 s", "p99 s", "share d"] {
        assert!(shown.contains(title), "{title}: {shown}");
    }
    // A phase takes 2.5 of 50 us in a step that was clocked, as two of three chunks were and two of five tokens.
    assert_eq!(shown.matches(" 5.0%").count(), 24, "twelve phases of either stage: {shown}");
    assert_eq!(shown.matches(" 40.0%").count(), 2, "in no phase: {shown}");
    press(&mut app, "5");
    let shown = words(&app, 200, 60);
    assert!(shown.contains("copy s") && shown.contains("1.80 us s"), "{shown}");
    let mut app = self::app(STEPS);
    press(&mut app, "6");
    let shown = words(&app, 200, 60);
    assert!(shown.contains("times m, shares d") && shown.contains("p50 m"), "{shown}");
    press(&mut app, "5");
    assert!(words(&app, 200, 60).contains("copy m"));
}

#[test]
fn quest_shows_pages_read_in_place_of_rows_moved() {
    let mut app = app(STEPS);
    settings(&mut app, |s| s.read = "quest:budget=8,page=4,dense=1".into());
    press(&mut app, "5");
    let prompt = words(&app, 80, 24);
    assert!(prompt.contains("3 pages of 4 and the newest") && prompt.contains("dense"), "{prompt}");
    assert!(!prompt.contains("to dev") && prompt.contains("the prompt reads everything"), "{prompt}");
    let reads = LayerReads {
        layer: 1,
        pages: 20,
        read: 5,
        asked: 8,
        loaded: 0,
        read_bytes: 1024,
        dense_bytes: 4096,
        key_bytes: 2048,
        index_bytes: 512,
        top: 40,
        top_read: 30,
    };
    let blank = LayerReads::default();
    state(&mut app).reads = Reads { last: vec![blank, reads], total: vec![blank, reads] };
    for (width, height) in [(80, 24), (200, 60)] {
        let shown = words(&app, width, height);
        for figure in ["5/20", "25.0%", "75.0%", "1.00 KiB"] {
            assert!(shown.contains(figure), "{figure}: {shown}");
        }
    }
}

#[test]
fn infllm_shows_blocks_read_and_what_moved_for_them() {
    let mut app = app(STEPS);
    settings(&mut app, |s| s.read = "infllm:local=64,init=16,block=16,topk=4,cache=8".into());
    press(&mut app, "5");
    let reads = LayerReads {
        pages: 20,
        read: 4,
        asked: 4,
        loaded: 1,
        read_bytes: 1024,
        dense_bytes: 4096,
        key_bytes: 2048,
        index_bytes: 512,
        ..LayerReads::default()
    };
    state(&mut app).reads = Reads { last: vec![reads; 2], total: vec![reads; 2] };
    for (width, height) in [(80, 24), (200, 60)] {
        let shown = words(&app, width, height);
        for figure in ["16 first, 4 blocks of 16", "4/20", "25.0%", "to dev", "to host"] {
            assert!(shown.contains(figure), "{figure}: {shown}");
        }
        assert!(!shown.contains("top10") && !shown.contains("V home"), "{shown}");
    }
}

#[test]
fn forgotten_decisions_are_counted() {
    let mut app = app(STEPS);
    let state = state(&mut app);
    let mut log = serde_json::to_value(&state.evictions).unwrap();
    log["total_decisions"] = (state.evictions.total_decisions() + 7).into();
    state.evictions = serde_json::from_value(log).unwrap();
    press(&mut app, "4");
    assert!(words(&app, 130, 30).contains("7 older decisions forgotten"));
}

/// What KVCrush saw in layer 0: 30 units of 4 tokens with 24 bits each, the first and the last three protected.
fn crushed(anchor_per_unit: bool) -> Crush {
    let competes = |u: usize| (1..27).contains(&u);
    let anchor: Vec<bool> = (0..if anchor_per_unit { 30 } else { 24 }).map(|i| i % 2 == 1).collect();
    let row = |u: usize| (0..24).map(|i| (u * u * 7 + i * i * (u + 3)) % 11 < 5).collect::<Vec<_>>();
    let rows: Vec<Vec<bool>> = (0..30).map(|u| if competes(u) { row(u) } else { Vec::new() }).collect();
    let distance = |(u, row): (usize, &Vec<bool>)| {
        row.iter().enumerate().filter(|&(i, &bit)| bit != anchor[if anchor_per_unit { u } else { i }]).count()
            as u32
    };
    let crush = Crush {
        units: 30,
        bits: 24,
        anchor: BitRow::new(&anchor),
        anchor_per_unit,
        first: (0..30).map(|u| u * 4).collect(),
        fates: "sxixxrixxixxxxrxxxixxrxxixxnnn".into(),
        signatures: rows.iter().map(|row| BitRow::new(row)).collect(),
        distances: rows.iter().enumerate().map(distance).collect(),
        by_score: BitRow::new(&(0..30).map(|u| !competes(u) || u % 3 == 0).collect::<Vec<_>>()),
        ..Crush::default()
    };
    assert!(crush.is_sound());
    crush
}

#[test]
fn units_of_like_signature_are_drawn() {
    let mut app = app(STEPS);
    settings(&mut app, |s| s.policy = "h2o:budget=24+kvcrush:group=4".into());
    press(&mut app, "9");
    assert!(!words(&app, 200, 60).contains("units"));
    state(&mut app).crush = [(0, 5, Arc::new(crushed(false)))].into_iter().collect();
    insta::assert_snapshot!("80x24_units", styled_dump(&drawn(&app, 80, 24, &dark())));
    insta::assert_snapshot!("200x60_units", words(&app, 200, 60));
    press(&mut app, "Tab Tab z");
    insta::assert_snapshot!("units_zoomed", styled_dump(&drawn(&app, 64, 40, &dark())));
    state(&mut app).crush = [(0, 5, Arc::new(crushed(true)))].into_iter().collect();
    let own = words(&app, 100, 40);
    assert!(own.contains("an anchor bit of its own"), "{own}");
    // The other layer has not decided.
    press(&mut app, ">");
    assert!(words(&app, 100, 40).contains("layer 1 has not decided yet"));
}

#[test]
fn any_sound_record_of_units_can_be_drawn() {
    let mut app = app(STEPS);
    press(&mut app, "9 Tab Tab");
    let wild = Crush {
        units: u32::MAX,
        bits: u32::MAX,
        first: vec![0, u32::MAX],
        fates: "rx".into(),
        signatures: vec![BitRow("ff".into()), BitRow("0".into())],
        distances: vec![0, u32::MAX],
        ..Crush::default()
    };
    for crush in [wild.clone(), Crush { anchor_per_unit: true, ..wild }, Crush::default()] {
        assert!(crush.is_sound());
        state(&mut app).crush = [(0, 5, Arc::new(crush))].into_iter().collect();
        for (width, height) in [(200, 60), (80, 24), (30, 12), (12, 40), (7, 9)] {
            words(&app, width, height);
        }
    }
}

#[test]
fn pages_in_codes_show_their_errors_by_layer_and_channel() {
    let mut app = app(STEPS);
    press(&mut app, "9");
    let plain = words(&app, 120, 60);
    assert!(!plain.contains("values are altered"), "{plain}");
    settings(&mut app, |s| {
        s.kv_dtype = "int2:residual=64".into();
        s.read = String::new();
    });
    assert!(words(&app, 120, 60).contains("no row is in codes yet"));
    let error = |squared_error| CodingError { rows: 8, squared_error, squares: 1.0 };
    let layer = |k, cells: [u8; 2]| CodedLayer {
        k: error(k),
        v: error(0.04),
        k_channels: cells.to_vec(),
        ..CodedLayer::default()
    };
    state(&mut app).coding.layers = vec![layer(0.01, [255, 239]), layer(0.09, [0, 223])];
    let shown = words(&app, 120, 60);
    assert!(shown.contains("int2:residual=64 pages") && shown.contains("KIVI"), "{shown}");
    for figures in ["10.0%", "20.0%", "30.0%"] {
        assert!(shown.contains(figures), "{figures}: {shown}");
    }
    assert!(shown.contains("  #=") && shown.contains("  .-"), "{shown}");
    settings(&mut app, |s| s.kv_dtype = "nuq3:outliers=0.005".into());
    let shown = words(&app, 120, 60);
    for part in ["nuq3:outliers=0.005 pages", "KVQuant", "8 points", "0.5%", "  #="] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
fn what_was_merged_is_told_from_what_was_lost() {
    let mut app = app(STEPS);
    assert!(!words(&app, 120, 30).contains("cam:m=4"));
    settings(&mut app, |s| {
        s.merge = "cam:m=4".into();
        s.read = String::new();
    });
    press(&mut app, "9");
    assert!(words(&app, 120, 70).contains("nothing was merged yet"));
    let state = state(&mut app);
    let newest = state.evictions.iter().next_back().unwrap().clone();
    let (layer, victims) = (newest.eviction.layer, &newest.eviction.positions);
    let recent: Vec<_> = (0..state.run.model.kv_heads)
        .map(|head| {
            serde_json::json!({
                "step": newest.step, "seq": 0, "layer": layer, "head": head,
                "fates": "f".repeat(victims.len().div_ceil(4)), "arcs": [[victims[0], 777, 4, 0.25]],
            })
        })
        .collect();
    let group = (state.run.model.heads / state.run.model.kv_heads) as u16;
    let drift = serde_json::json!({ "rows": 4, "squared_change": 0.09, "squares": 1.0 });
    let none = serde_json::json!({ "rows": 0, "squared_change": 0.0, "squares": 0.0 });
    let layers: Vec<_> = (0..state.run.model.layers)
        .map(|_| serde_json::json!({ "merged": 3, "apart": 9, "k": none, "v": drift, "saved_bytes": 2048 }))
        .collect();
    let log = serde_json::json!({ "layers": layers, "recent": recent, "elements": 0 });
    state.merging = serde_json::from_value(log).unwrap();
    let shown = words(&app, 120, 70);
    for figures in ["25.0%", "30.0%", "what is merged is altered", "(modelled)"] {
        assert!(shown.contains(figures), "{figures}: {shown}");
    }
    press(&mut app, "4");
    (app.cursor.layer, app.cursor.position) = (layer, Some(victims[0]));
    app.cursor.head = newest.eviction.head.unwrap_or(0) * group;
    let shown = words(&app, 160, 45);
    assert!(shown.contains("merged into 777 and 3 more") && shown.contains("+ cam:m=4"), "{shown}");
}

#[test]
fn a_twin_adds_its_verdict_and_the_regret_of_every_victim() {
    let mut app = shadowed_app(STEPS);
    press(&mut app, "4");
    insta::assert_snapshot!("evictions_with_a_twin", words(&app, 120, 30));
    let narrow = words(&app, 80, 24);
    assert!(narrow.contains("regret m") && narrow.contains("full cache"), "{narrow}");
    press(&mut app, "9");
    let policy = words(&app, 160, 40);
    assert!(policy.contains("full cache") && policy.contains("KL 0.250 d"), "{policy}");
    settings(&mut app, |s| s.shadow = 2);
    state(&mut app).run = Arc::clone(app.run.as_ref().unwrap());
    assert!(words(&app, 160, 40).contains("KL 0.250 s"), "what was judged now and then is sampled");
    press(&mut app, "6");
    let latency = words(&app, 160, 50);
    assert!(latency.contains("beside all steps") && latency.contains("8.00 KiB"), "{latency}");
}

#[test]
fn victims_are_sorted_and_filtered_by_regret_and_the_worst_is_found() {
    let mut app = shadowed_app(STEPS);
    press(&mut app, "4");
    let regrets = |app: &App| app.victims.rows.rows_from(0).map(|r| r.regret.unwrap()).collect::<Vec<_>>();
    press(&mut app, &"o ".repeat(VICTIM_COLUMNS.len() - 1));
    let all = regrets(&app);
    assert!(all.is_sorted_by(|a, b| a >= b) && all[0] > 0.0 && *all.last().unwrap() == 0.0, "{all:?}");
    press(&mut app, "O / r e g r e t > 0 . 0 1 Enter");
    let some = regrets(&app);
    assert!(some.is_sorted() && some.iter().all(|&r| r > 0.01) && !some.is_empty() && some.len() < all.len());
    press(&mut app, "g g W");
    let row = app.victims.rows.current().unwrap();
    assert_eq!((row.regret, app.cursor.position), (Some(all[0]), Some(row.position)));
    // Without a twin there is nothing to find.
    let mut alone = self::app(STEPS);
    press(&mut alone, "4 j W");
    assert_eq!(alone.victims.rows.selected, 1);
    assert!(words(&alone, 120, 30).contains("kvista run --shadow tells"));
}
