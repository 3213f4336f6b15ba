//! The fuzz target of the store's rows, over inputs that are made by chance
//! (`fuzz/smoke.rs`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends so")]

#[path = "../../../fuzz/smoke.rs"]
mod smoke;
#[path = "../../../fuzz/bodies/store_row.rs"]
mod store_row;

#[test]
fn whatever_a_cell_holds_the_store_is_read_and_serves_its_emitters() {
    let texts: [&[u8]; 6] =
        [b"", b"critical", b"{}", b"\x00\xff", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"-1"];
    let cells = (0..5).flat_map(|table| (0..18).map(move |column| [table, column]));
    let seeds: Vec<Vec<u8>> = cells
        .flat_map(|cell| texts.map(|text| [&cell[..], &[0, 1 + text.len() as u8], text].concat()))
        .collect();
    smoke::try_inputs(store_row::run, &seeds);
    store_row::clean_up();
}
