//! What `benches/device.rs` derives.

#[expect(dead_code, reason = "the benchmark prints the rest")]
#[path = "../../benches/device/derived.rs"]
mod derived;

use derived::{Budget, Needs, Rates, SHAPES};

const GIB: u64 = 1 << 30;

#[test]
fn a_budget_holds_whole_sequences() {
    let [mha, gqa, _] = SHAPES;
    let budget = Budget { device: 64 * GIB, host: 64 * GIB };
    // 512 KiB of K and V per token; K alone is half.
    assert_eq!(mha.device_bytes(None), 512 << 10);
    assert_eq!([16, 32, 64].map(|k| budget.batch(&mha, None, k << 10)), [8, 4, 2]);
    assert_eq!([16, 32, 64].map(|k| budget.batch(&mha, Some(0), k << 10)), [16, 8, 4]);
    // One layer's values more: the last sequence has no room.
    assert_eq!([16, 32, 64].map(|k| budget.batch(&mha, Some(1), k << 10)), [15, 7, 3]);
    assert_eq!(budget.batch(&gqa, None, 16 << 10), 32);
    let tight = Budget { host: 10 * GIB, ..budget };
    assert_eq!(tight.batch(&mha, Some(0), 16 << 10), 2);
    assert_eq!(tight.batch(&mha, None, 16 << 10), 8);
    assert_eq!(Budget { device: GIB, ..budget }.batch(&mha, None, 16 << 10), 0);
    // Layers that are all exempt leave nothing for the host.
    assert_eq!(budget.batch(&mha, Some(40), 16 << 10), 8);
    assert!(mha.blocks(16, 64 << 10, 256) < 1 << 24);
}

#[test]
fn a_bound_is_the_slower_side() {
    let [mha, gqa, _] = SHAPES;
    // Llama 2's 6.74e9 parameters less the embedding, Llama 3's 8.03e9.
    assert_eq!(mha.weight_bytes(), 2 * (6_738_149_376 - 32_000 * 4096));
    assert_eq!(gqa.weight_bytes(), 2 * (8_029_995_008 - 128_256 * 4096));
    let needs = Needs::new(&mha, Some(0), 16, 16 << 10, mha.pulled_bytes(0, 32, 16, 16 << 10));
    assert_eq!(needs.device_bytes, mha.weight_bytes() + 64 * GIB);
    assert_eq!(needs.link_bytes, 16 * 33 * 256 * 32 * 32);
    let rates = Rates { device: 4e12, link: 50e9 };
    let (ms, by_link) = needs.bound(rates);
    assert!(!by_link && (ms - needs.device_bytes as f64 / 4e9).abs() < 1e-9, "{ms}");
    assert!(needs.bound(Rates { link: 5e9, ..rates }).1);
    // A group chooses at most the whole context.
    assert_eq!(gqa.pulled_bytes(0, 64, 1, 100), 100 * gqa.host_bytes(Some(0)));
}
