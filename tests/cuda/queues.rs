//! Two queues, marks between them, page-locked memory and tensors: on every device that stages are tested on. What must not
//! go unseen, one queue that uses the other's work too early, is told to the emulated one alone.

use candle_core::Tensor;
use kvista::device::gpu::{Array, DeviceError, Gpu, Launch, Room};

use crate::device::{Device, device, is_real, tensors};
use crate::emulated::{Emulated, is_there};
use crate::host::SCHEDULES;

const BYTES: usize = 1 << 10;

fn pattern(seed: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 7 + seed * 31) as u8).collect()
}

fn read(gpu: &impl Gpu, from: Array, bytes: usize) -> Vec<u8> {
    let mut to = vec![0; bytes];
    gpu.download(from, &mut to).unwrap();
    to
}

fn on_every_device(test: impl Fn(&Device)) {
    (0..SCHEDULES).for_each(|schedule| test(&device(schedule)));
}

/// Whether this goes wrong with a panic; its text then.
fn panic_of(what: impl FnOnce()) -> Option<String> {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(what)).err()?;
    let text = panic.downcast_ref::<&str>().map(|&text| text.to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
}

#[test]
fn work_behind_a_mark_sees_what_the_other_queue_made() {
    on_every_device(|gpu| {
        let copies = gpu.copies().copies();
        let memory: Vec<_> = (0..3).map(|_| gpu.allocate("a test", BYTES).unwrap()).collect();
        let [a, b, c] = [0, 1, 2].map(|i| gpu.array(&memory[i]));
        for round in 0..20 {
            gpu.upload(a, &pattern(round, BYTES)).unwrap();
            copies.after(&gpu.mark().unwrap()).unwrap();
            copies.copy(a, b, BYTES).unwrap();
            copies.clear(b, BYTES / 2).unwrap();
            let copied = copies.mark().unwrap();
            gpu.after(&copied).unwrap();
            // The source changes once it has been read, the copy is read once it is there.
            gpu.clear(a, BYTES).unwrap();
            gpu.copy(b, c, BYTES).unwrap();
            let made = read(gpu, c, BYTES);
            assert!(made[..BYTES / 2].iter().all(|&byte| byte == 0));
            assert_eq!(made[BYTES / 2..], pattern(round, BYTES)[BYTES / 2..], "round {round}");
        }
    });
}

#[test]
fn a_wait_for_the_queue_of_copies_is_enough() {
    on_every_device(|gpu| {
        let copies = gpu.copies();
        // Memory that the queue of copies takes itself needs no mark.
        let memory = copies.allocate("a test", BYTES).unwrap();
        let array = copies.array(&memory);
        copies.upload(array, &pattern(1, BYTES)).unwrap();
        copies.wait().unwrap();
        assert_eq!(read(gpu, array, BYTES), pattern(1, BYTES));
        drop(memory);
    });
}

#[test]
fn time_between_marks_grows() {
    on_every_device(|gpu| {
        let copies = gpu.copies();
        let memory = gpu.allocate("a test", 64 * BYTES).unwrap();
        copies.after(&gpu.mark().unwrap()).unwrap();
        for queue in [gpu, &copies] {
            let from = queue.mark().unwrap();
            for _ in 0..50 {
                queue.clear(gpu.array(&memory), 64 * BYTES).unwrap();
            }
            let middle = queue.mark().unwrap();
            for _ in 0..50 {
                queue.clear(gpu.array(&memory), 64 * BYTES).unwrap();
            }
            let to = queue.mark().unwrap();
            let (half, whole) =
                (queue.elapsed_ns(&from, &middle).unwrap(), queue.elapsed_ns(&from, &to).unwrap());
            assert!(0 < half && half < whole, "{half} ns, {whole} ns");
            assert_eq!(queue.elapsed_ns(&to, &from).unwrap(), 0, "not later");
        }
        copies.wait().unwrap();
    });
}

#[test]
fn products_are_not_for_the_queue_of_copies() {
    use kvista::device::gpu::{Matrices, Products};
    on_every_device(|gpu| {
        let all = Matrices { array: Array::NONE, row_stride: 1, stride: 1 };
        let products = Products { count: 1, m: 1, n: 1, k: 1, a: all, b: all, transposed: true, out: all };
        assert!(matches!(gpu.copies().multiply(&products), Err(DeviceError::Limit(_))));
    });
}

#[test]
fn the_hosts_memory_is_copied_like_the_devices() {
    on_every_device(|gpu| {
        for queue in [gpu.clone(), gpu.copies()] {
            let pinned = queue.allocate_host("a test", BYTES).unwrap();
            let host = queue.host_array(&pinned);
            let memory = queue.allocate("a test", BYTES).unwrap();
            let array = queue.array(&memory);
            queue.upload(host, &pattern(2, BYTES)).unwrap();
            assert_eq!(read(&queue, host, BYTES), pattern(2, BYTES));
            queue.copy(host, array, BYTES).unwrap();
            queue.clear(host.offset(BYTES / 2), BYTES / 2).unwrap();
            assert_eq!(read(&queue, array, BYTES), pattern(2, BYTES));
            queue.copy(array.offset(BYTES / 4), host.offset(BYTES / 2), BYTES / 4).unwrap();
            let all = read(&queue, host, BYTES);
            assert_eq!(all[..BYTES / 2], pattern(2, BYTES)[..BYTES / 2]);
            assert_eq!(all[BYTES / 2..BYTES * 3 / 4], pattern(2, BYTES)[BYTES / 4..BYTES / 2]);
            assert!(all[BYTES * 3 / 4..].iter().all(|&byte| byte == 0));
        }
    });
}

#[test]
fn kernels_pull_rows_out_of_the_hosts_memory() {
    if !is_there() {
        return;
    }
    on_every_device(|gpu| {
        const ROW: usize = 64;
        const SLOTS: usize = 24;
        let copies = gpu.copies();
        let rows = pattern(3, SLOTS * ROW);
        let mut slab = Room::on_host("a test");
        let slab = slab.filled(gpu, &rows).map(|array| (slab, array)).unwrap();
        let chosen = [1u32, 5, 6, 17, 23];
        // Blocks of eight slots, in another order, and a word so that lanes begin at 16 bytes; one lane: its table, slots,
        // then what this kernel does not ask for.
        let words: Vec<u32> = [2, 0, 1, 0].into_iter().chain([0, SLOTS as u32, 0, 0, 0, 0, 0, 0]).collect();
        let words: Vec<u32> = words.into_iter().chain([chosen.len() as u32]).chain(chosen).collect();
        let mut room = Room::new("a test");
        let tables = room.filled(gpu, bytemuck::cast_slice(&words)).unwrap();
        let (lanes, counts, slots) = (tables.offset(4 * 4), tables.offset(4 * 12), tables.offset(4 * 13));
        let staged = gpu.allocate("a test", chosen.len() * ROW).unwrap();
        let n = chosen.len() as u32;
        let args = [
            gpu.array(&staged).into(),
            slab.1.into(),
            slots.into(),
            counts.into(),
            tables.into(),
            lanes.into(),
            8u32.into(),
            (ROW as u32).into(),
            n.into(),
            n.into(),
        ];
        copies.after(&gpu.mark().unwrap()).unwrap();
        let launch =
            Launch { file: "gather", kernel: "gather_rows", grid: [1, 1, 1], block: 256, args: &args };
        copies.launch(&launch).unwrap();
        gpu.after(&copies.mark().unwrap()).unwrap();
        let got = read(gpu, gpu.array(&staged), chosen.len() * ROW);
        for (got, &slot) in got.chunks(ROW).zip(&chosen) {
            let row = [2, 0, 1][slot as usize / 8] * 8 + slot as usize % 8;
            assert_eq!(got, &rows[row * ROW..][..ROW], "slot {slot}");
        }
        drop(slab);
    });
}

#[test]
fn rows_go_into_tensors_and_come_out_of_them() {
    on_every_device(|gpu| {
        let memory = gpu.allocate("a test", BYTES).unwrap();
        let array = gpu.array(&memory);
        let values: Vec<f32> = (0..48).map(|i| i as f32 - 7.5).collect();
        let tensor = Tensor::from_slice(&values, (8, 6), &tensors()).unwrap();
        gpu.read_tensor(&tensor, array).unwrap();
        assert_eq!(read(gpu, array, 4 * 48), bytemuck::cast_slice::<f32, u8>(&values));
        // Rows out of the middle lie in one piece, which begins further on.
        gpu.read_tensor(&tensor.narrow(0, 2, 3).unwrap(), array).unwrap();
        assert_eq!(read(gpu, array, 4 * 18), bytemuck::cast_slice::<f32, u8>(&values[12..30]));
        let made = gpu.tensor(array.offset(4 * 6), 2, 6).unwrap();
        // It is a copy.
        gpu.clear(array, BYTES).unwrap();
        let made = (made + 1.0).unwrap().to_vec2::<f32>().unwrap();
        let expected: Vec<f32> = values[18..30].iter().map(|x| x + 1.0).collect();
        assert_eq!(made.concat(), expected);
        // The other handle's tensors are those of the queue that computes.
        let copies = gpu.copies();
        copies.read_tensor(&tensor, array).unwrap();
        assert_eq!(copies.tensor(array, 8, 6).unwrap().to_vec2::<f32>().unwrap().concat(), values);

        let limit = |result: Result<(), DeviceError>| {
            let Err(DeviceError::Limit(text)) = result else { panic!("{result:?}") };
            assert!(!text.contains('\n'), "{text}");
            text
        };
        let spread = gpu.read_tensor(&tensor.t().unwrap(), array);
        assert!(limit(spread).contains("strides [1, 6]"));
        let half = tensor.to_dtype(candle_core::DType::F16).unwrap();
        assert!(limit(gpu.read_tensor(&half, array)).contains("f16"));
        limit(gpu.tensor(array, 0, 6).map(drop));
        limit(gpu.tensor(array, usize::MAX, 6).map(drop));
    });
}

#[test]
fn rooms_of_either_memory_grow_and_keep() {
    on_every_device(|gpu| {
        for mut room in [Room::new("a test"), Room::on_host("a test")] {
            assert_eq!(room.array(gpu), Array::NONE);
            let mut kept = 100;
            room.filled(gpu, &pattern(4, kept)).unwrap();
            for bytes in [200, 1000, 5000] {
                let array = room.grown(gpu, kept, bytes).unwrap();
                gpu.upload(array.offset(kept), &pattern(4, bytes)[kept..]).unwrap();
                assert_eq!(read(gpu, array, bytes), pattern(4, bytes));
                kept = bytes;
            }
            let before = room.array(gpu);
            assert_eq!(room.of(gpu, 10).unwrap(), before, "it does not shrink");
        }
    });
}

#[test]
fn memory_of_either_kind_is_counted_and_given_back() {
    for schedule in 0..SCHEDULES {
        let gpu = Emulated::new(schedule);
        let (mut device, mut host) = (Room::new("a test"), Room::on_host("a test"));
        device.of(&gpu, 256).unwrap();
        let array = host.of(&gpu, 512).unwrap();
        assert_eq!((gpu.used(), gpu.used_host()), (512, 768));
        // The queue of copies still uses it: that comes first.
        gpu.copies().upload(array, &pattern(5, 512)).unwrap();
        drop((device, host));
        assert_eq!((gpu.used(), gpu.used_host()), (0, 0));
        // What grows by its keeper's measure takes that and no more, the first time too.
        let (mut device, mut host) = (Room::new("a test"), Room::on_host("a test"));
        for bytes in [4096, 5120] {
            device.grown(&gpu, 0, bytes).unwrap();
            host.grown(&gpu, 0, bytes).unwrap();
            gpu.wait().unwrap();
            assert_eq!((gpu.used(), gpu.used_host()), (bytes, bytes));
        }
    }
    let lost = Emulated::mortal(0);
    assert!(matches!(lost.allocate_host("a test", 1), Err(DeviceError::Call { .. })));
}

#[test]
fn what_the_host_cannot_lock_is_said_in_a_line() {
    let error = DeviceError::HostMemory { what: "values", asked_bytes: 4096, free_bytes: Some(12) };
    let text = error.to_string();
    assert!(
        text.contains("4096 bytes") && text.contains("values") && text.contains("12 bytes are free"),
        "{text}"
    );
    let error = DeviceError::HostMemory { what: "values", asked_bytes: 4096, free_bytes: None };
    assert!(!error.to_string().contains("free"), "{error}");
    if is_real() {
        // More than any address.
        let refused = device(0).allocate_host("a test", 1 << 46).map(drop);
        assert!(
            matches!(refused, Err(DeviceError::HostMemory { asked_bytes, .. }) if asked_bytes == 1 << 46)
        );
    }
}

#[test]
fn a_mark_that_is_missing_is_seen() {
    // The queue of copies is late: what computes reads what is not there yet.
    let gpu = Emulated::new(0);
    let copies = gpu.copies();
    let (from, to) = (gpu.allocate("a test", BYTES).unwrap(), gpu.allocate("a test", BYTES).unwrap());
    let (from, to) = ((gpu.array(&from), from), (gpu.array(&to), to));
    gpu.upload(from.0, &pattern(6, BYTES)).unwrap();
    copies.after(&gpu.mark().unwrap()).unwrap();
    copies.copy(from.0, to.0, BYTES).unwrap();
    assert!(read(&gpu, to.0, BYTES).iter().all(|&byte| byte == 0xff), "as it was");
    // Or it changes what has not been read yet.
    gpu.clear(from.0, BYTES).unwrap();
    gpu.after(&copies.mark().unwrap()).unwrap();
    assert!(read(&gpu, to.0, BYTES).iter().all(|&byte| byte == 0), "too late");

    // The queue that computes is late: the other one copies what is not there yet.
    let gpu = Emulated::new(1);
    let copies = gpu.copies();
    let (from, to) = (gpu.allocate("a test", BYTES).unwrap(), gpu.allocate("a test", BYTES).unwrap());
    copies.after(&gpu.mark().unwrap()).unwrap();
    gpu.upload(gpu.array(&from), &pattern(7, BYTES)).unwrap();
    copies.copy(gpu.array(&from), gpu.array(&to), BYTES).unwrap();
    assert!(read(&copies, gpu.array(&to), BYTES).iter().all(|&byte| byte == 0xff), "too early");
}

#[test]
fn memory_out_of_order_is_seen() {
    let gpu = Emulated::new(0);
    let copies = gpu.copies();
    let memory = gpu.allocate("a test", BYTES).unwrap();
    let array = gpu.array(&memory);
    let early = panic_of(|| copies.clear(array, BYTES).unwrap());
    assert!(early.expect("no mark since it was taken").contains("behind no mark"));
    copies.after(&gpu.mark().unwrap()).unwrap();
    copies.clear(array, BYTES).unwrap();
    drop(memory);
    let late = panic_of(|| copies.wait().unwrap());
    assert!(late.expect("given back too early").contains("given back before"));
    // The last handle does what nobody waited for.
    let memory = copies.allocate("a test", BYTES).unwrap();
    copies.clear(copies.array(&memory), BYTES).unwrap();
    drop((memory, copies));
    assert!(panic_of(|| drop(gpu)).expect("given back too early").contains("given back before"));
}
