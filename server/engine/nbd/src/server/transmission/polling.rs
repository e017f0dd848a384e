//! Bounded adaptive polling: to look for the next request for a while before sleeping until it comes.
//!
//! Where client and server take turns, most of a round trip is two sleeps and two wake-ups; looking spares one of them and
//! costs processor time. So it is done as long as it mostly finds something, and given up for a while where it does not.

use std::io;
use std::time::{Duration, Instant};

/// Successes that are remembered at most.
const MOST: i32 = 16;
/// The cost of polling in vain, in successes.
const VAIN: i32 = 4;
/// Waits without polling, once polling does not pay off.
const REST: i32 = 256;

pub struct Polling {
    limit: Duration,
    /// Above 0: how well polling has paid off. Below: how many waits until it is tried again.
    credit: i32,
}

impl Polling {
    pub fn new(limit: Duration) -> Polling {
        Polling { limit, credit: 1 }
    }

    /// Receive by a function that waits if told to, and otherwise returns None when there is nothing.
    pub fn receive(
        &mut self,
        receive: &mut impl FnMut(bool) -> io::Result<Option<usize>>,
    ) -> io::Result<usize> {
        if !self.limit.is_zero() {
            if self.credit > 0 {
                if let Some(received) = self.look(receive)? {
                    return Ok(received);
                }
            } else {
                self.credit += 1;
            }
        }
        Ok(receive(true)?.unwrap_or(0))
    }

    fn look(
        &mut self,
        receive: &mut impl FnMut(bool) -> io::Result<Option<usize>>,
    ) -> io::Result<Option<usize>> {
        let start = Instant::now();
        loop {
            if let Some(received) = receive(false)? {
                self.credit = (self.credit + 1).min(MOST);
                return Ok(Some(received));
            }
            if start.elapsed() >= self.limit {
                self.credit -= VAIN;
                if self.credit <= 0 {
                    self.credit = -REST;
                }
                return Ok(None);
            }
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks made in one wait, when what is waited for comes only to those who sleep.
    fn looks(polling: &mut Polling) -> u32 {
        let mut looks = 0;
        let mut receive = |wait: bool| {
            looks += u32::from(!wait);
            Ok(wait.then_some(1))
        };
        assert_eq!(polling.receive(&mut receive).unwrap(), 1);
        looks
    }

    #[test]
    fn what_does_not_pay_is_given_up_and_tried_again() {
        let mut polling = Polling::new(Duration::from_micros(1));
        let vain: u32 = (0..10).map(|_| looks(&mut polling)).sum();
        assert!(vain > 0, "it was never tried");
        assert_eq!((0..100).map(|_| looks(&mut polling)).sum::<u32>(), 0);
        let again: u32 = (0..REST).map(|_| looks(&mut polling)).sum();
        assert!(again > 0, "it was never tried again");
    }

    #[test]
    fn zero_never_looks() {
        let mut polling = Polling::new(Duration::ZERO);
        assert_eq!((0..1000).map(|_| looks(&mut polling)).sum::<u32>(), 0);
    }
}
