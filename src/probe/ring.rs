//! A bounded hand-over from one thread to another that never makes the sender wait.
//!
//! Built on [`rtrb`], a lock-free ring for one producer and one consumer. The consumer may be a task of an async loop
//! ([`Receiver::ready`]) or a thread of its own ([`Receiver::wait`]); both sleep on one waker, which costs the sender an
//! atomic operation per push.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;

/// A ring for up to `capacity` values (at least 1).
pub fn ring<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let (producer, consumer) = rtrb::RingBuffer::new(capacity.max(1));
    let shared = Arc::new(Shared::default());
    (Sender { producer, shared: Arc::clone(&shared) }, Receiver { consumer, shared })
}

#[derive(Debug, Default)]
struct Shared {
    waker: AtomicWaker,
    closed: AtomicBool,
    dropped: AtomicU64,
}

/// The engine's end.
#[derive(Debug)]
pub struct Sender<T> {
    producer: rtrb::Producer<T>,
    shared: Arc<Shared>,
}

/// The consumer's end.
#[derive(Debug)]
pub struct Receiver<T> {
    consumer: rtrb::Consumer<T>,
    shared: Arc<Shared>,
}

impl<T: Send> Sender<T> {
    /// Hands a value over, or gives it back when the ring is full. Does not count as a drop: the caller may keep it.
    pub fn push(&mut self, value: T) -> Result<(), T> {
        self.producer.push(value).map_err(|rtrb::PushError::Full(value)| value)?;
        self.shared.waker.wake();
        Ok(())
    }

    /// Hands a value over, or drops and counts it when the ring is full. Whether it went.
    pub fn offer(&mut self, value: T) -> bool {
        let went = self.push(value).is_ok();
        if !went {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
        went
    }

    /// Values that [`offer`](Self::offer) dropped so far.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Free places.
    pub fn free(&self) -> usize {
        self.producer.slots()
    }

    /// Whether the receiver is gone.
    pub fn is_abandoned(&self) -> bool {
        self.producer.is_abandoned()
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.waker.wake();
    }
}

impl<T: Send> Receiver<T> {
    /// The oldest value, if there is one.
    pub fn pop(&mut self) -> Option<T> {
        self.consumer.pop().ok()
    }

    /// The values there are now, oldest first. What arrives meanwhile waits for the next call, so a fast sender cannot
    /// hold the consumer here.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        let there = self.consumer.slots();
        (0..there).map_while(|_| self.pop())
    }

    /// Values dropped so far by the sender's [`offer`](Sender::offer).
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Whether the sender is gone and everything it sent has been taken.
    pub fn is_finished(&self) -> bool {
        // In this order: what was sent before the close is visible after it.
        self.shared.closed.load(Ordering::Acquire) && self.consumer.is_empty()
    }

    /// Waits until there is a value (true), or there will be none any more (false). For an async loop.
    pub async fn ready(&mut self) -> bool {
        std::future::poll_fn(|context| self.poll_ready(context)).await
    }

    /// Waits at most `timeout` for a value, on the calling thread. Whether there is one.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        let start = Instant::now();
        let waker = Waker::from(Arc::new(Parked(std::thread::current())));
        loop {
            if let Poll::Ready(answer) = self.poll_ready(&mut Context::from_waker(&waker)) {
                return answer;
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return false;
            }
            std::thread::park_timeout(left);
        }
    }

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        if !self.consumer.is_empty() {
            return Poll::Ready(true);
        }
        // Register, then look again: a push between the two looks would otherwise wake nobody.
        self.shared.waker.register(context.waker());
        if self.is_finished() {
            return Poll::Ready(false);
        }
        if self.consumer.is_empty() { Poll::Pending } else { Poll::Ready(true) }
    }
}

/// Wakes a parked thread.
struct Parked(Thread);

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn a_full_ring_gives_the_value_back_and_only_an_offer_counts_as_dropped() {
        let (mut tx, mut rx) = ring(2);
        assert_eq!((tx.push(1), tx.push(2), tx.push(3)), (Ok(()), Ok(()), Err(3)));
        assert_eq!((tx.dropped(), tx.free()), (0, 0));
        assert!(!tx.offer(4));
        assert_eq!((tx.dropped(), rx.dropped()), (1, 1));
        assert_eq!(rx.drain().collect::<Vec<_>>(), [1, 2]);
        assert!(tx.offer(5) && !rx.is_finished());
        drop(tx);
        assert!(!rx.is_finished(), "5 is still there");
        assert_eq!(rx.pop(), Some(5));
        assert!(rx.is_finished());
    }

    #[test]
    fn two_threads_keep_the_order_and_lose_only_what_was_counted() {
        const SENT: u64 = 20_000;
        let (mut tx, mut rx) = ring(64);
        let sender = std::thread::spawn(move || {
            for value in 0..SENT {
                tx.offer(value);
            }
            tx.dropped()
        });
        let mut received = Vec::new();
        while rx.wait(SOON) {
            received.extend(rx.drain());
        }
        assert!(rx.is_finished());
        assert!(received.is_sorted_by(|a, b| a < b));
        let dropped = sender.join().unwrap();
        assert_eq!((received.len() as u64 + dropped, rx.dropped()), (SENT, dropped));
    }

    #[test]
    fn a_waiting_thread_hears_of_every_value_and_of_the_end() {
        let (mut tx, mut rx) = ring(1);
        let (mut ack_tx, mut ack_rx) = ring(1);
        let consumer = std::thread::spawn(move || {
            let mut received = Vec::new();
            while rx.wait(SOON) {
                received.extend(rx.drain());
                ack_tx.push(()).unwrap();
            }
            received
        });
        for value in 0..200 {
            tx.push(value).unwrap();
            assert!(ack_rx.wait(SOON), "the consumer slept through {value}");
            ack_rx.pop();
        }
        drop(tx);
        assert_eq!(consumer.join().unwrap(), (0..200).collect::<Vec<_>>());
    }

    #[test]
    fn an_async_loop_is_woken_and_told_of_the_end() {
        let (mut tx, mut rx) = ring(4);
        let sender = std::thread::spawn(move || {
            for value in 0..100 {
                let mut value = value;
                while let Err(back) = tx.push(value) {
                    value = back;
                    std::thread::yield_now();
                }
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let received = runtime.block_on(async {
            let mut received = Vec::new();
            while rx.ready().await {
                received.extend(rx.drain());
            }
            received
        });
        sender.join().unwrap();
        assert_eq!(received, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_wait_ends_without_a_sender_and_a_sender_sees_that_nobody_listens() {
        let (tx, mut rx) = ring::<u8>(1);
        assert!(!rx.wait(Duration::ZERO));
        assert!(!tx.is_abandoned());
        drop(rx);
        assert!(tx.is_abandoned());
    }
}
