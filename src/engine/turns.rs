//! Turns: a run goes on with what a person says after an answer, on the same cache.
//!
//! Only what is new is fed: with `--chat` the part of the conversation's rendering behind the last answer, else the
//! text as it is. It goes through the model in chunks like a prompt, then the model answers. A template that renders
//! earlier turns otherwise than they lie in the cache (some drop what the model thought) leaves nothing to go on from:
//! then the whole conversation is a new run's prompt.
//!
//! To a policy the *prompt* then is everything up to the end of the newest turn, so that a share of it grows with the
//! conversation. With `--compress prompt` the *span* is the same, and ends with each turn: rules that act at its end act
//! again, and windows hold the turn's last queries. With `--compress context` the span stays the first context: nothing
//! of a conversation is compressed before it is seen.

use std::sync::Arc;

use super::core::{Pages, kept, rope_mode};
use super::setup::{Given, Plan};
use super::{Engine, EngineError, Prompt};
use crate::event::{Position, Settings};
use crate::model::chat::Date;
use crate::model::{Message, Model, Role};

/// A conversation in the model's own form.
#[derive(Clone, Debug)]
pub(super) struct Talk {
    began: Date,
    messages: Vec<Message>,
    /// The messages as the template renders them, up to where the newest answer begins.
    rendered: String,
}

impl Talk {
    /// A conversation of one message.
    pub(super) fn begin(model: &Model, text: &str) -> Result<Self, EngineError> {
        let mut talk = Self { began: Date::now(), messages: Vec::new(), rendered: String::new() };
        talk.rendered = talk.say(model, Role::User, text)?;
        Ok(talk)
    }

    /// The conversation in the model's own form, for the model to answer.
    pub(super) fn rendered(&self) -> &str {
        &self.rendered
    }

    fn say(&mut self, model: &Model, role: Role, text: &str) -> Result<String, EngineError> {
        self.messages.push(Message::new(role, text));
        let template = model.chat.as_ref().map_err(|why| EngineError::Setting(why.to_string()))?;
        Ok(template.render(&self.messages, self.began)?)
    }
}

/// How a turn was taken.
pub enum Said {
    /// The run goes on with so many tokens of it.
    Here(usize),
    /// The chat template renders earlier turns otherwise than they were fed: this run begins with all of them, and the
    /// one it comes from is over.
    Anew(Box<Engine>),
}

/// Where the newest turn lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct TurnStart {
    /// Position of its first token.
    pub(super) from: usize,
    /// Leading tokens that are still the answer's: drawn, but not fed before.
    pub(super) drawn: usize,
}

/// What a turn feeds.
struct Turn {
    ids: Vec<u32>,
    drawn: usize,
}

fn refuse<T>(why: impl Into<String>) -> Result<T, EngineError> {
    Err(EngineError::Setting(why.into()))
}

impl Engine {
    /// Goes on with what a person says. An answer under way ends where it is.
    ///
    /// # Errors
    /// The prompt is still being fed, the batch has several sequences, the text is empty, has a word that the model does
    /// not know, or does not fit into the context; the chat template refuses. The run is as it was then.
    pub fn say(&mut self, text: &str) -> Result<Said, EngineError> {
        if text.trim().is_empty() {
            return refuse("an empty turn is not fed");
        }
        if self.sequences.len() > 1 {
            return refuse(format!("a turn is for one sequence, this run has {}", self.sequences.len()));
        }
        if self.sequences[0].fed.len() < self.prompt.len() {
            return refuse("the prompt is not fed to its end");
        }
        let Some(talk) = &self.talk else {
            let turn = self.raw_turn(text)?;
            return self.take_turn(&turn).map(Said::Here);
        };
        let mut talk = talk.clone();
        let answer = self.model.tokenizer.text(&self.answer());
        let answer = answer.trim();
        talk.messages.push(Message::new(Role::Assistant, answer));
        let whole = talk.say(&self.model, Role::User, text)?;
        let behind = whole.strip_prefix(talk.rendered.as_str()).and_then(|rest| {
            if answer.is_empty() { Some(rest) } else { rest.trim_start().strip_prefix(answer) }
        });
        let Some(behind) = behind else {
            talk.rendered = whole;
            return self.anew(talk).map(Box::new).map(Said::Anew);
        };
        if behind.is_empty() {
            return refuse("the chat template makes nothing of this turn");
        }
        let turn = self.turn_of(self.model.tokenizer.encode_continuation(behind)?);
        let tokens = self.take_turn(&turn)?;
        talk.rendered = whole;
        self.talk = Some(talk);
        Ok(Said::Here(tokens))
    }

    /// Whether a token ends an answer in this run.
    pub fn ends(&self, id: u32) -> bool {
        !self.info.settings.ignore_eos && self.model.tokenizer.eos().contains(&id)
    }

    /// What the model has said to the newest turn, without the token that ends it.
    fn answer(&self) -> Vec<u32> {
        let s = &self.sequences[0];
        s.fed[self.prompt.len()..].iter().copied().chain(self.unended()).collect()
    }

    /// The token drawn last, unless it ends the answer.
    fn unended(&self) -> Option<u32> {
        self.sequences[0].pending.filter(|id| !self.model.tokenizer.eos().contains(id))
    }

    /// A text that simply goes on. A word list knows only its words, and most of them carry their space.
    fn raw_turn(&self, text: &str) -> Result<Turn, EngineError> {
        let tokenizer = &self.model.tokenizer;
        let text = if text.starts_with(char::is_whitespace) { text.to_owned() } else { format!(" {text}") };
        if let Some(word) = tokenizer.unknown_word(&text) {
            return refuse(format!("the model does not know the word '{word}'"));
        }
        Ok(self.turn_of(tokenizer.encode_continuation(&text)?))
    }

    /// A turn of these ids. What was drawn and not fed yet comes before them, but no end token: either they begin with
    /// it, or the answer goes on after all.
    fn turn_of(&self, ids: Vec<u32>) -> Turn {
        let pending = self.sequences[0].pending;
        match self.unended() {
            Some(last) => Turn { ids: [&[last], &ids[..]].concat(), drawn: 1 },
            None => Turn { drawn: usize::from(pending.is_some() && ids.first().copied() == pending), ids },
        }
    }

    fn take_turn(&mut self, turn: &Turn) -> Result<usize, EngineError> {
        let fed = self.sequences[0].fed.len();
        let room = (self.context() as usize).saturating_sub(fed);
        if turn.ids.len() > room {
            return refuse(format!(
                "the turn has {} tokens, {room} of the context of {} are left: r begins again",
                turn.ids.len(),
                self.context()
            ));
        }
        let mut prompt = self.sequences[0].fed.clone();
        prompt.extend_from_slice(&turn.ids);
        self.policy.check(prompt.len() as u32)?;
        self.prompt = prompt;
        if self.info.settings.compress == "prompt" {
            self.context_len = self.prompt.len();
        }
        self.turn = Some(TurnStart { from: fed, drawn: turn.drawn });
        let (span_len, prompt_len) = (self.context_len as Position, self.prompt.len() as Position);
        let s = &mut self.sequences[0];
        s.accumulators.iter_mut().for_each(|acc| acc.begin_span(span_len, prompt_len));
        (s.pending, s.finish, s.generated) = (None, None, 0);
        Ok(turn.ids.len())
    }

    /// A run like this one that begins with a whole conversation.
    fn anew(&self, talk: Talk) -> Result<Self, EngineError> {
        // The rendering is a prompt like any other, so that the line which repeats the run says it.
        let settings = Settings { chat: false, ..self.info.settings.clone() };
        let ids = self.model.tokenizer.encode_rendered(talk.rendered())?;
        let prompt = Prompt { text: talk.rendered.clone(), ..Prompt::default() };
        let given = Given { context_len: ids.len(), ids, talk: Some(talk) };
        let plan = Plan::with(&self.model, &settings, &prompt, given)?;
        let (needs, rope) = (
            kept(&plan.policy, plan.merge.as_ref()),
            rope_mode(&plan.policy, plan.read.as_ref(), plan.dtype),
        );
        let pages = if self.rows_stay() { Pages::OnDevice } else { Pages::OnHost };
        Self::keeping(self.backend.clone(), Arc::clone(&self.model), plan, needs, (rope, pages))
    }
}

#[cfg(test)]
mod tests;
