//! The kernels of `kernels/` as this build carries them: machine code for several generations of GPUs, and PTX for those to
//! come.

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// The fatbin of `kernels/NAME.cu`, as the driver's `cuModuleLoadData` takes it; `None` where there is no such file.
pub fn fatbin(name: &str) -> Option<&'static [u8]> {
    FATBINS.iter().find(|(file, _)| *file == name).map(|(_, fatbin)| *fatbin)
}
