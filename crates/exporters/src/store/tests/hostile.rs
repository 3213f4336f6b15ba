//! Files that somebody wrote whatever they liked to: the store opens them, or
//! sets them aside, and goes on.

use std::time::Instant;

use super::lossy::{Image, Random, image_of};
use super::*;

const DATABASE: &str = "events.db";
const LOG: &str = "events.db-wal";

/// A store as a kill leaves it: half of it in the log.
fn sound(folder: &Path) -> Image {
    let path = folder.join("sound");
    let store = open(&path, &["a"]);
    for round in 0..8 {
        commit(&store, &batch(1 + round * 20, 20));
        if round == 4 {
            let inner = store.shared.lock();
            let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
            let connection = &inner.writer.as_ref().unwrap().connection;
            connection.query_row(checkpoint, [], |_| Ok(())).unwrap();
        }
    }
    let mut a = store.cursor("a").unwrap();
    assert_eq!(settle(&mut *a, 30).len(), 30);
    let image = image_of(&path);
    assert!(image[DATABASE].len() > 20 * 4_096 && image[LOG].len() > 10 * 4_096);
    image
}

fn noise(random: &mut Random, most: u64) -> Vec<u8> {
    (0..random.below(most)).map(|_| random.next() as u8).collect()
}

/// Does something to the files that no store would.
fn spoil(image: &mut Image, random: &mut Random) -> String {
    let name = if random.percent(60) { DATABASE } else { LOG };
    let file = image.get_mut(name).unwrap();
    let len = file.len() as u64;
    let what = match random.below(9) {
        0 => {
            *file = noise(random, 40_000);
            "is noise"
        }
        1 => {
            let noise = noise(random, 40_000);
            file.truncate(100);
            file.extend(noise);
            "is noise behind its header"
        }
        2 => {
            file.extend(noise(random, 20_000));
            "is longer"
        }
        3 => {
            file.truncate(random.below(len) as usize);
            "is shorter"
        }
        4 => {
            let pages = len / 4_096;
            let (from, to) = (random.below(pages) * 4_096, random.below(pages) * 4_096);
            file.copy_within(from as usize..from as usize + 4_096, to as usize);
            "has a page twice"
        }
        5 => {
            // The header, the schema and what is at the head of pages.
            for _ in 0..1 + random.below(4) {
                let page = if random.percent(50) { 0 } else { random.below(len / 4_096) };
                file[(page * 4_096 + random.below(108)) as usize] = random.next() as u8;
            }
            "has bytes changed where pages begin"
        }
        6 => {
            let journal = noise(random, 9_000);
            let magic = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
            image.insert("events.db-journal".to_owned(), [&magic[..], &journal].concat());
            "has a journal beside it"
        }
        _ => {
            for _ in 0..1 + random.below(40) {
                file[random.below(len) as usize] ^= 1 << random.below(8);
            }
            "has bits flipped"
        }
    };
    format!("{name} {what}")
}

/// Commits, and has the exporter read, until what was committed last arrived.
fn goes_on(store: &Store) -> Result<(), String> {
    let wanted: Vec<u64> = (1_000_000..1_000_005).collect();
    let mut got = Vec::new();
    for _ in 0..8 {
        let outcome = emit(&mut store.emitter(), &batch(1_000_000, 5));
        let line = store.line("a");
        assert_eq!((line.difference, store.own_line().difference), (0, 0), "{line:#?}");
        if outcome != EmitOutcome::Delivered {
            continue;
        }
        let Ok(mut a) = store.cursor("a") else { continue };
        for _ in 0..20 {
            let Ok(owed) = a.read(100) else { break };
            got.extend(owed.iter().map(|owed| owed.event.count));
            let settled = owed.iter().map(|o| Settled { seq: o.seq, rejected: None }).collect();
            if owed.is_empty() || a.settle(settled).is_err() {
                break;
            }
        }
        drop(a);
        store.shared.lock().aged_ns = 0;
        store.tick();
        if wanted.iter().all(|count| got.contains(count)) {
            return Ok(());
        }
    }
    Err(format!("it does not go on; it sent {} events", got.len()))
}

#[test]
fn whatever_stands_in_the_files_the_agent_runs_on() {
    let folder = tempfile::tempdir().unwrap();
    let sound = sound(folder.path());
    let (mut slowest, mut aside) = (Duration::ZERO, 0);
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut image = sound.clone();
        let mut what = spoil(&mut image, &mut random);
        if random.percent(20) {
            image.insert(DATABASE.to_owned(), noise(&mut random, 9_000));
            what += ", and the database is noise";
        }
        let path = folder.path().join("spoilt");
        fs::create_dir(&path).unwrap();
        image.iter().for_each(|(name, bytes)| fs::write(path.join(name), bytes).unwrap());
        let begun = Instant::now();
        // A reader first: it must neither panic nor change anything for us.
        if let Ok(reader) = Reader::open(&path) {
            let filter = Filter { after_seq: Some(0), ..Filter::default() };
            drop((reader.events(&filter), reader.snapshot(), reader.last_seq()));
            drop((reader.chain("x", 10), reader.span("x", "y"), reader.event("z")));
        }
        // So small that it must let go of what it finds there.
        let max_bytes = ByteSize((2 << 20) + if random.percent(50) { 100 << 10 } else { 6 << 20 });
        let config = StoreConfig { max_bytes, ..StoreConfig::at(&path) };
        let store = Store::open(config, vec!["a".to_owned()], Duration::ZERO).unwrap();
        goes_on(&store).unwrap_or_else(|why| panic!("seed {seed}: {what}: {why}"));
        aside += store.set_aside();
        drop(store);
        slowest = slowest.max(begun.elapsed());
        fs::remove_dir_all(&path).unwrap();
    }
    println!("{aside} files set aside; the slowest took {slowest:?}");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    assert!((20..=300).contains(&aside), "{aside}");
}
