use super::*;
use Priority::{Critical, Normal};

fn queue(capacity: usize, max_bytes: usize, policy: DropPolicy) -> BoundedQueue<u32> {
    BoundedQueue::new(QueueConfig { capacity, max_bytes, policy })
}

fn drain(queue: &BoundedQueue<u32>) -> Vec<u32> {
    std::iter::from_fn(|| queue.dequeue()).collect()
}

#[test]
fn each_policy_gives_up_what_it_says() {
    let oldest = queue(3, 100, DropPolicy::Oldest);
    let newest = queue(3, 100, DropPolicy::Newest);
    for n in 0..5 {
        oldest.enqueue(n, Normal, 1);
        newest.enqueue(n, Normal, 1);
    }
    assert_eq!(drain(&oldest), [2, 3, 4]);
    assert_eq!(drain(&newest), [0, 1, 2]);
}

#[test]
fn random_picks_every_victim_about_as_often() {
    let mut dropped = [0u32; 8];
    for _ in 0..8_000 {
        let queue = queue(8, 100, DropPolicy::Random);
        for n in 0..8 {
            queue.enqueue(n, Normal, 1);
        }
        match queue.enqueue(99, Normal, 1) {
            Enqueued::Displaced(victims) => dropped[victims[0] as usize] += 1,
            other => panic!("{other:?}"),
        }
        assert_eq!(queue.len(), 8);
    }
    // 1,000 expected each; six standard deviations are about 180.
    assert!(dropped.iter().all(|n| (820..1180).contains(n)), "{dropped:?}");
}

#[test]
fn random_keeps_the_order_of_what_stays() {
    let queue = queue(50, 1_000, DropPolicy::Random);
    for n in 0..500 {
        queue.enqueue(n, Normal, 1);
    }
    let left = drain(&queue);
    assert_eq!(left.len(), 50);
    assert!(left.is_sorted());
}

#[test]
fn normal_events_go_before_critical_ones_whatever_the_policy() {
    for policy in [DropPolicy::Oldest, DropPolicy::Newest, DropPolicy::Random] {
        let queue = queue(4, 100, policy);
        for n in 0..4 {
            queue.enqueue(n, Normal, 1);
        }
        for n in 10..14 {
            assert!(matches!(queue.enqueue(n, Critical, 1), Enqueued::Displaced(_)));
        }
        let refused = queue.enqueue(5, Normal, 1);
        assert_eq!(refused, Enqueued::Refused(5, QueueDrop::Items), "{policy:?}");
        assert_eq!(drain(&queue), [10, 11, 12, 13], "{policy:?}");
    }
}

#[test]
fn critical_ones_leave_first() {
    let queue = queue(4, 100, DropPolicy::Oldest);
    queue.enqueue(1, Normal, 1);
    queue.enqueue(2, Critical, 1);
    assert_eq!(drain(&queue), [2, 1]);
}

#[test]
fn bytes_bound_it_too_and_an_item_that_never_fits_displaces_nothing() {
    let queue = queue(100, 10, DropPolicy::Oldest);
    for n in 0..5 {
        queue.enqueue(n, Normal, 2);
    }
    assert_eq!(queue.enqueue(6, Normal, 11), Enqueued::Refused(6, QueueDrop::TooLarge));
    assert_eq!(queue.enqueue(7, Normal, 5), Enqueued::Displaced(vec![0, 1, 2]));
    assert_eq!(queue.enqueue(8, Critical, 4), Enqueued::Displaced(vec![3, 4]));
    let refused = queue.enqueue(9, Normal, 7);
    assert_eq!(refused, Enqueued::Refused(9, QueueDrop::Bytes), "the critical one may not go");
    assert_eq!(drain(&queue), [8, 7]);
}

#[test]
fn what_is_too_large_for_the_room_stays_in_front() {
    for policy in [DropPolicy::Oldest, DropPolicy::Random] {
        let mut core = QueueCore::new(QueueConfig { capacity: 9, max_bytes: 100, policy });
        core.push(1, Normal, 30, &mut |_, _, _| {});
        core.push(2, Normal, 10, &mut |_, _, _| {});
        assert_eq!(core.pop_within(Normal, 29), None, "{policy:?}");
        assert_eq!(core.pop_within(Normal, 30), Some((1, 30)), "{policy:?}");
        assert_eq!((core.len(), core.bytes()), (1, 10), "{policy:?}");
        assert_eq!(core.pop_within(Critical, 30), None, "{policy:?}");
    }
}

#[test]
fn a_queue_that_becomes_smaller_keeps_what_waits_and_is_full_until_that_has_left() {
    for (policy, kept) in [
        (DropPolicy::Oldest, [3, 4, 5, 6, 7, 8, 9, 10]),
        (DropPolicy::Newest, [2, 3, 4, 5, 6, 7, 8, 9]),
    ] {
        let queue = queue(100, 1_000, DropPolicy::Random);
        for n in 0..10 {
            queue.enqueue(n, Normal, 1);
        }
        queue.reconfigure(QueueConfig { capacity: 4, max_bytes: 1_000, policy });
        assert_eq!((queue.len(), queue.capacity(), queue.is_full()), (10, 4, true));
        assert_eq!((queue.dequeue(), queue.dequeue()), (Some(0), Some(1)));
        // Two have left, and nobody takes their places.
        let displaced = queue.enqueue(10, Normal, 1);
        match policy {
            DropPolicy::Oldest => assert_eq!(displaced, Enqueued::Displaced(vec![2])),
            _ => assert_eq!(displaced, Enqueued::Refused(10, QueueDrop::Items)),
        }
        assert_eq!(drain(&queue), kept);
        for n in 20..26 {
            queue.enqueue(n, Normal, 1);
        }
        assert_eq!(queue.len(), 4, "{policy:?}");
        queue.reconfigure(QueueConfig { capacity: 5, max_bytes: 1_000, policy });
        assert_eq!(queue.enqueue(30, Normal, 1), Enqueued::Queued);
    }
}

#[test]
fn a_queue_of_fewer_bytes_gives_up_one_for_another_until_it_has_sunk() {
    let queue = queue(100, 100, DropPolicy::Oldest);
    for n in 0..10 {
        queue.enqueue(n, Normal, 10);
    }
    let config = QueueConfig { capacity: 100, max_bytes: 20, policy: DropPolicy::Oldest };
    queue.reconfigure(config);
    assert_eq!(queue.enqueue(10, Normal, 10), Enqueued::Displaced(vec![0]));
    assert_eq!(drain(&queue), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!(queue.enqueue(11, Normal, 21), Enqueued::Refused(11, QueueDrop::TooLarge));
    let core = lock(&queue.core);
    assert!(core.room == core.bound);
}

#[test]
fn places_are_used_again() {
    let queue = queue(1_000, 1 << 20, DropPolicy::Random);
    for round in 0..10u32 {
        for n in 0..1_000 {
            queue.enqueue(round * 1_000 + n, if n % 3 == 0 { Critical } else { Normal }, 1);
        }
        assert_eq!(drain(&queue).len(), 1_000);
    }
    let core = lock(&queue.core);
    assert!(core.lists.iter().all(|list| match list {
        List::Line(line) => line.capacity() <= 1_000,
        List::Random(list) => list.capacity() <= 1_000,
    }));
}

#[test]
fn a_queue_that_becomes_smaller_gives_its_memory_back_when_it_is_not_overfull() {
    for policy in [DropPolicy::Oldest, DropPolicy::Newest, DropPolicy::Random] {
        let queue = queue(100_000, 1 << 20, policy);
        for n in 0..100_000 {
            queue.enqueue(n, Normal, 1);
        }
        assert_eq!(drain(&queue).len(), 100_000);
        [7, 8].iter().for_each(|n| assert_eq!(queue.enqueue(*n, Normal, 1), Enqueued::Queued));
        queue.reconfigure(QueueConfig { capacity: 4, max_bytes: 1 << 20, policy });
        let taken = || lock(&queue.core).lists.iter().map(List::capacity).max();
        assert!(taken() <= Some(4), "{policy:?}: {:?}", taken());
        assert_eq!(drain(&queue), [7, 8]);
    }
}

#[test]
fn what_is_displaced_has_the_room_sink_as_what_is_taken_does() {
    for policy in [DropPolicy::Oldest, DropPolicy::Random] {
        let queue = queue(100, 10, policy);
        for n in 0..10 {
            queue.enqueue(n, Normal, 1);
        }
        queue.reconfigure(QueueConfig { capacity: 4, max_bytes: 10, policy });
        // Three leave for it, and only it takes a place of theirs.
        match queue.enqueue(20, Normal, 3) {
            Enqueued::Displaced(gone) => assert_eq!(gone.len(), 3, "{policy:?}"),
            other => panic!("{other:?}"),
        }
        assert!(queue.is_full(), "{policy:?}");
        // A smaller one for it brings nothing back.
        for n in 30..40 {
            assert!(matches!(queue.enqueue(n, Normal, 0), Enqueued::Displaced(_)));
            assert!(queue.len() <= 8, "{policy:?}");
        }
        assert_eq!(drain(&queue).len(), 8, "{policy:?}");
        let core = lock(&queue.core);
        assert!(core.room == core.bound);
    }
}
