//! Figures as lines of JSON, and the statistics behind them.

/// One measured figure. `ratio` is what its bound is for.
pub struct Figure<'a> {
    pub name: &'a str,
    pub value: f64,
    pub unit: &'a str,
    pub peer: &'a str,
    pub peer_value: f64,
    pub ratio: f64,
    pub corpus: &'a str,
}

impl Figure<'_> {
    pub fn print(&self) {
        let Figure {
            name,
            value,
            unit,
            peer,
            peer_value,
            ratio,
            corpus,
        } = self;
        println!(
            "{{\"name\": {name:?}, \"value\": {value:.6}, \"unit\": {unit:?}, \"peer\": {peer:?}, \"peer_value\": {peer_value:.6}, \"ratio\": {ratio:.4}, \"corpus\": {corpus:?}}}"
        );
    }
}

/// Ours and the peer's, measured in turn.
#[derive(Default)]
pub struct Pairs(Vec<(f64, f64)>);

impl Pairs {
    pub fn push(&mut self, ours: f64, peer: f64) {
        self.0.push((ours, peer));
    }

    pub fn ours(&self) -> f64 {
        median(self.0.iter().map(|pair| pair.0))
    }

    pub fn peer(&self) -> f64 {
        median(self.0.iter().map(|pair| pair.1))
    }

    /// The median of ours / peer.
    pub fn ratio(&self) -> f64 {
        median(self.0.iter().map(|(ours, peer)| ours / peer))
    }
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    }
}
