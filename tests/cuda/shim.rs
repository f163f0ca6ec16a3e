//! The shim itself: what it must notice, it notices; its half precision is that of the `half` crate.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

use half::{bf16, f16};

use crate::host::{Buffer, load};

/// Kernels that are wrong, each in one way, and one that converts.
const SOURCE: &str = r#"
#include "base.cuh"
extern "C" __global__ void no_barrier(unsigned* out) {
  KV_SHARED(unsigned, cells, 64);
  cells[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = cells[63 - threadIdx.x];
}
KV_EXPORT(no_barrier)
extern "C" __global__ void barrier(unsigned* out) {
  KV_SHARED(unsigned, cells, 64);
  cells[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = cells[63 - threadIdx.x];
}
KV_EXPORT(barrier)
extern "C" __global__ void half_a_barrier(unsigned* out) {
  if (threadIdx.x < 32) __syncthreads();
  out[threadIdx.x] = 0;
}
KV_EXPORT(half_a_barrier)
extern "C" __global__ void half_an_exchange(unsigned* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_xor_sync(ALL_LANES, threadIdx.x, 1);
}
KV_EXPORT(half_an_exchange)
extern "C" __global__ void wrong_lane(unsigned* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffu, threadIdx.x, 16);
}
KV_EXPORT(wrong_lane)
extern "C" __global__ void crooked(unsigned* out) { out[threadIdx.x] = load16(reinterpret_cast<const byte*>(out + 1)).x; }
KV_EXPORT(crooked)
extern "C" __global__ void reads_behind(unsigned* out, int by) { out[threadIdx.x] = out[threadIdx.x + by]; }
KV_EXPORT(reads_behind)
extern "C" __global__ void reads_behind_shared(unsigned* out, int by) {
  KV_SHARED(unsigned, cells, 64);
  cells[threadIdx.x] = 0;
  __syncthreads();
  out[threadIdx.x] = cells[threadIdx.x + by];
}
KV_EXPORT(reads_behind_shared)
extern "C" __global__ void convert(unsigned* out, const float* in, int n) {
  for (int i = threadIdx.x; i < n; i += 64) {
    const __half near = __float2half_rn(in[i]);
    out[3 * i] = __half_as_ushort(near);
    out[3 * i + 1] = static_cast<unsigned>(__float_as_int(__half2float(near)));
    out[3 * i + 2] = __float2bfloat16_rn(in[i]).bits;
  }
}
KV_EXPORT(convert)
"#;

fn source() -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("shim_test.cu");
    if fs::read_to_string(&path).ok().as_deref() != Some(SOURCE) {
        fs::write(&path, SOURCE).unwrap();
    }
    path
}

#[test]
fn threads_that_cannot_meet_are_noticed() {
    let Some(kernels) = load(&source()) else { return };
    let run = |name, schedule| {
        let mut out = Buffer::room(64);
        kernels.try_run(name, [1, 1, 1], 64, &[out.arg()], schedule).map(|()| out.u32s())
    };
    for schedule in 0..3 {
        let reversed: Vec<u32> = (0..64).rev().collect();
        assert_eq!(run("barrier", schedule).unwrap(), reversed);
        for (name, says) in [
            ("half_a_barrier", "a barrier that not all reach"),
            ("half_an_exchange", "a meeting of a warp that not all reach"),
            ("wrong_lane", "a lane that takes no part"),
            ("crooked", "not aligned"),
        ] {
            let error = run(name, schedule).unwrap_err();
            assert!(error.contains(says), "{name}: {error}");
        }
        assert_ne!(run("no_barrier", schedule).unwrap(), reversed);
    }
    assert_ne!(run("no_barrier", 0).unwrap(), run("no_barrier", 1).unwrap());
}

/// What kernel a process of its own, which it ends, is to run.
const BEHIND: &str = "KVISTA_TEST_BEHIND";

#[test]
fn who_reads_behind_an_array_ends_the_tests_and_is_named() {
    let Some(kernels) = load(&source()) else { return };
    if let Ok(name) = env::var(BEHIND) {
        let mut out = Buffer::room(64);
        kernels.run(&name, [1, 1, 1], 64, &[out.arg(), 0usize.into()], 0);
        println!("nothing is behind an array's own");
        kernels.run(&name, [1, 1, 1], 64, &[out.arg(), 1usize.into()], 0);
        return;
    }
    for name in ["reads_behind", "reads_behind_shared"] {
        let myself = "shim::who_reads_behind_an_array_ends_the_tests_and_is_named";
        let run = Command::new(env::current_exe().unwrap())
            .args(["--exact", myself, "--nocapture"])
            .env(BEHIND, name)
            .output()
            .unwrap();
        let [out, error] = [run.stdout, run.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(out.contains("nothing is behind"), "{name}: {out} {error}");
        assert!(error.contains(&format!("kernel {name}: an address behind an array")), "{name}: {error}");
        assert!(!run.status.success(), "{name}");
    }
}

#[test]
fn half_precision_is_that_of_the_crate() {
    let Some(kernels) = load(&source()) else { return };
    let mut values: Vec<f32> = (0..=u16::MAX).step_by(3).map(|bits| f16::from_bits(bits).to_f32()).collect();
    let between: Vec<f32> = values.windows(2).map(|pair| pair[0] + (pair[1] - pair[0]) / 2.0).collect();
    values.extend(between);
    values.extend((0..u32::MAX).step_by(104_729).map(f32::from_bits));
    values.extend([65504.0, 65519.9, 65520.0, 1e9, -1e9, 5.9e-8, 2.98e-8, 2.99e-8, 0.0, -0.0]);
    values.retain(|x| !x.is_nan());
    let (mut input, mut out) = (Buffer::of_f32(&values), Buffer::room(3 * values.len()));
    let args = [out.arg(), input.arg(), values.len().into()];
    kernels.run("convert", [1, 1, 1], 64, &args, 0);
    for (x, got) in values.iter().zip(out.u32s().chunks(3)) {
        let near = f16::from_f32(*x);
        let want = [u32::from(near.to_bits()), near.to_f32().to_bits(), bf16::from_f32(*x).to_bits().into()];
        assert_eq!(got, want, "{x:e}");
    }
}
