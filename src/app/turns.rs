//! The next turn, typed while the model waits or speaks.

use super::{App, LineEdit, Overlay};
use crate::engine::{Command, Status};

impl App {
    /// Opens the line in which a turn is typed.
    pub(super) fn open_turn(&mut self) {
        if !self.is_live() {
            return self.say("a recording hears nothing; I is for a model that runs".to_owned());
        }
        if self.status == Status::Gone {
            return self.say("the engine has ended: q leaves".to_owned());
        }
        self.overlays.push(Overlay::Turn { line: LineEdit::default(), error: None, sent: false });
    }

    /// Gives the typed turn to the engine; the line stays until it is taken.
    pub(super) fn send_turn(&mut self) {
        let Some(Overlay::Turn { line, error, sent }) = self.overlays.last_mut() else { return };
        if *sent {
            return;
        }
        if line.text().trim().is_empty() {
            *error = Some("an empty turn is not fed".to_owned());
            return;
        }
        *sent = true;
        let text = line.text().to_owned();
        // What was turned since the model went silent is in force for the turn.
        self.tune_engine();
        self.ask(Command::Say(text));
    }

    /// The engine has taken a turn.
    pub(super) fn turn_is_said(&mut self, text: String, line: String) {
        self.overlays.retain(|overlay| !matches!(overlay, Overlay::Turn { sent: true, .. }));
        if self.prompt.text.is_empty() {
            self.prompt.text = text;
        } else {
            self.prompt.turns.push(text);
        }
        // It was the answer to a shorter conversation.
        self.reference = None;
        self.say(line);
    }

    /// The engine has refused a turn: the line says why, where it is still open.
    pub(super) fn turn_is_refused(&mut self, why: String) {
        let waiting = self.overlays.iter_mut().find_map(|overlay| match overlay {
            Overlay::Turn { error, sent, .. } if *sent => Some((error, sent)),
            _ => None,
        });
        match waiting {
            Some((error, sent)) => (*error, *sent) = (Some(why), false),
            None => self.say(why),
        }
    }

    /// Whether what is typed is a turn of a conversation, not text to go on with.
    pub fn chats(&self) -> bool {
        self.pending.chat
    }
}
