//! Opening `libibverbs` at run time. Its absence is a value that says what was looked for.

use std::error::Error;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::abi::{Channel, Context, Cq, Device, DeviceAttr, MemoryRegion, Pd, PortAttr, Qp, QpAttr, QpInitAttr};

/// What is opened, in this order. Found as the dynamic linker finds libraries, so `LD_LIBRARY_PATH` has its say.
const NAMES: [&str; 2] = ["libibverbs.so.1", "libibverbs.so"];

/// The library's threads and providers stay: it is never unloaded.
const RTLD_NODELETE: c_int = 0x1000;

macro_rules! verbs {
    ($($name:ident: fn($($argument:ty),*) -> $result:ty,)*) => {
        /// The exported functions used here.
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct Verbs { $(pub(crate) $name: unsafe extern "C" fn($($argument),*) -> $result,)* }

        impl Verbs {
            fn bind(library: &Library) -> Result<Self, &'static str> {
                // SAFETY: the types are those of `infiniband/verbs.h`, whose ABI this library name stands for; the
                // library is never unloaded, so the pointers stay good.
                unsafe {
                    Ok(Self {
                        $($name: *library
                            .get(concat!(stringify!($name), "\0").as_bytes())
                            .map_err(|_| stringify!($name))?,)*
                    })
                }
            }
        }
    };
}

verbs! {
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut Device,
    ibv_free_device_list: fn(*mut *mut Device) -> (),
    ibv_get_device_name: fn(*mut Device) -> *const c_char,
    ibv_open_device: fn(*mut Device) -> *mut Context,
    ibv_close_device: fn(*mut Context) -> c_int,
    ibv_query_device: fn(*mut Context, *mut DeviceAttr) -> c_int,
    ibv_query_port: fn(*mut Context, u8, *mut PortAttr) -> c_int,
    ibv_alloc_pd: fn(*mut Context) -> *mut Pd,
    ibv_dealloc_pd: fn(*mut Pd) -> c_int,
    ibv_reg_mr: fn(*mut Pd, *mut c_void, usize, c_int) -> *mut MemoryRegion,
    ibv_dereg_mr: fn(*mut MemoryRegion) -> c_int,
    ibv_create_comp_channel: fn(*mut Context) -> *mut Channel,
    ibv_destroy_comp_channel: fn(*mut Channel) -> c_int,
    ibv_create_cq: fn(*mut Context, c_int, *mut c_void, *mut Channel, c_int) -> *mut Cq,
    ibv_destroy_cq: fn(*mut Cq) -> c_int,
    ibv_get_cq_event: fn(*mut Channel, *mut *mut Cq, *mut *mut c_void) -> c_int,
    ibv_ack_cq_events: fn(*mut Cq, c_uint) -> (),
    ibv_create_qp: fn(*mut Pd, *mut QpInitAttr) -> *mut Qp,
    ibv_modify_qp: fn(*mut Qp, *mut QpAttr, c_int) -> c_int,
    ibv_destroy_qp: fn(*mut Qp) -> c_int,
    ibv_wc_status_str: fn(c_uint) -> *const c_char,
}

impl Verbs {
    /// The functions, from the library opened once for the process; or why there are none.
    pub(crate) fn get() -> Result<&'static Self, String> {
        static LOADED: OnceLock<Result<Verbs, String>> = OnceLock::new();
        LOADED.get_or_init(|| Self::open(&NAMES)).as_ref().map_err(Clone::clone)
    }

    /// Opens the first of these libraries that is there.
    fn open(names: &[&str]) -> Result<Self, String> {
        let mut reasons = Vec::new();
        for name in names {
            // SAFETY: libibverbs runs no code at load time but its own initialisers, which any RDMA program runs.
            match unsafe { Library::open(Some(*name), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) } {
                Ok(library) => {
                    return Self::bind(&library).map_err(|function| format!("{name} lacks the function {function}"));
                }
                Err(error) => reasons.push(reason(name, &error)),
            }
        }
        Err(format!("cannot open libibverbs (package rdma-core); tried {}", reasons.join("; ")))
    }

    /// What the library calls a completion status.
    pub(crate) fn status_text(&self, status: c_uint) -> String {
        // SAFETY: takes any number and returns a static string.
        let text = unsafe { (self.ibv_wc_status_str)(status) };
        if text.is_null() {
            return format!("status {status}");
        }
        // SAFETY: not null, so a static string that ends in a zero.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

/// What the dynamic linker said, which names the file.
fn reason(name: &str, error: &libloading::Error) -> String {
    error.source().map_or_else(|| format!("{name}: {error}"), |source| format!("{name}: {source}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let error = Verbs::open(&["libnot-there.so.1", "libneither.so"]).unwrap_err();
        for wanted in ["libnot-there.so.1", "libneither.so", "rdma-core"] {
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn a_library_that_is_another_says_what_it_lacks() {
        let error = Verbs::open(&["libc.so.6"]).unwrap_err();
        assert!(error.contains("libc.so.6") && error.contains("ibv_get_device_list"), "{error}");
    }
}
