//! The order of a process's exchanges: one at a time, as its program asks for them.
//!
//! A rank has several communicators, and one of them is called by a thread beside the rank's own (ZeRO's next unit).
//! Each has a CUDA stream, but a GPU has few queues for all streams: two may share one, and then a communicator's
//! kernel, which waits for its peers on the GPU, holds back the other's. If rank 0 had queued A before B, and rank 1 B
//! before A, both would wait for ever. A lock alone would not help: rank 0 could hold it for A while rank 1 holds it
//! for B. What helps is one order on all ranks, and there is one: a rank's own thread asks for all exchanges, also for
//! those that the other thread carries out, and all ranks run the same program. So a place in the order is taken where
//! an exchange is asked for, and an exchange begins when those before it have ended. In any two processes the exchanges
//! that both take part in then have the same order, so the earliest one that has not ended can always go on.
//!
//! `CUDA_DEVICE_MAX_CONNECTIONS` (see [`crate::cuda::before_start`]) makes shared queues rarer, for copies and
//! computing as well.

use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Who is next.
#[derive(Default)]
pub(super) struct Order(Mutex<State>);

#[derive(Default)]
struct State {
    /// The number of the next turn to be taken, and of the one whose exchange may take place.
    taken: u64,
    at: u64,
    /// Turns behind it that are over already: their exchanges were given up.
    over: BTreeSet<u64>,
}

/// A place in the order, until it is dropped.
pub(super) struct Turn {
    order: Arc<Order>,
    number: u64,
}

impl Order {
    /// The place behind all that were taken.
    pub fn take(self: &Arc<Self>) -> Turn {
        let mut state = self.0.lock();
        state.taken += 1;
        Turn { order: self.clone(), number: state.taken - 1 }
    }
}

impl Turn {
    /// Whether all before it have ended.
    pub fn has_come(&self) -> bool {
        self.order.0.lock().at == self.number
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.order.0.lock();
        state.over.insert(self.number);
        while let Some(first) = state.over.first().copied().filter(|&first| first == state.at) {
            state.over.remove(&first);
            state.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_in_the_order_they_were_taken_in() {
        let order = Arc::new(Order::default());
        let [a, b, c, d] = [(); 4].map(|()| order.take());
        let come = |turns: &[&Turn]| turns.iter().map(|turn| turn.has_come()).collect::<Vec<_>>();
        assert_eq!(come(&[&a, &b, &c, &d]), [true, false, false, false]);
        drop(b); // given up before its time
        assert_eq!(come(&[&a, &c, &d]), [true, false, false]);
        drop(a);
        assert_eq!(come(&[&c, &d]), [true, false]);
        drop(c);
        assert!(d.has_come());
        drop(d);
        assert!(order.take().has_come());
    }
}
