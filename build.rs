//! With feature `cuda`: the kernels of `kernels/` into one fatbin per file, and `fatbins.rs`, which embeds them by name.
//! Without it nothing happens.
//!
//! nvcc is what `NVCC` names, else `bin/nvcc` under `CUDA_HOME` or `CUDA_PATH`, else the one on `PATH`. Machine code is
//! made for the architectures of `ARCHS` that it knows, PTX for the lowest, which every newer GPU's driver compiles;
//! `KVISTA_CUDA_ARCHS=90` or `80,90` narrows the machine code.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Compute capabilities: Ampere, Ada, Hopper, Blackwell.
const ARCHS: [u32; 6] = [80, 86, 89, 90, 100, 120];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=kernels");
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "KVISTA_CUDA_ARCHS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if let Err(message) = fatbins() {
        for line in message.lines() {
            println!("cargo::error={line}");
        }
    }
}

/// Compiles every kernel file.
fn fatbins() -> Result<(), String> {
    let nvcc = Nvcc::find()?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: build with cargo")?);
    let folder = Path::new("kernels");
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut sources: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    sources.sort();

    // The largest files take most of the time: as many at once as there are cores, or as cargo allows.
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
    let (next, faults) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, sources.len().max(1)) {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(fault) = nvcc.fatbin(source, &out.join(name(source)).with_extension("fatbin"))
                        && let Ok(mut faults) = faults.lock()
                    {
                        faults.push(fault);
                    }
                }
            });
        }
    });
    let faults = faults.into_inner().unwrap_or_default();
    if !faults.is_empty() {
        return Err(faults.join("\n"));
    }

    let mut table = String::from(
        "/// File name without ending, and its fatbin.\n#[rustfmt::skip]\nstatic FATBINS: &[(&str, &[u8])] = &[\n",
    );
    for source in &sources {
        let name = name(source);
        let file = out.join(&name).with_extension("fatbin");
        // Writing to a string does not fail.
        let _ = writeln!(table, "    ({name:?}, include_bytes!({:?})),", file.display().to_string());
    }
    table.push_str("];\n");
    let file = out.join("fatbins.rs");
    fs::write(&file, table).map_err(|e| format!("{}: {e}", file.display()))
}

fn name(source: &Path) -> String {
    source.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The compiler and the architectures that it shall make code for.
struct Nvcc {
    program: PathBuf,
    archs: Vec<u32>,
}

impl Nvcc {
    fn find() -> Result<Self, String> {
        let under = |name| env::var_os(name).map(|root| PathBuf::from(root).join("bin/nvcc"));
        let program = env::var_os("NVCC")
            .map(PathBuf::from)
            .or_else(|| under("CUDA_HOME"))
            .or_else(|| under("CUDA_PATH"))
            .unwrap_or_else(|| PathBuf::from("nvcc"));
        let known =
            Command::new(&program).arg("--list-gpu-arch").output().ok().filter(|o| o.status.success());
        let Some(known) = known else {
            return Err(format!(
                "feature `cuda` needs nvcc, and {} does not run: install the CUDA toolkit (12 or 13), or say where it is \
                 with NVCC or CUDA_HOME, or build without --features cuda",
                program.display()
            ));
        };
        let known = String::from_utf8_lossy(&known.stdout).into_owned();
        let mut archs: Vec<u32> = ARCHS
            .into_iter()
            .filter(|arch| known.lines().any(|l| l.trim() == format!("compute_{arch}")))
            .collect();
        if let Ok(asked) = env::var("KVISTA_CUDA_ARCHS") {
            let asked: Vec<&str> = asked.split([',', ' ']).filter(|arch| !arch.is_empty()).collect();
            let odd = asked.iter().find(|arch| !archs.iter().any(|known| known.to_string() == **arch));
            if let Some(odd) = odd {
                return Err(format!(
                    "KVISTA_CUDA_ARCHS: {odd} is none of {archs:?}, which this nvcc can make"
                ));
            }
            archs.retain(|arch| asked.contains(&arch.to_string().as_str()));
        }
        if archs.is_empty() {
            return Err(format!("{} makes code for none of {ARCHS:?}", program.display()));
        }
        Ok(Self { program, archs })
    }

    fn fatbin(&self, source: &Path, out: &Path) -> Result<(), String> {
        let mut command = Command::new(&self.program);
        command.args(["-O3", "-std=c++17", "-lineinfo", "-Xfatbin=-compress-all", "-fatbin"]);
        for arch in &self.archs {
            command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
        }
        command.arg(format!("-gencode=arch=compute_{0},code=compute_{0}", ARCHS[0]));
        command.arg("-o").arg(out).arg(source);
        let output = command.output().map_err(|e| format!("{}: {e}", self.program.display()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("{}:\n{}", source.display(), String::from_utf8_lossy(&output.stderr).trim()))
    }
}
