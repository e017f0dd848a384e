//! Which pages will be asked for next, from those that were: sequential, strided and interleaved streams.
//!
//! A stream begins where each of three of the latest requests begins where the one before ended, or where they are equally
//! far apart, whatever came between them; where that is far, a fourth must agree. It goes the way that the majority of its last steps went (Boyer and Moore's vote, as in
//! Leap), so that one odd step does not end it. It is followed as deep as a part of what it has shown, so that where it ends
//! little was fetched in vain, and all the deeper the longer it goes on. What was fetched and never asked for lowers the depth
//! of all streams, down to nothing; then a stream is tried now and then. A stream also knows how much it read without a gap:
//! a long one is a scan.

use std::collections::VecDeque;
use std::ops::Range;

/// The step of requests each of which begins where the one before ended.
const NEXT: i64 = i64::MAX;
const RECENT: usize = 16;
const STREAMS: usize = 8;
const STEPS: usize = 8;
const NEAR: i64 = 8;
const SKIPPED: i64 = 4;
/// What is fetched ahead is at most this part of what the stream has shown: so much of what was read may be wasted when it
/// ends.
const SHARE: u64 = 4;
const START: u64 = 4;
const JUDGED: u64 = 32;
const REST: u32 = 256;

struct Stream {
    last: i64,
    /// Where the last request ended.
    end: i64,
    steps: VecDeque<i64>,
    /// From the start of a request to that of the next; [`NEXT`] from its end, however long it is.
    step: i64,
    /// Pages asked for where they were expected, since one was not.
    shown: u64,
    /// Pages fetched ahead, the last batch.
    ahead: Vec<u64>,
    sure: bool,
    /// Pages read in a row.
    run: u64,
}

/// What follows from a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// Pages to fetch now, the most urgent first.
    pub ahead: Vec<u64>,
    /// Pages that the request's stream has read in a row.
    pub run: u64,
}

/// The streams of one volume.
pub struct Streams {
    most: u64,
    limit: u64,
    /// Where the latest requests began and ended.
    recent: VecDeque<(i64, i64)>,
    streams: VecDeque<Stream>,
    used: u64,
    wasted: u64,
    rested: u32,
}

impl Stream {
    fn new(last: i64, end: i64, step: i64) -> Stream {
        Stream {
            last,
            end,
            steps: [step, step].into(),
            step,
            shown: 0,
            ahead: Vec::new(),
            sure: step == NEXT || step.abs() <= NEAR,
            run: 0,
        }
    }

    fn advance(&mut self, first: i64, end: i64) {
        let step = if first == self.end {
            NEXT
        } else {
            first - self.last
        };
        self.sure = step == self.step;
        if self.steps.len() == STEPS {
            self.steps.pop_front();
        }
        self.steps.push_back(step);
        (self.last, self.end) = (first, end);
        let step = majority(&self.steps).filter(|step| *step != 0);
        self.step = step.unwrap_or(self.step);
    }

    /// 0 where it was expected; the farther, the less it belongs here.
    fn distance(&self, first: i64) -> i64 {
        match self.step {
            NEXT => (first - self.end).abs(),
            step => (first - self.last - step).abs(),
        }
    }

    /// Whether a request is one of this stream: nearly where it was expected, or some steps farther.
    fn takes(&self, first: i64) -> bool {
        if first == self.end || self.step == NEXT {
            return (self.end..=self.end + NEAR).contains(&first);
        }
        let step = first - self.last;
        let steps = step.div_euclid(self.step);
        let far = step.rem_euclid(self.step) == 0 && (1..=SKIPPED).contains(&steps);
        self.distance(first) <= NEAR || far
    }
}

impl Streams {
    /// At most `limit` pages ahead of each stream; 0 is never any.
    pub fn new(limit: u64) -> Streams {
        Streams {
            most: limit,
            limit,
            recent: VecDeque::new(),
            streams: VecDeque::new(),
            used: 0,
            wasted: 0,
            rested: 0,
        }
    }

    /// Note a request for `pages` of a volume of `end` pages.
    pub fn advise(&mut self, pages: &Range<u64>, end: u64) -> Advice {
        let (first, count) = (pages.start as i64, pages.end - pages.start);
        if self.recent.back().is_some_and(|(start, _)| *start == first) {
            return Advice::default();
        }
        let end_of_it = pages.end as i64;
        let found = self.stream(first, end_of_it);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((first, end_of_it));
        if !found {
            return Advice::default();
        }
        let allowed = self.streams[0].sure && self.allowed();
        let limit = self.limit;
        let stream = &mut self.streams[0];
        let near = stream.step == NEXT || (1..=count as i64).contains(&stream.step);
        let follows = stream.sure && near;
        let more = match stream.step {
            NEXT => count,
            step => step as u64,
        };
        stream.run = if follows { stream.run + more } else { 0 };
        stream.shown = if stream.sure { stream.shown + count } else { 0 };
        let run = stream.run;
        let ahead = match allowed {
            true => stream.batch(first, count, end, limit),
            false => Vec::new(),
        };
        Advice { ahead, run }
    }

    /// Hear what became of pages that were fetched ahead.
    pub fn hear(&mut self, used: u64, wasted: u64) {
        self.used += used;
        self.wasted += wasted;
        let total = self.used + self.wasted;
        if total < JUDGED {
            return;
        }
        if 4 * self.used >= 3 * total {
            self.limit = self.most.min(START.max(2 * self.limit));
        } else if 2 * self.used < total {
            self.limit = if self.limit > START {
                self.limit / 2
            } else {
                0
            };
        }
        (self.used, self.wasted) = (0, 0);
    }

    /// Bring the stream of a request to the front; whether it has one.
    fn stream(&mut self, first: i64, end: i64) -> bool {
        let distances = self.streams.iter().map(|stream| stream.distance(first));
        let nearest = distances.enumerate().min_by_key(|(_, distance)| *distance);
        let nearest = nearest.filter(|(at, _)| self.streams[*at].takes(first));
        let stream = match nearest {
            Some((at, _)) => self.streams.remove(at).map(|mut stream| {
                stream.advance(first, end);
                stream
            }),
            None => self.begun(first, end),
        };
        let Some(stream) = stream else {
            return false;
        };
        self.streams.truncate(STREAMS - 1);
        self.streams.push_front(stream);
        true
    }

    /// The stream whose third request this is, if it is one's.
    fn begun(&self, first: i64, end: i64) -> Option<Stream> {
        let ends_at = |place: i64| self.recent.iter().find(move |(_, end)| *end == place);
        if ends_at(first).is_some_and(|(start, _)| ends_at(*start).is_some()) {
            return Some(Stream::new(first, end, NEXT));
        }
        let starts = || self.recent.iter().rev().map(|(start, _)| *start);
        let mut steps = starts()
            .map(|start| first - start)
            .filter(|step| *step != 0);
        let step = steps.find(|step| starts().any(|start| start == first - 2 * step))?;
        Some(Stream::new(first, end, step))
    }

    fn allowed(&mut self) -> bool {
        if self.limit > 0 {
            return true;
        }
        self.rested += 1;
        if self.rested < REST || self.most == 0 {
            return false;
        }
        self.rested = 0;
        self.limit = START.min(self.most);
        true
    }
}

impl Stream {
    /// The next batch, if it is time for one.
    fn batch(&mut self, first: i64, count: u64, end: u64, limit: u64) -> Vec<u64> {
        let depth = (self.shown / SHARE).min(limit);
        if depth < count {
            return Vec::new(); // the next request of this length would have to wait for the SAN all the same
        }
        let wanted = following(self.step, first, count as i64, depth);
        let wanted: Vec<u64> = wanted
            .into_iter()
            .filter_map(|page| u64::try_from(page).ok())
            .filter(|page| *page < end)
            .collect();
        let new: Vec<u64> = wanted
            .iter()
            .copied()
            .filter(|page| !self.ahead.contains(page))
            .collect();
        // Half of what was fetched is still ahead: wait, and fetch a batch worth its while.
        let full = wanted.len() as u64 == depth;
        if new.is_empty() || (!self.ahead.is_empty() && 2 * (new.len() as u64) < depth && full) {
            return Vec::new();
        }
        self.ahead = wanted;
        new
    }
}

/// The `depth` pages that requests like this one reach next, `step` apart.
fn following(step: i64, first: i64, count: i64, depth: u64) -> Vec<i64> {
    let depth = depth as usize;
    if step == NEXT || 0 < step && step <= count {
        return (first + count..).take(depth).collect();
    }
    if -count <= step && step < 0 {
        return (0..first).rev().take(depth).collect();
    }
    let starts = (1..).map(|n| first + n * step);
    starts
        .flat_map(|start| start..start + count)
        .take(depth)
        .collect()
}

/// The step that more than half of them are.
fn majority(steps: &VecDeque<i64>) -> Option<i64> {
    let (mut candidate, mut votes) = (0, 0);
    for &step in steps {
        if votes == 0 {
            candidate = step;
        }
        votes += if step == candidate { 1 } else { -1 };
    }
    let count = steps.iter().filter(|step| **step == candidate).count();
    (2 * count > steps.len()).then_some(candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pages fetched ahead of requests for single pages.
    fn fetched(streams: &mut Streams, requests: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let all = requests.into_iter();
        all.flat_map(|page| streams.advise(&(page..page + 1), 10_000).ahead)
            .collect()
    }

    #[test]
    fn a_sequential_stream_is_followed_ever_deeper_and_never_by_more_than_a_part_of_it() {
        let mut streams = Streams::new(64);
        let (mut beyond, mut deepest) = (100, 0);
        for page in 100..1000 {
            let ahead = streams.advise(&(page..page + 1), 10_000).ahead;
            beyond = beyond.max(ahead.last().map_or(0, |last| last + 1));
            let depth = beyond.saturating_sub(page + 1);
            assert!(depth <= (page - 100) / SHARE, "{depth} after {page}");
            deepest = deepest.max(depth);
        }
        assert_eq!(deepest, 64);
    }

    #[test]
    fn requests_longer_than_what_may_be_fetched_fetch_nothing_for_them() {
        let mut streams = Streams::new(64);
        let mut fetch = |n| streams.advise(&(16 * n..16 * n + 16), 10_000).ahead.len();
        assert_eq!((0..SHARE + 1).map(&mut fetch).sum::<usize>(), 0);
        assert_eq!(fetch(SHARE + 1), 16);
    }

    #[test]
    fn pages_that_are_asked_for_again_and_again_are_no_step() {
        let again = (0..40).map(|n| if n % 2 == 0 { 103 } else { 5000 });
        fetched(&mut Streams::new(64), (100..104).chain(again));
    }

    #[test]
    fn strides_backward_and_interleaved_streams_are_followed() {
        let strided = fetched(&mut Streams::new(64), (0..40).map(|n| 1000 + 32 * n));
        assert!(
            strided.contains(&(1000 + 32 * 40)) && strided.iter().all(|p| (p - 1000) % 32 == 0)
        );
        let back = fetched(&mut Streams::new(64), (500..520).rev());
        assert!(back.contains(&499));
        let two = (0..40).flat_map(|n| [100 + n, 5000 + 2 * n]);
        let two = fetched(&mut Streams::new(64), two);
        assert!(two.contains(&140) && two.contains(&5080), "{two:?}");
    }

    #[test]
    fn requests_of_any_length_are_a_stream_where_each_begins_at_the_end_of_the_one_before() {
        let (mut streams, mut at, mut fetched) = (Streams::new(64), 500, Vec::new());
        let mut late = 0;
        for length in [1, 4, 16, 8, 4, 16, 1].repeat(8) {
            let advice = streams.advise(&(at..at + length), 10_000);
            fetched.extend(advice.ahead);
            late = if at < 800 { at + length } else { late };
            at += length;
        }
        assert!(
            (late..at).all(|page| fetched.contains(&page)),
            "{fetched:?}"
        );
    }

    #[test]
    fn random_requests_fetch_nothing() {
        let mut at = 1u64;
        let random = std::iter::repeat_with(|| {
            at = at
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            at >> 51
        });
        assert_eq!(fetched(&mut Streams::new(64), random.take(200)).len(), 0);
    }

    #[test]
    fn what_does_not_pay_ends_and_is_tried_again_now_and_then() {
        let mut streams = Streams::new(64);
        (0..10).for_each(|_| streams.hear(0, 100));
        assert_eq!(fetched(&mut streams, 100..300).len(), 0);
        assert_ne!(fetched(&mut streams, 300..500).len(), 0);
    }

    #[test]
    fn a_run_is_as_long_as_what_was_read_in_a_row() {
        let mut streams = Streams::new(0);
        let mut run = |pages: Range<u64>| streams.advise(&pages, 10_000).run;
        assert_eq!([run(0..8), run(8..16)], [0, 0]);
        assert!((2..100).all(|n| run(8 * n..8 * n + 8) == 8 * (n - 1)));
        assert_eq!(run(5000..5008), 0);
    }
}
