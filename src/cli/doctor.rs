//! `kvista doctor`: what this machine has, and what is missing to compute on a GPU.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

use super::Failure;
use super::args::ListArgs;
use super::facts::say;
use super::json::print_facts;
use crate::device::driver::{Driver, Gpu, Memory};
use crate::device::memory;
use crate::engine::backend;
use crate::ui::number;

/// Bytes per timed copy: long enough that starting it does not count.
const COPY_BYTES: usize = 256 << 20;
/// CUDA's libraries that a build with the feature `cuda` is linked against, beside the driver.
const LIBRARIES: [&str; 4] = ["libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10"];

/// Everything found.
#[derive(Serialize)]
struct Findings {
    version: &'static str,
    auto: Auto,
    cpu: Cpu,
    driver: Found<DriverFacts>,
    libraries: Vec<LibraryFacts>,
    toolkit: Found<String>,
}

/// What `--device auto` comes to.
#[derive(Serialize)]
struct Auto {
    device: String,
    why: String,
}

#[derive(Serialize)]
struct Cpu {
    name: String,
    cores: usize,
    /// What the inner loops can use.
    features: Vec<&'static str>,
    free_bytes: Option<u64>,
}

/// Something, or why it is not there.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Found<T> {
    Present(T),
    Missing(String),
}

#[derive(Serialize)]
struct DriverFacts {
    /// Newest CUDA version it knows.
    cuda: String,
    gpus: Vec<GpuFacts>,
}

#[derive(Serialize)]
struct GpuFacts {
    index: u32,
    name: String,
    capability: String,
    multiprocessors: u32,
    memory: Found<MemoryFacts>,
}

/// All measured here and now.
#[derive(Serialize)]
struct MemoryFacts {
    free_bytes: u64,
    total_bytes: u64,
    h2d_gb_per_s: f64,
    d2h_gb_per_s: f64,
    d2d_gb_per_s: f64,
}

#[derive(Serialize)]
struct LibraryFacts {
    name: &'static str,
    /// Where it was found first, in the order in which the loader looks.
    path: Option<PathBuf>,
}

/// `kvista doctor`.
pub(super) fn doctor(args: &ListArgs) -> Result<(), Failure> {
    let (device, why) = backend::choose();
    let findings = Findings {
        version: env!("CARGO_PKG_VERSION"),
        auto: Auto { device, why },
        cpu: cpu(),
        driver: driver(),
        libraries: LIBRARIES.map(|name| LibraryFacts { name, path: find_library(name) }).into(),
        toolkit: toolkit(),
    };
    if args.json { print_facts(&findings) } else { say(&lines(&findings)) }
}

fn cpu() -> Cpu {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Cpu {
        name: name.map_or_else(|| env::consts::ARCH.into(), |(_, name)| name.trim().into()),
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        features: features(),
        free_bytes: memory::free_bytes(),
    }
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
    ]
    .into_iter()
    .filter_map(|(name, has)| has.then_some(name))
    .collect()
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<&'static str> {
    vec!["neon"]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

fn driver() -> Found<DriverFacts> {
    let found = Driver::open().and_then(|driver| {
        let (major, minor) = driver.cuda_version()?;
        let gpus = driver.gpus()?.into_iter().map(|gpu| gpu_facts(&driver, gpu)).collect();
        Ok(DriverFacts { cuda: format!("{major}.{minor}"), gpus })
    });
    match found {
        Ok(facts) => Found::Present(facts),
        Err(error) => Found::Missing(error.to_string()),
    }
}

fn gpu_facts(driver: &Driver, gpu: Gpu) -> GpuFacts {
    let memory = match driver.measure(&gpu, COPY_BYTES) {
        Ok(memory) => Found::Present(memory_facts(&memory)),
        Err(error) => Found::Missing(error.to_string()),
    };
    let (major, minor) = gpu.capability;
    GpuFacts {
        index: gpu.index,
        name: gpu.name,
        capability: format!("{major}.{minor}"),
        multiprocessors: gpu.multiprocessors,
        memory,
    }
}

fn memory_facts(memory: &Memory) -> MemoryFacts {
    MemoryFacts {
        free_bytes: memory.free_bytes,
        total_bytes: memory.total_bytes,
        h2d_gb_per_s: memory.h2d_bytes_per_s / 1e9,
        d2h_gb_per_s: memory.d2h_bytes_per_s / 1e9,
        d2d_gb_per_s: memory.d2d_bytes_per_s / 1e9,
    }
}

/// Looks where the loader would: `LD_LIBRARY_PATH`, the loader's cache as `ldconfig -p` tells it, the usual folders.
fn find_library(name: &str) -> Option<PathBuf> {
    let folders = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let named = env::split_paths(&folders).filter(|folder| folder.is_absolute());
    let usual =
        ["/usr/local/cuda/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"].map(PathBuf::from);
    named
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .or_else(|| cached_library(name))
        .or_else(|| usual.iter().map(|folder| folder.join(name)).find(|path| path.is_file()))
}

fn cached_library(name: &str) -> Option<PathBuf> {
    let listed = ["ldconfig", "/sbin/ldconfig"]
        .iter()
        .find_map(|program| Command::new(program).arg("-p").output().ok())
        .filter(|output| output.status.success())?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let line = listed.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_once("=> ").map(|(_, path)| PathBuf::from(path.trim()))
}

/// The version line of `nvcc`, looked for as the build looks for it.
fn toolkit() -> Found<String> {
    let named = env::var_os("NVCC").map(PathBuf::from);
    let homes = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"];
    let homes = homes.iter().filter_map(env::var_os).map(|home| Path::new(&home).join("bin/nvcc"));
    let candidates =
        named.into_iter().chain(homes).chain([PathBuf::from("nvcc"), "/usr/local/cuda/bin/nvcc".into()]);
    for nvcc in candidates {
        let Ok(output) = Command::new(&nvcc).arg("--version").output() else { continue };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if let Some(release) = text.lines().find(|line| line.contains("release")) {
            return Found::Present(format!("{}: {}", nvcc.display(), release.trim()));
        }
    }
    Found::Missing(
        "nvcc is not on PATH and not under CUDA_HOME; it is needed to build with --features cuda only".into(),
    )
}

fn lines(findings: &Findings) -> Vec<String> {
    let Cpu { name, cores, features, free_bytes } = &findings.cpu;
    let free = free_bytes.map_or_else(String::new, |b| format!(", {} free", number::bytes(b).trim()));
    let mut lines = vec![
        format!("kvista     {}, runs on {}: {}", findings.version, findings.auto.device, findings.auto.why),
        format!("cpu        {name}: {cores} cores, {}{free}", features.join(" ")),
    ];
    match &findings.driver {
        Found::Missing(why) => lines.push(format!("driver     {why}")),
        Found::Present(driver) => {
            lines.push(format!("driver     knows CUDA up to {}", driver.cuda));
            lines.extend(driver.gpus.iter().flat_map(gpu_lines));
        }
    }
    for library in &findings.libraries {
        let place = library.path.as_ref().map_or_else(
            || {
                "not found; a CUDA 13 toolkit or NVIDIA's wheels have it, LD_LIBRARY_PATH names its folder"
                    .into()
            },
            |path| path.display().to_string(),
        );
        lines.push(format!("library    {}: {place}", library.name));
    }
    lines.push(match &findings.toolkit {
        Found::Present(nvcc) => format!("toolkit    {nvcc}"),
        Found::Missing(why) => format!("toolkit    {why}"),
    });
    lines
}

fn gpu_lines(gpu: &GpuFacts) -> Vec<String> {
    let GpuFacts { index, name, capability, multiprocessors, memory } = gpu;
    let mut lines = vec![format!(
        "gpu {index}      {name}, compute capability {capability}, {multiprocessors} multiprocessors"
    )];
    lines.push(match memory {
        Found::Present(m) => format!(
            "           {} of {} free; measured: to the device {:.1} GB/s, back {:.1}, within (read and written) {:.0}",
            number::bytes(m.free_bytes).trim(),
            number::bytes(m.total_bytes).trim(),
            m.h2d_gb_per_s,
            m.d2h_gb_per_s,
            m.d2d_gb_per_s
        ),
        Found::Missing(why) => format!("           not measured: {why}"),
    });
    lines
}
