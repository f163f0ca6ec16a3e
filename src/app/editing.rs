//! Overlays: opening, typing, choosing, closing.

use super::{App, Effect, ExportKind, Filter, LineEdit, Overlay, View};

impl App {
    pub(super) fn open_help(&mut self) {
        self.overlays.push(Overlay::Help { query: LineEdit::default(), scroll: 0 });
    }

    pub(super) fn open_filter(&mut self) {
        if !matches!(self.view, View::Evictions | View::Log) {
            self.open_view(View::Evictions);
        }
        let before = self.filter.source().to_owned();
        self.overlays.push(Overlay::Filter { line: LineEdit::new(before.clone()), before });
    }

    pub(super) fn open_prompt(&mut self) {
        if self.is_live() {
            self.overlays.push(Overlay::Prompt { line: LineEdit::default() });
        } else {
            self.say("a recording cannot be given another prompt".to_owned());
        }
    }

    pub(super) fn open_themes(&mut self) {
        let selected = self.themes.iter().position(|name| *name == self.theme).unwrap_or(0);
        self.overlays.push(Overlay::Themes { selected, before: self.theme.clone() });
    }

    pub(super) fn open_export(&mut self) {
        self.overlays.push(Overlay::Export { selected: 0 });
    }

    pub(super) fn open_bookmarks(&mut self) {
        self.overlays.push(Overlay::Bookmarks { selected: 0 });
    }

    pub(super) fn toggle_params(&mut self) {
        self.overlays.push(Overlay::Params);
    }

    pub(super) fn pop_overlay(&mut self) {
        self.overlays.pop();
    }

    pub(super) fn export_svg(&mut self) {
        self.send(Effect::Export { kind: ExportKind::Svg, view: self.view });
    }

    /// Closes the top overlay as if it had not been opened.
    pub(super) fn cancel_overlay(&mut self) {
        if self.params.edit.take().is_some() {
            self.params.error = None;
            return;
        }
        match self.overlays.pop() {
            Some(Overlay::Filter { before, .. }) => self.set_filter(&before),
            Some(Overlay::Themes { before, .. }) => self.set_theme(before),
            _ => {}
        }
    }

    // Typing.

    /// The line that hears what is typed.
    fn line(&mut self) -> Option<&mut LineEdit> {
        match self.overlays.last_mut() {
            Some(Overlay::Params) => self.params.edit.as_mut(),
            Some(overlay) => overlay.line_mut(),
            None => None,
        }
    }

    /// Edits the line and applies what follows from it at once.
    pub(super) fn with_line(&mut self, edit: fn(&mut LineEdit)) {
        if let Some(line) = self.line() {
            edit(line);
        }
        self.typed();
    }

    pub(super) fn type_text(&mut self, text: &str) {
        if let Some(line) = self.line() {
            line.insert(text);
        }
        self.typed();
    }

    /// Pasted text goes where typing goes; where nothing is typed, it becomes a prompt, or a conversation's next turn.
    pub(super) fn paste(&mut self, text: &str) {
        if self.line().is_none() && self.overlays.is_empty() && !text.trim().is_empty() {
            if self.chats() && self.is_live() {
                self.open_turn();
            } else {
                self.open_prompt();
            }
        }
        self.type_text(text);
    }

    fn typed(&mut self) {
        self.params.error = None;
        match self.overlays.last_mut() {
            Some(Overlay::Filter { line, .. }) => {
                let query = line.text().to_owned();
                self.set_filter(&query);
            }
            Some(Overlay::Help { scroll, .. }) => *scroll = 0,
            Some(Overlay::Turn { error, .. }) => *error = None,
            _ => {}
        }
    }

    /// A query that is refused leaves the last good one in force.
    pub(super) fn set_filter(&mut self, query: &str) {
        self.filter_error = None;
        match Filter::parse(query) {
            Ok(filter) => self.filter = filter,
            Err(why) => self.filter_error = Some(why.to_string()),
        }
    }

    pub(super) fn accept_line(&mut self) {
        if self.params.edit.is_some() {
            return self.accept_param();
        }
        match self.overlays.last() {
            // What is wrong with a query stays visible until it is mended or given up.
            Some(Overlay::Filter { .. }) if self.filter_error.is_some() => {}
            Some(Overlay::Prompt { line }) => {
                let text = line.text().to_owned();
                self.run_prompt(text);
            }
            Some(Overlay::Turn { .. }) => self.send_turn(),
            _ => self.pop_overlay(),
        }
    }

    pub(super) fn scroll_help(&mut self, by: isize) {
        let rows = self.help_rows().len();
        if let Some(Overlay::Help { scroll, .. }) = self.overlays.last_mut() {
            *scroll = scroll.saturating_add_signed(by).min(rows.saturating_sub(1));
        }
    }

    // Lists.

    pub(super) fn move_in_menu(&mut self, by: isize) {
        let marks = self.bookmarks.len();
        let (selected, len) = match self.overlays.last_mut() {
            Some(Overlay::Themes { selected, .. }) => (selected, self.themes.len()),
            Some(Overlay::Export { selected }) => (selected, ExportKind::ALL.len()),
            Some(Overlay::Bookmarks { selected }) => (selected, marks),
            _ => return,
        };
        *selected = selected.saturating_add_signed(by).min(len.saturating_sub(1));
        let chosen = *selected;
        if matches!(self.overlay(), Some(Overlay::Themes { .. }))
            && let Some(name) = self.themes.get(chosen).cloned()
        {
            self.set_theme(name);
        }
    }

    pub(super) fn choose_in_menu(&mut self) {
        match self.overlays.pop() {
            Some(Overlay::Export { selected }) => {
                self.send(Effect::Export { kind: ExportKind::ALL[selected], view: self.view });
            }
            Some(Overlay::Bookmarks { selected }) => {
                if let Some(&step) = self.bookmarks.iter().nth(selected) {
                    self.show(Some(step));
                }
            }
            _ => {}
        }
    }

    pub(super) fn delete_in_menu(&mut self) {
        if let Some(Overlay::Bookmarks { selected }) = self.overlays.last_mut() {
            if let Some(&step) = self.bookmarks.iter().nth(*selected) {
                self.bookmarks.remove(&step);
            }
            *selected = (*selected).min(self.bookmarks.len().saturating_sub(1));
        }
    }

    fn set_theme(&mut self, name: String) {
        if name != self.theme {
            self.theme.clone_from(&name);
            self.send(Effect::SetTheme(name));
        }
    }

    /// Copies the selected value: the row of a list, else the token, else the line that repeats the run.
    pub(super) fn copy(&mut self) {
        let token = || {
            let seq = self.state.as_ref()?.seq(self.cursor.seq)?;
            Some(seq.tokens.get(self.cursor.position? as usize)?.piece.lossy().into_owned())
        };
        let row = match self.view {
            View::Evictions => self.victims.rows.current().map(|v| {
                let head = v.head.map_or_else(|| "all".to_owned(), |h| h.to_string());
                let number = |x: Option<f32>| x.map_or_else(|| "-".to_owned(), |x| x.to_string());
                format!(
                    "step {} layer {} head {head} position {} token {:?} score {} cutoff {} age {} regret {}",
                    v.step,
                    v.layer,
                    v.position,
                    v.token,
                    number(v.score),
                    number(v.cutoff),
                    v.age,
                    number(v.regret)
                )
            }),
            View::Log => self.log.lines.current().map(|l| l.text.clone()),
            View::Policy => None,
            _ => token(),
        };
        let text = row.unwrap_or_else(|| self.command_line());
        self.send(Effect::Copy(text));
    }
}
