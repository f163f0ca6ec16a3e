//! Turning parameters, undoing it, running again, recording.

use super::params::{Knob, budget_slots, same_rule};
use super::{App, Effect, LineEdit, Overlay, Tunable};
use crate::engine::{Command, Prompt, Status};

/// Said until the new run begins.
pub(super) const RERUNNING: &str = "running the prompt again";

impl App {
    pub(super) fn select_param(&mut self, by: isize) {
        let last = self.params.rows.len().saturating_sub(1);
        self.params.selected = self.params.selected.saturating_add_signed(by).min(last);
        self.params.error = None;
    }

    fn knob(&self) -> Option<Knob> {
        self.params.knob(&self.tunable())
    }

    pub(super) fn nudge_param(&mut self, by: i32, coarse: bool) {
        if let Some(knob) = self.knob() {
            let value = knob.nudged(&self.tunable(), by, coarse);
            self.set_param(knob, &value);
        }
    }

    pub(super) fn type_param(&mut self) {
        if let Some(knob) = self.knob() {
            self.params.error = None;
            self.params.edit = Some(LineEdit::new(knob.get(&self.tunable())));
        }
    }

    /// A refused value stays in the editor, with the reason.
    pub(super) fn accept_param(&mut self) {
        let Some((knob, line)) = self.knob().zip(self.params.edit.take()) else { return };
        if !self.set_param(knob, line.text().trim()) {
            self.params.edit = Some(line);
        }
    }

    pub(super) fn compare_param(&mut self) {
        let now = self.tunable();
        let Some(knob) = self.knob() else { return };
        match self.params.other_side(knob, &now) {
            Some(value) => {
                self.set_param(knob, &value);
            }
            None => self.say(format!("{} is what it was at the start", knob.name())),
        }
    }

    fn set_param(&mut self, knob: Knob, value: &str) -> bool {
        let before = self.tunable();
        let mut after = before.clone();
        if let Err(why) = knob.set(&mut after, value) {
            self.params.error = Some(why);
            return false;
        }
        self.params.error = None;
        if after != before {
            self.params.remember(before.clone());
            self.put_in_force(&before, &after);
        }
        true
    }

    pub(super) fn undo(&mut self) {
        let now = self.tunable();
        match self.params.undo(&now) {
            Some(before) => self.put_in_force(&now, &before),
            None => self.say("nothing to undo".to_owned()),
        }
    }

    pub(super) fn redo(&mut self) {
        let now = self.tunable();
        match self.params.redo(&now) {
            Some(after) => self.put_in_force(&now, &after),
            None => self.say("nothing to redo".to_owned()),
        }
    }

    /// The engine has refused the last live change: the panel must not show it as if it were in force.
    pub(super) fn take_back_refused(&mut self) {
        let now = self.tunable();
        let Some(before) = self.params.undo(&now) else { return };
        self.pending = before.settings.clone();
        let Some(in_force) = &mut self.in_force else { return };
        for knob in Knob::all(&before.settings).into_iter().filter(|k| k.live()) {
            if same_rule(knob, in_force, &before) {
                // The value was in force before, so it is in range.
                let _ = knob.set(in_force, &knob.get(&before));
            }
        }
    }

    /// Makes `after` the present values. What can be tuned live is sent at once.
    fn put_in_force(&mut self, before: &Tunable, after: &Tunable) {
        if after.pace != before.pace {
            self.set_pace(after.pace);
        }
        let change = Knob::all(&after.settings).into_iter().find_map(|knob| {
            let (from, to) = (knob.get(before), knob.get(after));
            (from != to && !knob.is_pace()).then(|| format!("{}: {from} → {to}", knob.name()))
        });
        self.pending = after.settings.clone();
        let live = self.send_live(after);
        if let Some(notice) = self.raised_budget(before, after) {
            return self.say(notice);
        }
        if let Some(change) = change {
            let when = match (live, self.is_live()) {
                (true, _) => "in force from the next step",
                (false, true) => "r runs with it",
                (false, false) => "y in view 9 copies the line that runs with it",
            };
            self.say(format!("{change}; {when}"));
        }
    }

    /// Tells the engine every live value that is not in force yet; whether there was any.
    fn send_live(&mut self, now: &Tunable) -> bool {
        if matches!(self.status, Status::Finished(_) | Status::Failed(_) | Status::Gone) {
            return false;
        }
        self.tune_to(now)
    }

    /// Puts every live value that is not in force yet into force, for a run that goes on after its end.
    pub(super) fn tune_engine(&mut self) {
        let now = self.tunable();
        self.tune_to(&now);
    }

    fn tune_to(&mut self, now: &Tunable) -> bool {
        let Some(mut in_force) = self.in_force.take() else { return false };
        let mut sent = false;
        for knob in Knob::all(&now.settings).into_iter().filter(|k| k.live() && !k.is_pace()) {
            let value = knob.get(now);
            if same_rule(knob, &in_force, now) && knob.get(&in_force) != value {
                sent |= knob.set(&mut in_force, &value).is_ok();
                self.ask(Command::Tune(knob.name().to_owned(), value));
            }
        }
        self.in_force = Some(in_force);
        sent
    }

    /// What was evicted does not come back: said once a budget is raised after victims.
    fn raised_budget(&mut self, before: &Tunable, after: &Tunable) -> Option<String> {
        let prompt_tokens = self.run.as_ref()?.prompt_tokens;
        let (from, to) =
            (budget_slots(&before.settings, prompt_tokens)?, budget_slots(&after.settings, prompt_tokens)?);
        if to < from {
            self.story.lowered = true;
        }
        let victims = self.newest()?.evictions.total_victims();
        if to <= from || victims == 0 || !self.is_live() {
            return None;
        }
        self.story.raised = true;
        Some(format!("budget raised: the {victims} victims do not come back before the run is repeated (r)"))
    }

    // Runs.

    pub(super) fn rerun(&mut self) {
        if !self.is_live() {
            let line = self.command_line();
            return self.say(format!("a recording cannot run again; this does: {line}"));
        }
        match self.status {
            Status::Gone => self.say("the engine has ended: q leaves".to_owned()),
            Status::Loading { .. } => self.say("the model is still being read".to_owned()),
            _ => {
                self.story.rerun();
                self.ask(Command::Rerun(Box::new(self.pending.clone()), self.prompt.clone()));
                self.say(RERUNNING.to_owned());
            }
        }
    }

    pub(super) fn run_prompt(&mut self, text: String) {
        if text.trim().is_empty() {
            return self.say("an empty prompt is not run".to_owned());
        }
        if matches!(self.status, Status::Gone | Status::Loading { .. }) {
            return self.say("the model is not ready: Esc gives the prompt up".to_owned());
        }
        self.overlays.retain(|o| !matches!(o, Overlay::Prompt { .. }));
        self.prompt = Prompt { text, ..Prompt::default() };
        self.is_prompt_typed = true;
        self.ask(Command::Rerun(Box::new(self.pending.clone()), self.prompt.clone()));
    }

    pub(super) fn toggle_recording(&mut self) {
        if !self.is_live() {
            self.say("this is a recording already".to_owned());
        } else if self.recording.take().is_some() {
            self.ask(Command::Record(None));
        } else {
            self.send(Effect::StartRecording);
        }
    }
}
