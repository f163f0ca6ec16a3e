//! Handing items to listeners without ever waiting for one.

use std::collections::VecDeque;
use std::sync::Arc;

use super::link::Item;
use crate::event::{RunInfo, Step};
use crate::probe::{Receiver, Sender, ring};
use crate::state::{FoldError, State};

/// Words kept for a listener whose ring is full; beyond it the oldest go.
const MAX_BACKLOG: usize = 64;

/// Names a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerId(u32);

/// One engine, any number of listeners.
///
/// The feed folds every step itself. That state is what a listener that lost steps goes on from, what a recording
/// started in mid-run begins with, and what headless runs are summed up from.
#[derive(Default)]
pub struct Feed {
    listeners: Vec<Listener>,
    state: Option<State>,
    next_id: u32,
}

struct Listener {
    id: ListenerId,
    ring: Sender<Item>,
    /// Words that did not fit; steps are never kept here.
    backlog: VecDeque<Item>,
    /// Steps lost since the last resynchronisation.
    lost: u64,
    /// Steps lost in all.
    lost_before: u64,
    capacity: usize,
}

impl Listener {
    fn step(&mut self, step: &Arc<Step>) {
        if self.lost > 0 || !self.backlog.is_empty() || self.ring.push(Item::Step(Arc::clone(step))).is_err()
        {
            self.lost += 1;
        }
    }

    fn tell(&mut self, item: Item) {
        if matches!(item, Item::Begin(_)) {
            // What was lost of the old run does not matter any more.
            (self.lost, self.lost_before) = (0, 0);
            self.backlog.clear();
        }
        if self.lost > 0 || !self.backlog.is_empty() {
            self.defer(item);
        } else if let Err(item) = self.ring.push(item) {
            self.defer(item);
        }
    }

    fn defer(&mut self, item: Item) {
        if self.backlog.len() == MAX_BACKLOG {
            self.backlog.pop_front();
        }
        self.backlog.push_back(item);
    }

    /// Once half the ring is free again: the state in place of the lost steps, then the words that waited.
    fn catch_up(&mut self, state: Option<&State>) {
        if self.ring.free() * 2 < self.capacity {
            return;
        }
        // A run that began while the ring was full comes before its state.
        while let Some(Item::Begin(_)) = self.backlog.front() {
            let Some(begin) = self.backlog.pop_front() else { break };
            if let Err(begin) = self.ring.push(begin) {
                self.backlog.push_front(begin);
                return;
            }
        }
        if self.lost > 0 {
            let Some(state) = state else { return };
            let mut state = state.clone();
            state.gap_steps = self.lost_before + self.lost;
            if self.ring.push(Item::Resync(Box::new(state))).is_err() {
                return;
            }
            self.lost_before += self.lost;
            self.lost = 0;
        }
        while let Some(item) = self.backlog.pop_front() {
            if let Err(item) = self.ring.push(item) {
                self.backlog.push_front(item);
                return;
            }
        }
    }
}

impl Feed {
    /// A new listener with a ring of `capacity` items. Joining a run under way it hears [`Item::Begin`] and the state
    /// so far first.
    pub fn listen(&mut self, capacity: usize) -> (ListenerId, Receiver<Item>) {
        let (ring, receiver) = ring(capacity);
        let id = ListenerId(self.next_id);
        self.next_id += 1;
        let mut listener = Listener { id, ring, backlog: VecDeque::new(), lost: 0, lost_before: 0, capacity };
        if let Some(state) = &self.state {
            listener.tell(Item::Begin(Arc::clone(&state.run)));
            if state.step.is_some() {
                listener.tell(Item::Resync(Box::new(state.clone())));
            }
        }
        self.listeners.push(listener);
        (id, receiver)
    }

    /// Lets a listener go: its ring ends after what it still holds.
    pub fn dismiss(&mut self, id: ListenerId) {
        self.listeners.retain(|l| l.id != id);
    }

    /// A new run.
    ///
    /// # Errors
    /// The model's shape is beyond what a state holds.
    pub fn begin(&mut self, info: &Arc<RunInfo>) -> Result<(), FoldError> {
        self.state = Some(State::new(Arc::clone(info))?);
        self.tell(&Item::Begin(Arc::clone(info)));
        Ok(())
    }

    /// One more step, to the state and to everyone who keeps up.
    ///
    /// # Errors
    /// The step does not follow from those before: a fault of ours.
    pub fn step(&mut self, step: Step) -> Result<Arc<Step>, FoldError> {
        let step = Arc::new(step);
        if let Some(state) = &mut self.state {
            state.fold(&step)?;
        }
        let state = self.state.as_ref();
        self.listeners.retain(|l| !l.ring.is_abandoned());
        for listener in &mut self.listeners {
            if listener.lost > 0 || !listener.backlog.is_empty() {
                // The state already holds this step.
                listener.lost += 1;
                listener.catch_up(state);
            } else {
                listener.step(&step);
            }
        }
        Ok(step)
    }

    /// A word that is not a step.
    pub fn tell(&mut self, item: &Item) {
        for listener in &mut self.listeners {
            listener.catch_up(self.state.as_ref());
            listener.tell(item.clone());
        }
    }

    /// Gives listeners that lag another chance; called while the engine waits.
    pub fn nudge(&mut self) {
        for listener in &mut self.listeners {
            listener.catch_up(self.state.as_ref());
        }
    }

    /// Whether a ring is nearly full: attention pictures should be left out until it is not.
    pub fn is_crowded(&self) -> bool {
        self.listeners.iter().any(|l| l.lost > 0 || l.ring.free() * 4 < l.capacity)
    }

    /// Everything so far, folded.
    pub fn state(&self) -> Option<&State> {
        self.state.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ModelCard;
    use crate::event::step::tests::plain_step;

    fn info() -> Arc<RunInfo> {
        let model = ModelCard { layers: 1, heads: 1, kv_heads: 1, head_dim: 2, ..ModelCard::default() };
        Arc::new(RunInfo { model, ..RunInfo::default() })
    }

    #[test]
    fn a_listener_that_lags_goes_on_from_a_state_equal_to_the_steps_it_lost() {
        let mut feed = Feed::default();
        let (_, mut rx) = feed.listen(8);
        feed.begin(&info()).unwrap();
        for i in 0..40 {
            feed.step(plain_step(i)).unwrap();
        }
        assert!(feed.is_crowded());
        let heard: Vec<Item> = rx.drain().collect();
        assert_eq!(heard.len(), 8);
        feed.step(plain_step(40)).unwrap();
        feed.step(plain_step(41)).unwrap();
        let mut state: Option<State> = None;
        for item in heard.into_iter().chain(rx.drain()) {
            match item {
                Item::Begin(info) => state = Some(State::new(info).unwrap()),
                Item::Step(step) => state.as_mut().unwrap().fold(&step).unwrap(),
                Item::Resync(all) => state = Some(*all),
                _ => {}
            }
        }
        let state = state.unwrap();
        assert_eq!(state.step, Some(41));
        assert_eq!(state.gap_steps, 34, "steps 7 to 40 were lost");
        assert_eq!(state.hash, feed.state().unwrap().hash);
    }

    #[test]
    fn words_wait_for_a_full_ring_and_a_new_run_forgets_the_old() {
        let mut feed = Feed::default();
        let (_, mut rx) = feed.listen(4);
        feed.begin(&info()).unwrap();
        for i in 0..9 {
            feed.step(plain_step(i)).unwrap();
        }
        feed.begin(&info()).unwrap();
        feed.tell(&Item::Status(crate::engine::Status::Paused));
        assert_eq!(rx.drain().count(), 4);
        feed.nudge();
        feed.step(plain_step(0)).unwrap();
        let heard: Vec<Item> = rx.drain().collect();
        assert!(matches!(heard[0], Item::Begin(_)), "{heard:?}");
        assert!(matches!(heard[1], Item::Status(_)), "{heard:?}");
        assert!(matches!(heard[2], Item::Step(_)), "{heard:?}");
    }

    #[test]
    fn who_joins_late_hears_the_run_and_its_state() {
        let mut feed = Feed::default();
        feed.begin(&info()).unwrap();
        feed.step(plain_step(0)).unwrap();
        let (id, mut rx) = feed.listen(8);
        let heard: Vec<Item> = rx.drain().collect();
        assert!(matches!((&heard[0], &heard[1]), (Item::Begin(_), Item::Resync(_))), "{heard:?}");
        feed.dismiss(id);
        assert!(rx.is_finished());
    }
}
