//! Short collections that are `Copy`.
use std::hash::{Hash, Hasher};
use std::ops::{Deref, DerefMut, Index, IndexMut, Range};

use super::state::Seq;

/// A list of at most `N` items.
#[derive(Clone, Copy)]
pub(super) struct List<T, const N: usize> {
    items: [T; N],
    len: u8,
}

impl<T: Copy + Default, const N: usize> List<T, N> {
    pub(super) fn has_room(&self) -> bool {
        usize::from(self.len) < N
    }

    /// Whether there was room.
    pub(super) fn push(&mut self, item: T) -> bool {
        let fits = self.has_room();
        if fits {
            self.items[usize::from(self.len)] = item;
            self.len += 1;
        }
        fits
    }

    pub(super) fn remove(&mut self, index: u8) {
        self.items.copy_within(usize::from(index) + 1..usize::from(self.len), usize::from(index));
        self.len -= 1;
    }

    pub(super) fn first(&self, count: u8) -> &[T] {
        &self.items[..usize::from(count)]
    }

    pub(super) fn count(&self) -> u8 {
        self.len
    }

    pub(super) fn indices(&self) -> Range<u8> {
        0..self.len
    }
}

impl<T: Copy + Default, const N: usize> Default for List<T, N> {
    fn default() -> Self {
        Self { items: [T::default(); N], len: 0 }
    }
}

impl<T, const N: usize> Deref for List<T, N> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items[..usize::from(self.len)]
    }
}

impl<T, const N: usize> DerefMut for List<T, N> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.items[..usize::from(self.len)]
    }
}

impl<T, const N: usize> Index<u8> for List<T, N> {
    type Output = T;

    fn index(&self, index: u8) -> &T {
        &self.items[usize::from(index)]
    }
}

impl<T, const N: usize> IndexMut<u8> for List<T, N> {
    fn index_mut(&mut self, index: u8) -> &mut T {
        &mut self.items[usize::from(index)]
    }
}

impl<T: PartialEq, const N: usize> PartialEq for List<T, N> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Eq, const N: usize> Eq for List<T, N> {}

impl<T: Hash, const N: usize> Hash for List<T, N> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (**self).hash(hasher);
    }
}

/// A set of operations.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Operations(u16);

impl Operations {
    pub(super) fn insert(&mut self, seq: Seq) {
        self.0 |= 1 << seq;
    }

    pub(super) fn contains(self, seq: Seq) -> bool {
        self.0 & 1 << seq != 0
    }
}
