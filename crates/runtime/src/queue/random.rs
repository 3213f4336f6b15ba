//! A list that keeps its order and gives up any of its items in constant time.
//!
//! A slab of nodes, linked in order; beside it all nodes in no order, so that
//! one can be picked with the same chance for each.

use super::growth;

const NONE: u32 = u32::MAX;

/// Node numbers are 32 bits wide and the last one means "none".
pub(super) const MAX_LEN: usize = NONE as usize - 1;

#[derive(Debug)]
struct Node<T> {
    item: Option<T>,
    bytes: usize,
    prev: u32,
    /// The next node of the list, or of the free ones.
    next: u32,
    /// Where this node stands in `unordered`.
    place: u32,
}

#[derive(Debug)]
pub(super) struct RandomList<T> {
    nodes: Vec<Node<T>>,
    unordered: Vec<u32>,
    head: u32,
    tail: u32,
    free: u32,
}

impl<T> RandomList<T> {
    pub(super) fn new() -> Self {
        RandomList { nodes: Vec::new(), unordered: Vec::new(), head: NONE, tail: NONE, free: NONE }
    }

    pub(super) fn len(&self) -> usize {
        self.unordered.len()
    }

    pub(super) fn capacity(&self) -> usize {
        self.nodes.capacity()
    }

    /// The caller keeps the length below `MAX_LEN`.
    pub(super) fn push_back(&mut self, item: T, bytes: usize, capacity: usize) {
        if self.unordered.len() == self.unordered.capacity() {
            let more = growth(self.unordered.len(), capacity);
            self.unordered.reserve_exact(more);
            self.nodes.reserve_exact(more);
        }
        let place = self.unordered.len() as u32;
        let node = Node { item: Some(item), bytes, prev: self.tail, next: NONE, place };
        let index = match self.nodes.get_mut(self.free as usize) {
            Some(slot) => {
                let index = self.free;
                self.free = slot.next;
                *slot = node;
                index
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        };
        match self.nodes.get_mut(self.tail as usize) {
            Some(tail) => tail.next = index,
            None => self.head = index,
        }
        self.tail = index;
        self.unordered.push(index);
    }

    pub(super) fn pop_front(&mut self) -> Option<(T, usize)> {
        self.remove(self.head)
    }

    pub(super) fn front_bytes(&self) -> Option<usize> {
        self.nodes.get(self.head as usize).map(|node| node.bytes)
    }

    /// Removes one item, chosen by a uniform random number.
    pub(super) fn pop_random(&mut self, random: u64) -> Option<(T, usize)> {
        // A multiply-shift maps it to the list without a modulo.
        let index = (u128::from(random) * self.unordered.len() as u128) >> 64;
        let node = self.unordered.get(index as usize).copied()?;
        self.remove(node)
    }

    fn remove(&mut self, index: u32) -> Option<(T, usize)> {
        let free = self.free;
        let node = self.nodes.get_mut(index as usize)?;
        let item = node.item.take()?;
        let (prev, next, bytes, place) = (node.prev, node.next, node.bytes, node.place);
        node.next = free;
        self.free = index;
        match self.nodes.get_mut(prev as usize) {
            Some(node) => node.next = next,
            None => self.head = next,
        }
        match self.nodes.get_mut(next as usize) {
            Some(node) => node.prev = prev,
            None => self.tail = prev,
        }
        self.unordered.swap_remove(place as usize);
        let moved = self.unordered.get(place as usize).copied();
        if let Some(node) = moved.and_then(|moved| self.nodes.get_mut(moved as usize)) {
            node.place = place;
        }
        Some((item, bytes))
    }
}
