//! Loads libnccl when a run starts, by the names that its packages give it, and the few of its functions that are used.
//!
//! Not linked: a build needs no NCCL, and one that is missing is an error with words instead of a process that does not
//! start. cudarc would load it as well, but not beside Candle, which has cudarc link what it binds.

use libloading::Library;
use std::error::Error as _;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use crate::parallel::rank_info;
use crate::{Error, Result, bail};

/// What it is called: with its version by the packages that run programs, without by those that build them.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// The oldest that has all that is called and the [`Config`] below.
const OLDEST: c_int = 21_800;

pub(super) const SUCCESS: c_int = 0;
pub(super) const IN_PROGRESS: c_int = 7;
/// All is moved as bytes.
pub(super) const BYTES: c_int = 1;

pub(super) type Handle = *mut c_void;
pub(super) type Stream = *mut c_void;

/// `ncclUniqueId`: where the ranks of a communicator meet.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId(pub [u8; 128]);

/// `ncclConfig_t` as of NCCL 2.18: later ones are longer, and go by its size and version.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// All as NCCL likes it, but that no call waits, so that a rank that does not come can be given up.
    pub fn new() -> Self {
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: OLDEST as c_uint,
            blocking: 0,
            cga_cluster_size: c_int::MIN,
            min_ctas: c_int::MIN,
            max_ctas: c_int::MIN,
            net_name: std::ptr::null(),
            split_share: c_int::MIN,
        }
    }
}

macro_rules! functions {
    ($($field:ident: $name:literal ($($argument:ty),*) -> $result:ty;)*) => {
        /// What is called, by NCCL's documentation.
        pub(super) struct Nccl {
            $(pub $field: unsafe extern "C" fn($($argument),*) -> $result,)*
            /// Keeps the functions where they are.
            _library: Library,
        }

        impl Nccl {
            fn bind(library: Library) -> std::result::Result<Self, libloading::Error> {
                Ok(Self {
                    // SAFETY: the types are those of NCCL's header, which has kept them since 2.18 or longer.
                    $($field: unsafe { *library.get::<unsafe extern "C" fn($($argument),*) -> $result>($name)? },)*
                    _library: library,
                })
            }
        }
    };
}

functions! {
    get_version: "ncclGetVersion" (*mut c_int) -> c_int;
    get_unique_id: "ncclGetUniqueId" (*mut UniqueId) -> c_int;
    get_error_string: "ncclGetErrorString" (c_int) -> *const c_char;
    get_last_error: "ncclGetLastError" (Handle) -> *const c_char;
    init_rank: "ncclCommInitRankConfig" (*mut Handle, c_int, UniqueId, c_int, *mut Config) -> c_int;
    get_async_error: "ncclCommGetAsyncError" (Handle, *mut c_int) -> c_int;
    finalize: "ncclCommFinalize" (Handle) -> c_int;
    destroy: "ncclCommDestroy" (Handle) -> c_int;
    abort: "ncclCommAbort" (Handle) -> c_int;
    group_start: "ncclGroupStart" () -> c_int;
    group_end: "ncclGroupEnd" () -> c_int;
    send: "ncclSend" (*const c_void, usize, c_int, c_int, Handle, Stream) -> c_int;
    receive: "ncclRecv" (*mut c_void, usize, c_int, c_int, Handle, Stream) -> c_int;
    broadcast: "ncclBroadcast" (*const c_void, *mut c_void, usize, c_int, c_int, Handle, Stream) -> c_int;
}

impl Nccl {
    /// Finds and loads it.
    ///
    /// # Errors
    /// There is none, or one that is too old.
    pub fn load() -> Result<Self> {
        let mut why = vec![];
        for name in NAMES {
            // SAFETY: what a library does when it is loaded is its own; NCCL reads its environment and no more.
            match unsafe { Library::new(name) }.and_then(Self::bind) {
                Ok(nccl) => return nccl.recent(),
                // The loader's own words, which libloading keeps apart.
                Err(e) => why.push(e.source().map_or_else(|| e.to_string(), ToString::to_string)),
            }
        }
        bail!(
            Environment,
            "NCCL is not to be used on this machine: {}; install NCCL 2.18 or newer, or name its folder in LD_LIBRARY_PATH",
            why.join("; ")
        )
    }

    fn recent(self) -> Result<Self> {
        let version = self.version()?;
        if version < OLDEST {
            bail!(
                Environment,
                "NCCL here is {}, and longreel needs 2.18 or newer: install one",
                rank_info::version(version)
            );
        }
        Ok(self)
    }

    /// As NCCL counts: 22304 is 2.23.4.
    pub fn version(&self) -> Result<c_int> {
        let mut version = 0;
        // SAFETY: a plain call with a pointer to a local.
        self.check(unsafe { (self.get_version)(&mut version) })?;
        Ok(version)
    }

    /// A new meeting place, at this process.
    pub fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: a plain call with a pointer to a local of NCCL's size.
        self.check(unsafe { (self.get_unique_id)(&mut id) })?;
        Ok(id)
    }

    /// A call's code as an error with NCCL's own text. That a call is still under way is none.
    pub fn check(&self, code: c_int) -> Result<()> {
        if code == SUCCESS || code == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: NCCL gives constant strings for every code; the last error is a buffer of its own, which is copied at
        // once, and whose communicator may be none.
        let [what, last] = unsafe {
            [(self.get_error_string)(code), (self.get_last_error)(std::ptr::null_mut())].map(|text| owned(text))
        };
        let last = if last.is_empty() { last } else { format!(": {last}") };
        Err(Error::Environment(format!("NCCL reports {what}{last}"))) // it names NCCL_DEBUG itself
    }
}

/// # Safety
/// `text` is null or a C string.
unsafe fn owned(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
}
