//! Runs matrix products on the CPU's instruction sets, for attention and the linear layers.
//!
//! From below: [`simd`] is the trait that `avx512_bf16`, `avx512`, `avx2` and `portable` implement; [`tile`] multiplies
//! packed panels (`operands`) on registers, `amx` on a matrix unit; [`scratch`] is their working memory and
//! [`uninit_vec`] new results; [`panel`] packs matrices on the right (bf16 by `halves`), [`left`] rows on the left;
//! [`product`] multiplies them whole, [`streamed`] panel by panel; [`conv`] multiplies frames ([`packed_frame`]) with
//! kernels; [`mod@peak`] measures what an instruction set can do. Code is written once for all of them and runs on the
//! one that [`Isa`] names, so tests can compare each with a plain form.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_bf16;
pub(crate) mod conv;
mod exp;
mod halves;
pub(crate) mod left;
mod operands;
pub(crate) mod packed_frame;
pub(crate) mod pairs;
pub(crate) mod panel;
pub mod peak;
pub(crate) mod portable;
pub(crate) mod product;
pub(crate) mod scratch;
pub(crate) mod streamed;
pub(crate) mod tile;
pub(crate) mod uninit_vec;
pub(crate) mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::{Error, Result};
use std::sync::LazyLock;

/// The environment variable that masks CPU features, for tests and benchmarks: kernels use the instruction set of this
/// name, and nothing newer, so that one machine runs what an older one would.
pub const CPU_VARIABLE: &str = "LONGREEL_CPU";

/// The instruction set that the kernels run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, any CPU; bf16 in pairs, as in `Avx512Bf16`, for tests of that layout.
    Pairs,
    /// As `Pairs`, with the layouts of `Amx`.
    Tiles,
    /// Plain Rust, any CPU.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F and DQ; bf16 input is widened to f32.
    Avx512,
    /// AVX-512 with bf16 dot products (f32 input as in `Avx512`).
    Avx512Bf16,
    /// AVX-512 BF16 with AMX for products of bf16.
    Amx,
}

impl Isa {
    /// All instruction sets, from the slowest to the fastest.
    pub const ALL: [Self; 7] =
        [Self::Pairs, Self::Tiles, Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pairs => "pairs",
            Self::Tiles => "tiles",
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Amx => "amx",
        }
    }

    /// The newest instruction set that [`CPU_VARIABLE`] allows; none: all that the CPU has.
    ///
    /// # Errors
    /// The variable names no instruction set, or one in plain Rust that only tests use.
    pub fn allowed() -> Result<Option<Self>> {
        static ALLOWED: LazyLock<std::result::Result<Option<Isa>, String>> = LazyLock::new(|| {
            let Some(name) = std::env::var_os(CPU_VARIABLE).filter(|name| !name.is_empty()) else { return Ok(None) };
            let paths = Isa::ALL.into_iter().filter(|&isa| isa >= Isa::Portable);
            let names: Vec<&str> = paths.clone().map(Isa::name).collect();
            match paths.into_iter().find(|isa| isa.name() == name) {
                Some(isa) => Ok(Some(isa)),
                None => Err(format!("{CPU_VARIABLE}={name:?}: must be one of {}, or unset", names.join(", "))),
            }
        });
        ALLOWED.clone().map_err(Error::Config)
    }

    /// Whether this CPU has the instruction set, and [`CPU_VARIABLE`] allows it.
    pub fn is_available(self) -> bool {
        let allowed = Self::allowed().ok().flatten();
        (self <= Self::Portable || allowed.is_none_or(|newest| self <= newest)) && self.is_supported()
    }

    #[cfg(target_arch = "x86_64")]
    fn is_supported(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq");
        let bf16 = avx512 && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bf16");
        match self {
            Self::Pairs | Self::Tiles | Self::Portable => true,
            Self::Avx2 => avx2,
            Self::Avx512 => avx512,
            Self::Avx512Bf16 => bf16,
            Self::Amx => bf16 && amx::is_available(),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_supported(self) -> bool {
        matches!(self, Self::Pairs | Self::Tiles | Self::Portable)
    }

    /// The fastest available instruction set. Intel's cores multiply pairs of bf16 at half the rate of f32 (`longreel
    /// bench peak` on 2 cores of a Xeon: 170 GFLOP/s against 346), so where AMX is missing they widen them, unless
    /// [`CPU_VARIABLE`] asks for pairs.
    pub fn best() -> Self {
        static BEST: LazyLock<Isa> = LazyLock::new(|| {
            let newest = Isa::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Isa::Portable);
            let asked = Isa::allowed().ok().flatten() == Some(newest);
            if newest == Isa::Avx512Bf16 && !asked && is_intel() { Isa::Avx512 } else { newest }
        });
        *BEST
    }
}

/// Whether Intel made this CPU.
#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}

/// Runs an expression with `$S` the [`Simd`](simd::Simd) of an instruction set for f32 (`false`) or bf16 (`true`)
/// elements.
macro_rules! with_isa {
    ($isa:expr, $bf16:literal, $S:ident => $body:expr) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Isa::Amx if $bf16 => {
                type $S = $crate::simd::avx512_bf16::Avx512Bf16<true>;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Isa::Avx512Bf16 if $bf16 => {
                type $S = $crate::simd::avx512_bf16::Avx512Bf16<false>;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Isa::Avx512 | $crate::simd::Isa::Avx512Bf16 | $crate::simd::Isa::Amx => {
                type $S = $crate::simd::avx512::Avx512<$bf16>;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Isa::Avx2 => {
                type $S = $crate::simd::avx2::Avx2<$bf16>;
                $body
            }
            $crate::simd::Isa::Pairs if $bf16 => {
                type $S = $crate::simd::pairs::Pairs<false>;
                $body
            }
            $crate::simd::Isa::Tiles if $bf16 => {
                type $S = $crate::simd::pairs::Pairs<true>;
                $body
            }
            _ => {
                type $S = $crate::simd::portable::Portable<$bf16>;
                $body
            }
        }
    };
}

pub(crate) use with_isa;

/// The f32 nearest to x that a bf16 can hold.
#[inline(always)]
pub(crate) fn round_to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

/// The value of a bf16.
#[inline(always)]
pub(crate) fn widened(x: half::bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// The bf16 nearest to x. A NaN keeps its upper bits, and one of them set, since rounding could carry it away.
#[inline(always)]
pub(crate) fn narrowed(x: f32) -> half::bf16 {
    let bits = if x.is_nan() { x.to_bits() >> 16 | 0x40 } else { round_to_bf16(x).to_bits() >> 16 };
    half::bf16::from_bits(bits as u16)
}
