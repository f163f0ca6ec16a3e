//! How much memory pages take at once. Only the emulated device counts it.

use std::sync::Arc;

use candle_core::Device;
use kvista::attention::Shape;
use kvista::attention::gpu::{GpuAttention, NewTokens, PageCopies, Resident, check};
use kvista::engine::backend::Backend;
use kvista::engine::{Engine, Prompt};
use kvista::event::Settings;

use crate::device::is_real;
use crate::emulated::{self, Emulated};
use crate::engine::golden;

/// Slots of a block.
const BLOCK: usize = 4;

/// Where a context is filled, or a pool is bounded and all fits into it, what pages take is taken once.
#[test]
fn pages_that_are_known_to_be_needed_are_never_there_twice() {
    if !emulated::is_there() || is_real() {
        return;
    }
    let (model, golden) = golden();
    let text: String = golden.prompt_text.chars().take(260).collect();
    let prompt = Prompt { text, ..Prompt::default() };
    let config = model.decoder.config().clone();
    let (batch, max_tokens) = (2, 6);
    for (read, is_filled, is_bounded) in [
        ("", true, true),
        ("kcache:n=8,l=1", true, true),
        ("kcache:n=8,l=1", false, true),
        ("kcache:n=8,l=1", true, false),
    ] {
        let what = format!("'{read}', filled {is_filled}, bounded {is_bounded}");
        let gpu = Emulated::new(0);
        let make = |blocks: Option<usize>| {
            let settings = Settings {
                device: "cuda:0".into(),
                read: read.into(),
                batch,
                max_tokens,
                ignore_eos: true,
                block_size: BLOCK as u32,
                blocks: blocks.unwrap_or_default() as u32,
                blocks_given: blocks.is_some(),
                ..Settings::default()
            };
            Engine::on(Backend::gpu(gpu.clone(), Device::Cpu), Arc::clone(&model), &settings, &prompt)
                .unwrap()
        };
        let tokens = make(None).info().prompt_tokens as usize;
        let per_layer = |tokens: usize| batch as usize * config.kv_heads * tokens.div_ceil(BLOCK);
        // The last token drawn is not fed.
        let all = config.layers * per_layer(tokens + max_tokens as usize);
        let mut engine = make(is_bounded.then_some(all));
        let page_bytes = BLOCK * config.head_dim * size_of::<f32>();
        let on_host = if read.is_empty() { 0 } else { config.layers - 1 };
        let values_bytes = |tokens: usize| on_host * per_layer(tokens) * page_bytes;
        if is_filled {
            engine.fill(7).unwrap();
            let wanted = if is_bounded { tokens + max_tokens as usize } else { tokens - 1 };
            assert_eq!(gpu.used_host(), values_bytes(wanted), "{what}");
            assert_eq!(gpu.most_used(), [gpu.used(), gpu.used_host()], "{what}");
        }
        while engine.step().unwrap().is_some() {}
        let used = [gpu.used(), gpu.used_host()];
        if is_bounded {
            assert_eq!(gpu.most_used(), used, "{what}");
            assert_eq!(used[1], values_bytes(tokens + max_tokens as usize), "{what}");
        } else {
            assert!(gpu.most_used()[1] > used[1], "{what}: a slab that grows is copied");
        }
        drop(engine);
        assert_eq!([gpu.used(), gpu.used_host()], [0, 0], "{what}");
    }
}

/// Pages of which none is in use are given back before more are taken.
#[test]
fn what_holds_nothing_is_given_back_first() {
    let shape = Shape::new(4, 2, 32).unwrap();
    let page_bytes = BLOCK * 32 * size_of::<f32>();
    let gpu = Emulated::new(0);
    let mut attention = GpuAttention::new(gpu.clone(), shape, check(shape, "f32").unwrap(), BLOCK, 1 << 20);
    for pages in [100, 150, 400] {
        attention.reserve(pages, true).unwrap();
        assert_eq!((gpu.used(), gpu.used_host()), (pages * page_bytes, pages * page_bytes));
        assert_eq!(gpu.most_used(), [gpu.used(), gpu.used_host()]);
    }
    if !emulated::is_there() || is_real() {
        return;
    }
    // Blocks that come and go leave none in use.
    let row = vec![1.0; 2 * 32];
    let token = |block: u32| [(0, vec![block]), (0, vec![block + 1])];
    for block in [0, 2] {
        attention.append(NewTokens { keys: &row, values: Some(&row), places: &token(block) }).unwrap();
    }
    let before = gpu.used();
    let first = 1 << 20;
    assert!(before > 400 * page_bytes + 2 * first);
    PageCopies::free(&mut attention, &[0, 1, 3, 2]);
    attention.reserve(2 * first / page_bytes, false).unwrap();
    assert_eq!(gpu.used(), before + 2 * first);
    assert_eq!(gpu.most_used()[0], gpu.used(), "all of it was given back first");
    // One that is in use is kept, and for that both are there for a while.
    attention.append(NewTokens { keys: &row, values: Some(&row), places: &token(4) }).unwrap();
    attention.reserve(4 * first / page_bytes, false).unwrap();
    assert!(gpu.most_used()[0] > gpu.used());
}
