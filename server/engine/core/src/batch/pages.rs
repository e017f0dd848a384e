//! The pages of a batch, wherever they lie: each on its own, or neighbours in one buffer.

/// Pages on their way in.
pub trait Source {
    fn count(&self) -> usize;
    fn index(&self, position: usize) -> u32;
    /// The page, or the block that stands for it.
    fn bytes(&self, position: usize) -> &[u8];
}

/// Room for pages on their way out.
pub trait Room {
    fn page(&mut self, position: usize) -> &mut [u8];
}

impl Source for &[(u32, &[u8])] {
    fn count(&self) -> usize {
        self.len()
    }

    fn index(&self, position: usize) -> u32 {
        self[position].0
    }

    fn bytes(&self, position: usize) -> &[u8] {
        self[position].1
    }
}

impl Room for &mut [&mut [u8]] {
    fn page(&mut self, position: usize) -> &mut [u8] {
        self[position]
    }
}

/// Neighbouring pages from an index on, one after the other in a buffer.
pub struct Neighbours<B> {
    pub first: u32,
    pub page_size: usize,
    pub bytes: B,
}

impl Source for Neighbours<&[u8]> {
    fn count(&self) -> usize {
        self.bytes.len() / self.page_size
    }

    fn index(&self, position: usize) -> u32 {
        self.first + position as u32
    }

    fn bytes(&self, position: usize) -> &[u8] {
        &self.bytes[position * self.page_size..][..self.page_size]
    }
}

impl Room for Neighbours<&mut [u8]> {
    fn page(&mut self, position: usize) -> &mut [u8] {
        &mut self.bytes[position * self.page_size..][..self.page_size]
    }
}
