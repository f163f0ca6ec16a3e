//! A conversation on the engine's thread: when what a person says is fed.

use std::sync::Arc;

use super::{Loop, Mode};
use crate::engine::link::{Prompt, Status};
use crate::engine::{Engine, EngineError, Said, check};
use crate::event::Settings;
use crate::model::Model;

/// Told where a turn cannot go on with the cache there is.
pub const ANEW: &str = "the chat template rewrites what was said before: the whole conversation is fed again";

impl Loop {
    /// Whether a conversation has no first turn yet: then there is nothing to begin with but its template.
    pub(super) fn listens(&mut self, model: &Model, settings: &Settings, prompt: &Prompt) -> bool {
        if !settings.chat || !prompt.text.trim().is_empty() {
            return false;
        }
        if let Err(why) = &model.chat {
            self.fail(&EngineError::Setting(why.to_string()));
        } else {
            self.mode = Mode::Ended;
            self.opening = Some(settings.clone());
            self.tell(Status::Listening);
        }
        true
    }

    /// Takes a turn in: at once where the model waits for it, else after the present answer.
    pub(super) fn hear_turn(&mut self, text: String, model: &Arc<Model>) {
        let answer = match self.opening.take() {
            Some(settings) => self.open(&text, model, settings),
            None => self.take_turn(&text),
        };
        self.tell(match answer {
            Ok(line) => Status::Said { text, line },
            Err(why) => Status::Unsaid(why),
        });
    }

    /// The first turn of a conversation.
    fn open(&mut self, text: &str, model: &Arc<Model>, settings: Settings) -> Result<String, String> {
        let prompt = Prompt { text: text.to_owned(), ..Prompt::default() };
        let fit = if text.trim().is_empty() {
            Err("an empty turn is not fed".to_owned())
        } else {
            check(model, &settings, &prompt).map_err(|why| why.to_string())
        };
        if fit.is_err() {
            self.opening = Some(settings);
        } else {
            // Whoever types the first turn wants it answered.
            self.pause_at_decode = false;
            self.begin(model, &settings, &prompt, false);
        }
        fit.map(|()| "turn 1".to_owned())
    }

    fn take_turn(&mut self, text: &str) -> Result<String, String> {
        let Some((_, engine)) = &self.engine else {
            return Err("there is no run to go on with: r begins one".into());
        };
        let waits = matches!(self.mode, Mode::Paused | Mode::Ended) && engine.is_decoding();
        if waits && self.turns.is_empty() {
            return self.say(text);
        }
        self.turns.push_back(text.to_owned());
        Ok("said once the model has answered".into())
    }

    /// Says the next turn that waits for the end of an answer; whether there was one, and it was taken.
    pub(super) fn say_next(&mut self) -> bool {
        let Some(text) = self.turns.pop_front() else { return false };
        let said = self.say(&text);
        if let Err(why) = &said {
            self.turns.clear();
            self.tell(Status::Unsaid(why.clone()));
        }
        said.is_ok()
    }

    fn say(&mut self, text: &str) -> Result<String, String> {
        let Some((model, engine)) = &mut self.engine else { return Err("there is no run".into()) };
        let model = Arc::clone(model);
        let said = engine.say(text).map_err(|why| why.to_string())?;
        let line = match &said {
            Said::Here(tokens) => format!("turn {}: {tokens} tokens", self.said.len() + 2),
            Said::Anew(_) => ANEW.to_owned(),
        };
        if let Said::Anew(engine) = said {
            self.wind_up();
            if !self.start(&model, *engine) {
                return Err("the conversation could not begin again".into());
            }
        }
        self.said.push(text.to_owned());
        self.go_from_here();
        Ok(line)
    }
}

/// Says turns that are known before to an engine whose answer has ended; whether it goes on. `ids` are those of the run
/// so far.
pub(super) fn say_to(
    engine: &mut Engine,
    turns: &mut std::slice::Iter<'_, String>,
    ids: &mut Vec<u32>,
) -> Result<bool, EngineError> {
    let Some(text) = turns.next() else { return Ok(false) };
    if let Said::Anew(anew) = engine.say(text)? {
        *engine = *anew;
        ids.clear();
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tests::{Ear, finished, folded, start};
    use crate::engine::{Command, Prompt, Status};
    use crate::event::Settings;

    const TURN: &str = "One day Leo took a red ball";

    fn turns(ear: &Ear) -> usize {
        ear.state().seqs[0].turns().len()
    }

    fn said(status: &Status) -> bool {
        matches!(status, Status::Said { .. })
    }

    #[test]
    fn turns_are_said_recorded_and_said_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("talk.mcap");
        let (live, mut ear, prompt, settings) = start("h2o:budget=50%", false, Some(file.clone()));
        ear.until(finished);
        let send = |command| live.commands.send(command).unwrap();
        send(Command::Say("Leo met nobody".into()));
        ear.until(|s| matches!(s, Status::Unsaid(why) if why.contains("'met'")));
        assert_eq!(turns(&ear), 1);
        send(Command::Say(TURN.into()));
        ear.until(said).until(finished);
        assert_eq!(turns(&ear), 2);
        let (hash, ids) = (ear.state().hash, ear.state().seqs[0].generated_ids());

        // The same conversation again, and what the full cache would have said in it.
        let again = Prompt { turns: vec![TURN.into()], ..prompt };
        send(Command::Rerun(Box::new(settings.clone()), again.clone()));
        ear.until(|s| *s == Status::Reference).until(finished);
        assert_eq!((ear.state().hash, turns(&ear)), (hash, 2));
        let reference = ear.reference.clone().unwrap();
        assert_eq!(reference.ids.len(), ids.len());
        let full = Settings { policy: "full".into(), ..settings };
        send(Command::Rerun(Box::new(full), again));
        ear.until(finished);
        assert_eq!(ear.state().seqs[0].generated_ids(), reference.ids);
        live.finish().unwrap();
        assert_eq!(folded(Path::new(&file)).hash, hash);
        assert_eq!(folded(&folder.path().join("talk-2.mcap")).hash, hash);
    }

    #[test]
    fn a_paused_answer_is_cut_short_and_a_running_one_is_heard_out() {
        let (live, mut ear, ..) = start("full", true, None);
        ear.until(|s| *s == Status::Paused);
        let send = |command| live.commands.send(command).unwrap();
        send(Command::StepOnce);
        ear.until(|s| *s == Status::Paused);
        send(Command::Say(TURN.into()));
        send(Command::Say(TURN.into()));
        ear.until(|s| matches!(s, Status::Said { line, .. } if line.contains("once the model has answered")));
        ear.until(finished);
        let answers: Vec<usize> = ear.state().seqs[0].turns().iter().map(|turn| turn.ids().len()).collect();
        assert_eq!(answers, [2, 12, 12]);
        live.finish().unwrap();
    }
}
