//! The registry: everything a person can do, each with its name, keys and doc. Dispatch, help, footer, `kvista keys` and
//! remapping read this table and nothing else.

use super::{App, Effect, LineEdit, View};

/// Where a command hears its keys. The same chord may mean different things in different contexts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Context {
    /// In every view.
    Global,
    /// While a range of steps is being selected.
    Range,
    /// In the parameter panel; what it does not know is heard globally.
    Params,
    /// In a list on top of the view.
    Menu,
    /// While typing; characters without a command are typed.
    Edit,
    /// At a question.
    Confirm,
}

impl Context {
    /// All contexts, in the order of the help.
    pub const ALL: [Self; 6] =
        [Self::Global, Self::Range, Self::Params, Self::Menu, Self::Edit, Self::Confirm];

    /// The words shown.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Global => "everywhere",
            Self::Range => "while selecting a range",
            Self::Params => "in the parameter panel",
            Self::Menu => "in a list on top",
            Self::Edit => "while typing",
            Self::Confirm => "at a question",
        }
    }
}

/// Something a person can do.
pub struct Command {
    /// Stable name, `group.verb`, for remapping.
    pub name: &'static str,
    /// Two or three words for the footer.
    pub title: &'static str,
    /// One line for the help.
    pub doc: &'static str,
    /// Chords it has when nothing is remapped.
    pub keys: &'static [&'static str],
    /// Where it hears them.
    pub context: Context,
    /// Whether holding the key down repeats it.
    pub repeats: bool,
    pub(super) run: fn(&mut App),
}

impl Command {
    /// The part of the name before the dot.
    pub fn group(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(group, _)| group)
    }
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A table rather than code: one row per command, `once` or `held` (holding the key down repeats it), the context, name,
/// chords, title, doc, and what it does.
macro_rules! registry {
    (|$app:ident| $($mode:ident $context:ident $name:literal $keys:tt $title:literal $doc:literal => $run:expr;)+) => {
        /// Everything a person can do, in the order of the help.
        pub static COMMANDS: &[Command] = &[$(Command {
            name: $name,
            title: $title,
            doc: $doc,
            keys: &$keys,
            context: Context::$context,
            repeats: registry!($mode),
            run: |$app| { $run; },
        }),+];
    };
    (once) => { false };
    (held) => { true };
}

registry! { |app|
    // Leaving and help.
    once Global "app.close" ["q"] "quit" "close what is on top, else quit; asks only while recording" => app.close_or_quit();
    once Global "app.back" ["Esc"] "back" "back out one level: chord, selection, zoom, filter; never quits" => app.back();
    once Global "app.quit-now" ["Ctrl-c"] "quit now" "quit at once; a recording is finished first" => app.quit(false);
    once Global "app.quit-keep" ["Q"] "quit, keep picture" "quit and leave the last picture on the screen" => app.quit(true);
    once Global "app.help" ["?", "F1"] "help" "all commands and their keys, searchable" => app.open_help();
    once Global "app.redraw" ["Ctrl-l"] "redraw" "draw the whole screen again" => app.send(Effect::Redraw);
    once Global "app.reload" ["Ctrl-r"] "reload" "read configuration and theme again" => app.send(Effect::ReloadConfig);
    once Global "app.suspend" ["Ctrl-z"] "suspend" "stop and give the terminal back to the shell" => app.send(Effect::Suspend);
    once Global "app.mouse" ["M"] "mouse" "capture the mouse or leave it to the terminal" => app.toggle_mouse();
    once Global "app.theme" ["t"] "theme" "choose a theme, with a preview" => app.open_themes();

    // Views and panes.
    once Global "view.overview" ["1"] "overview" "everything at a glance" => app.open_view(View::Overview);
    once Global "view.blocks" ["2"] "blocks" "the pool and the block tables" => app.open_view(View::Blocks);
    once Global "view.attention" ["3"] "attention" "per-head attention" => app.open_view(View::Attention);
    once Global "view.evictions" ["4"] "evictions" "who was lost, and why" => app.open_view(View::Evictions);
    once Global "view.traffic" ["5"] "traffic" "V rows between host and device" => app.open_view(View::Traffic);
    once Global "view.latency" ["6"] "latency" "histograms of the phases" => app.open_view(View::Latency);
    once Global "view.log" ["7"] "log" "what happened, line by line" => app.open_view(View::Log);
    once Global "view.text" ["8"] "text" "the text, coloured by what the cache did to it" => app.open_view(View::Text);
    once Global "view.policy" ["9"] "policy" "the policy and its parameters" => app.open_view(View::Policy);
    held Global "pane.next" ["Tab"] "next pane" "focus the next pane" => app.cycle_pane(1);
    held Global "pane.previous" ["Shift-Tab"] "previous pane" "focus the previous pane" => app.cycle_pane(-1);
    held Global "pane.left" ["Shift-Left"] "pane left" "focus the pane to the left" => app.focus_towards(-1, 0);
    held Global "pane.right" ["Shift-Right"] "pane right" "focus the pane to the right" => app.focus_towards(1, 0);
    held Global "pane.up" ["Shift-Up"] "pane above" "focus the pane above" => app.focus_towards(0, -1);
    held Global "pane.down" ["Shift-Down"] "pane below" "focus the pane below" => app.focus_towards(0, 1);
    once Global "pane.zoom" ["z"] "zoom pane" "the focused pane fills the screen; again: back" => app.zoomed = !app.zoomed;
    once Global "view.layout" ["|"] "layout" "other widths of the columns; in Text: colour by fate or by attention" => app.preset = app.preset.wrapping_add(1);

    // The cursor.
    held Global "move.left" ["h", "Left"] "left" "previous token (step on a time axis)" => app.move_by(-1, 0);
    held Global "move.down" ["j", "Down"] "down" "next line, head, lane or row of the pane" => app.move_by(0, 1);
    held Global "move.up" ["k", "Up"] "up" "previous line, head, lane or row of the pane" => app.move_by(0, -1);
    held Global "move.right" ["l", "Right"] "right" "next token (step on a time axis)" => app.move_by(1, 0);
    once Global "move.first" ["g g", "Home"] "first" "first token or row" => app.move_to_end(false);
    once Global "move.last" ["G", "End"] "last" "last token or row" => app.move_to_end(true);
    held Global "move.half-down" ["Ctrl-d"] "half page down" "half a page down" => app.page(1, 2);
    held Global "move.half-up" ["Ctrl-u"] "half page up" "half a page up" => app.page(-1, 2);
    held Global "move.page-down" ["PgDn"] "page down" "a page down" => app.page(1, 1);
    held Global "move.page-up" ["PgUp"] "page up" "a page up" => app.page(-1, 1);
    held Global "move.layer-previous" ["<"] "layer −" "previous layer" => app.move_layer(-1);
    held Global "move.layer-next" [">"] "layer +" "next layer" => app.move_layer(1);
    held Global "move.head-previous" ["("] "head −" "previous head" => app.move_head(-1);
    held Global "move.head-next" [")"] "head +" "next head" => app.move_head(1);
    once Global "move.drill" ["Enter"] "look closer" "go from the selected thing to what explains it" => app.drill();

    // Time.
    once Global "time.play" ["Space"] "run / pause" "run or pause the model; play or pause a recording" => app.play_or_pause();
    once Global "time.freeze" ["Ctrl-f"] "freeze" "freeze the picture; capture goes on" => app.toggle_frozen();
    held Global "time.step" ["."] "step" "one step forward; at the live edge the model takes one" => app.step_forward();
    held Global "time.step-back" [","] "step back" "one step back; capture goes on" => app.step_by(-1);
    held Global "time.next-eviction" ["e"] "next eviction" "next step that lost state" => app.seek_eviction(true);
    held Global "time.previous-eviction" ["E"] "previous eviction" "previous step that lost state" => app.seek_eviction(false);
    held Global "time.next-mark" ["]"] "next mark" "next bookmark, or burst of evictions" => app.seek_mark(true);
    held Global "time.previous-mark" ["["] "previous mark" "previous bookmark, or burst of evictions" => app.seek_mark(false);
    held Global "time.slower" ["{"] "slower" "half the pace" => app.scale_pace(0.5);
    held Global "time.faster" ["}"] "faster" "twice the pace" => app.scale_pace(2.0);
    once Global "time.default-pace" ["Backspace"] "usual pace" "8 steps per second; recorded time at its own speed" => app.default_pace();
    once Global "time.pace" ["T"] "pace on/off" "as fast as it goes (a recording: recorded time), and back" => app.toggle_pace();
    once Global "time.loop" ["L"] "loop" "play the selected (or shown) range again and again; again: stop" => app.toggle_loop();
    once Global "time.jump-0%" ["g 0"] "to 0 %" "jump to 0 % of the known steps" => app.jump_to_tenth(0);
    once Global "time.jump-10%" ["g 1"] "to 10 %" "jump to 10 % of the known steps" => app.jump_to_tenth(1);
    once Global "time.jump-20%" ["g 2"] "to 20 %" "jump to 20 % of the known steps" => app.jump_to_tenth(2);
    once Global "time.jump-30%" ["g 3"] "to 30 %" "jump to 30 % of the known steps" => app.jump_to_tenth(3);
    once Global "time.jump-40%" ["g 4"] "to 40 %" "jump to 40 % of the known steps" => app.jump_to_tenth(4);
    once Global "time.jump-50%" ["g 5"] "to 50 %" "jump to 50 % of the known steps" => app.jump_to_tenth(5);
    once Global "time.jump-60%" ["g 6"] "to 60 %" "jump to 60 % of the known steps" => app.jump_to_tenth(6);
    once Global "time.jump-70%" ["g 7"] "to 70 %" "jump to 70 % of the known steps" => app.jump_to_tenth(7);
    once Global "time.jump-80%" ["g 8"] "to 80 %" "jump to 80 % of the known steps" => app.jump_to_tenth(8);
    once Global "time.jump-90%" ["g 9"] "to 90 %" "jump to 90 % of the known steps" => app.jump_to_tenth(9);
    once Global "time.live" ["F", "g l"] "live edge" "jump to the newest step and follow it" => app.follow();
    held Global "time.zoom-in" ["w", "+"] "zoom in" "zoom the time axis in at the shown step" => app.zoom_time(0.5);
    held Global "time.zoom-out" ["s", "-"] "zoom out" "zoom the time axis out" => app.zoom_time(2.0);
    held Global "time.pan-left" ["a"] "pan left" "move the time axis to earlier steps" => app.pan_time(-1);
    held Global "time.pan-right" ["d"] "pan right" "move the time axis to later steps" => app.pan_time(1);
    once Global "time.fit" ["="] "fit all" "the time axis shows all steps" => app.time.range = None;
    once Global "time.centre" ["f"] "centre" "centre the time axis on the shown step; again: fit all" => app.centre_time();
    once Global "time.select" ["v"] "select range" "start a range of steps here; move to extend it" => app.start_range();
    once Global "time.bookmark" ["m"] "bookmark" "bookmark the shown step, or remove its bookmark" => app.toggle_bookmark();
    once Global "time.bookmarks" ["'"] "bookmarks" "list of bookmarks" => app.open_bookmarks();
    once Range "range.zoom" ["Enter"] "zoom to range" "the time axis shows the range" => app.zoom_to_range();
    once Range "range.swap" ["o"] "other end" "move the other end of the range" => app.swap_range();
    once Range "range.cancel" ["Esc", "v"] "cancel" "forget the range" => app.time.selection = None;

    // How things are drawn and listed.
    once Global "draw.ramp" ["c"] "colours" "next colour ramp" => app.ramp = app.ramp.wrapping_add(1);
    once Global "draw.scale" ["i"] "scale" "linear, logarithmic or ranked values" => app.next_scale();
    once Global "list.sort" ["o"] "sort" "sort the list by the next column" => app.next_sort();
    once Global "list.reverse" ["O"] "reverse" "reverse the order of the list" => app.sort.1 = !app.sort.1;
    once Global "list.filter" ["/"] "filter" "kind=evict layer=1 score<0.1 age>20 token~key, or plain words" => app.open_filter();
    held Global "list.next" ["n"] "next match" "next row of the filtered list" => app.next_match(1);
    held Global "list.previous" ["N"] "previous match" "previous row of the filtered list" => app.next_match(-1);

    once Global "list.worst" ["W"] "worst victim" "the victim of largest regret that the filter lets through (--shadow)" => app.select_worst();

    // The run.
    once Global "engine.params" ["p"] "parameters" "the parameter panel" => app.toggle_params();
    once Global "engine.undo" ["u"] "undo" "undo the last change of a parameter" => app.undo();
    once Global "engine.redo" ["U"] "redo" "redo the change that was undone" => app.redo();
    once Global "engine.rerun" ["r"] "run again" "run the prompt from the start with the present parameters" => app.rerun();
    once Global "engine.prompt" ["P"] "prompt" "type a prompt and run it" => app.open_prompt();
    once Global "engine.turn" ["I"] "say" "type what comes next: a turn of the conversation (--chat), or text to go on with" => app.open_turn();
    once Global "engine.record" ["R"] "record" "start or stop a recording" => app.toggle_recording();
    once Global "export.menu" ["x"] "export" "what can be made of this screen" => app.open_export();
    once Global "export.svg" ["X"] "picture" "this screen as SVG, at once" => app.export_svg();
    once Global "export.copy" ["y"] "copy" "copy the selected value to the clipboard" => app.copy();

    // The parameter panel.
    held Params "param.next" ["j", "Down"] "next" "next parameter" => app.select_param(1);
    held Params "param.previous" ["k", "Up"] "previous" "previous parameter" => app.select_param(-1);
    held Params "param.less" ["h", "Left"] "less" "a little less" => app.nudge_param(-1, false);
    held Params "param.more" ["l", "Right"] "more" "a little more" => app.nudge_param(1, false);
    held Params "param.much-less" ["Shift-Left", "H"] "much less" "a lot less" => app.nudge_param(-1, true);
    held Params "param.much-more" ["Shift-Right", "L"] "much more" "a lot more" => app.nudge_param(1, true);
    once Params "param.type" ["Enter"] "type value" "type a value" => app.type_param();
    once Params "param.compare" ["Space"] "A/B" "the value at the start, and back" => app.compare_param();
    once Params "param.close" ["q", "p", "Esc"] "close" "close the panel" => app.pop_overlay();

    // Lists on top.
    held Menu "menu.next" ["j", "Down", "Ctrl-n"] "next" "next entry" => app.move_in_menu(1);
    held Menu "menu.previous" ["k", "Up", "Ctrl-p"] "previous" "previous entry" => app.move_in_menu(-1);
    once Menu "menu.choose" ["Enter"] "choose" "take the selected entry" => app.choose_in_menu();
    once Menu "menu.close" ["q", "Esc"] "close" "close the list, nothing changed" => app.cancel_overlay();
    once Menu "menu.delete" ["Delete", "x"] "delete" "remove the selected bookmark" => app.delete_in_menu();

    // Typing.
    once Edit "edit.accept" ["Enter"] "accept" "take what was typed" => app.accept_line();
    once Edit "edit.cancel" ["Esc"] "cancel" "forget what was typed" => app.cancel_overlay();
    held Edit "edit.left" ["Left", "Ctrl-b"] "left" "one character to the left" => app.with_line(LineEdit::left);
    held Edit "edit.right" ["Right"] "right" "one character to the right" => app.with_line(LineEdit::right);
    once Edit "edit.home" ["Home", "Ctrl-a"] "start" "start of the line" => app.with_line(LineEdit::home);
    once Edit "edit.end" ["End", "Ctrl-e"] "end" "end of the line" => app.with_line(LineEdit::end);
    held Edit "edit.backspace" ["Backspace"] "erase" "erase the character before the caret" => app.with_line(|line| { line.backspace(); });
    held Edit "edit.delete" ["Delete"] "delete" "erase the character after the caret" => app.with_line(LineEdit::delete);
    held Edit "edit.delete-word" ["Ctrl-w"] "erase word" "erase the word before the caret" => app.with_line(LineEdit::delete_word);
    once Edit "edit.clear" ["Ctrl-u"] "clear" "erase everything" => app.with_line(LineEdit::clear);
    held Edit "edit.scroll-down" ["Down", "PgDn"] "scroll down" "scroll what is shown below the line" => app.scroll_help(1);
    held Edit "edit.scroll-up" ["Up", "PgUp"] "scroll up" "scroll back" => app.scroll_help(-1);

    // Questions.
    once Confirm "confirm.yes" ["y", "Enter"] "quit" "finish the recording and quit" => app.quit(false);
    once Confirm "confirm.no" ["n", "q", "Esc"] "stay" "stay" => app.pop_overlay();
}

/// Names of the commands that the footer offers, by what is on the screen.
pub(super) fn footer(app: &App) -> &'static [&'static str] {
    match app.contexts()[0] {
        Context::Edit => &["edit.accept", "edit.cancel", "edit.clear"],
        Context::Params => &[
            "param.less",
            "param.more",
            "param.much-less",
            "param.type",
            "param.compare",
            "engine.undo",
            "engine.rerun",
            "param.close",
        ],
        Context::Menu => &["menu.choose", "menu.close"],
        Context::Confirm => &["confirm.yes", "confirm.no"],
        Context::Range => &["range.zoom", "range.swap", "time.loop", "range.cancel"],
        Context::Global => match app.view {
            View::Evictions => &[
                "time.play",
                "time.step",
                "list.filter",
                "list.sort",
                "move.drill",
                "time.next-eviction",
                "app.help",
                "app.close",
            ],
            View::Log => {
                &["time.play", "time.step", "list.filter", "move.drill", "time.live", "app.help", "app.close"]
            }
            View::Attention | View::Blocks => &[
                "time.play",
                "time.step",
                "move.layer-next",
                "move.head-next",
                "draw.scale",
                "draw.ramp",
                "app.help",
                "app.close",
            ],
            View::Policy => {
                &["engine.params", "engine.rerun", "time.play", "time.step", "app.help", "app.close"]
            }
            _ if app.chats() => &[
                "engine.turn",
                "time.play",
                "time.step",
                "engine.params",
                "engine.rerun",
                "app.help",
                "app.close",
            ],
            _ => &[
                "time.play",
                "time.step",
                "time.step-back",
                "engine.params",
                "engine.rerun",
                "time.slower",
                "time.faster",
                "app.help",
                "app.close",
            ],
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::app::Chord;

    #[test]
    fn names_are_unique_and_everything_is_documented() {
        let mut names = HashSet::new();
        for c in COMMANDS {
            assert!(names.insert(c.name), "{} twice", c.name);
            assert!(
                c.name.split_once('.').is_some_and(|(g, v)| !g.is_empty() && !v.is_empty()),
                "{}",
                c.name
            );
            assert!(!c.title.is_empty() && !c.doc.is_empty() && !c.doc.contains('\n'), "{}", c.name);
            assert!(!c.keys.is_empty(), "{} has no key", c.name);
        }
    }

    #[test]
    fn no_chord_means_two_things_in_one_context() {
        let mut seen: HashMap<(Context, Chord), &str> = HashMap::new();
        for c in COMMANDS {
            for keys in c.keys {
                let chord: Chord = keys.parse().unwrap_or_else(|e| panic!("{}: {e}", c.name));
                for ((context, other), name) in &seen {
                    let clash = other.0.starts_with(&chord.0) || chord.0.starts_with(&other.0);
                    assert!(*context != c.context || !clash, "{keys}: {} and {name}", c.name);
                }
                seen.insert((c.context, chord), c.name);
            }
        }
    }

    #[test]
    fn the_footer_names_commands_that_exist() {
        let mut app = App::live(crate::app::Launch::default());
        for view in View::ALL {
            app.view = view;
            for name in footer(&app) {
                assert!(COMMANDS.iter().any(|c| c.name == *name), "{name}");
            }
            assert_eq!(app.footer().len(), footer(&app).len());
        }
    }
}
