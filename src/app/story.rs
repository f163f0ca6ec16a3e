//! The hint line: what to try next. Each hint goes once it was followed; the demo has a story, other runs a short list.

use super::{App, Overlay, View};
use crate::engine::Status;
use crate::event::{Position, Tuning};

/// What the person has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Story {
    /// The model was run.
    pub(super) played: bool,
    /// The budget was lowered by hand.
    pub(super) lowered: bool,
    /// The prompt was run again after that.
    reran: bool,
    /// A wrong answer was seen.
    wrong_seen: bool,
    /// The Evictions were opened after the wrong answer.
    searched: bool,
    /// A victim was selected there.
    found: bool,
    /// The budget was raised after victims.
    pub(super) raised: bool,
    /// And the prompt was run again.
    restored: bool,
    /// The parameter panel was opened.
    tuned: bool,
    /// A token was selected.
    looked: bool,
}

impl Story {
    pub(super) fn rerun(&mut self) {
        self.reran |= self.lowered;
        self.restored |= self.raised;
    }

    pub(super) fn visited(&mut self, view: View) {
        self.searched |= view == View::Evictions && self.wrong_seen;
    }

    pub(super) fn looked_at(&mut self, position: Option<Position>) {
        self.looked |= position.is_some();
        self.found |= self.searched && position.is_some();
    }

    pub(super) fn tuned(&mut self, tuning: &Tuning) {
        self.tuned |= tuning.name != "pace";
    }
}

impl App {
    /// Brings the hint line up to what has happened.
    pub(super) fn tell(&mut self) {
        self.story.wrong_seen |= self.right == Some(false);
        self.story.tuned |= self.overlays.iter().any(|o| matches!(o, Overlay::Params));
        self.story.searched |= self.story.wrong_seen && self.view == View::Evictions;
        let stepped = self.newest().is_some_and(|s| s.seqs.iter().any(|q| q.sampled_count > 1));
        self.story.played |= stepped;
        let hint = if !self.is_live() {
            self.replay_hint()
        } else if self.is_demo() {
            self.demo_hint()
        } else {
            self.live_hint()
        };
        self.hint = hint.map(str::to_owned);
    }

    /// The embedded model on a prompt with a known answer.
    fn is_demo(&self) -> bool {
        self.run.as_ref().is_some_and(|r| r.model.source.is_empty() && r.expected.is_some())
    }

    fn busy(&self) -> Option<&'static str> {
        match self.status {
            Status::Loading { .. } => Some("the model is being read"),
            Status::Listening => Some("I types the first turn of the conversation"),
            Status::Reference => Some("computing the full-cache answer, to compare with"),
            Status::Running if self.newest().is_none_or(|s| s.seqs.iter().all(|q| q.sampled_count == 0)) => {
                Some("the prompt is being fed, chunk by chunk; Space pauses")
            }
            _ => None,
        }
    }

    fn demo_hint(&self) -> Option<&'static str> {
        let s = &self.story;
        let ended = matches!(self.status, Status::Finished(_));
        if let Some(busy) = self.busy() {
            return Some(busy);
        }
        if !s.played {
            return Some("Space runs the model, . takes one step");
        }
        if s.restored {
            return None;
        }
        if s.raised {
            return Some("what was evicted stays lost: r runs again, with the higher budget from the start");
        }
        if s.wrong_seen {
            return Some(if !s.searched {
                "wrong: 4 opens the Evictions, where the pass key is among the victims"
            } else if !s.found {
                "/ filters the victims (token~ and a piece of the key), j and k select one: its score, cutoff and age"
            } else {
                "now raise the budget (p): what was evicted does not come back until r"
            });
        }
        if s.lowered && !s.reran {
            return Some("r runs the prompt again with the lower budget");
        }
        match (self.right, ended) {
            (Some(true), _) if s.reran => Some("still right: lower the budget further (p) and run again (r)"),
            (Some(true), _) => Some("right. p opens the parameters: lower the budget, then r runs again"),
            (_, true) => Some("p opens the parameters, r runs again"),
            _ => Some("{ and } change the pace, Space pauses, , and . walk the steps"),
        }
    }

    fn live_hint(&self) -> Option<&'static str> {
        let s = &self.story;
        if let Some(busy) = self.busy() {
            return Some(busy);
        }
        if !s.played {
            return Some("Space runs the model, . takes one step");
        }
        if self.chats() && self.prompt.turns.is_empty() && matches!(self.status, Status::Finished(_)) {
            return Some("I types the next turn: it goes on with the same cache");
        }
        if !s.looked {
            return Some("h and l select a token: every pane shows what became of it");
        }
        (!s.tuned).then_some("p opens the parameters, r runs again with them")
    }

    fn replay_hint(&self) -> Option<&'static str> {
        let s = &self.story;
        if self.status != Status::Running && self.time.at == self.known_steps().map(|(first, _)| first) {
            return Some("Space plays the recording, . and , step, g 5 jumps to the middle");
        }
        (!s.looked).then_some("h and l select a token: every pane shows what became of it")
    }
}
