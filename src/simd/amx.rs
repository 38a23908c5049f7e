//! Multiplies on AMX, the matrix unit beside AVX-512 BF16 on Intel's CPUs since Sapphire Rapids. One `tdpbf16ps` adds
//! the product of 16 x 32 by 32 x 16 bf16 to 16 x 16 sums in f32, sixteen times the work of a `vdpbf16ps` in a cycle.
//!
//! Its operands are those of [`super::tile`]: rows of words on the left, column blocks of words on the right. What is
//! not a product runs on the vector unit ([`super::avx512_bf16`]). Rust's intrinsics for it are unstable yet, hence the
//! assembly.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

use super::tile::{Left, Out, Right};
use super::vector::Beside;

/// Rows of a tile, and words of a row.
const SIDE: usize = 16;

/// Whether the CPU has the unit and the system lets this process use it, which has to be asked for once.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const XSAVE: u32 = 1 << 27; // of leaf 1's ecx: the system uses xsave
        const BF16_AND_TILE: u32 = 1 << 22 | 1 << 24; // of leaf 7's edx
        const TILES: u64 = 1 << 17 | 1 << 18; // of XCR0: the system keeps the tiles and their configuration
        let has = __cpuid(0).eax >= 7
            && __cpuid(1).ecx & XSAVE != 0
            && __cpuid_count(7, 0).edx & BF16_AND_TILE == BF16_AND_TILE;
        // SAFETY: the system uses xsave.
        has && unsafe { enabled() } & TILES == TILES && permitted()
    })
}

#[target_feature(enable = "xsave")]
fn enabled() -> u64 {
    // SAFETY: register 0 is there wherever xsave is.
    unsafe { _xgetbv(0) }
}

/// Asks Linux for the tiles' registers, for all threads of this process, also later ones: see the kernel's
/// Documentation/arch/x86/xstate.rst.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XTILEDATA: usize = 18;
    let result: isize;
    // SAFETY: a system call that touches no memory of ours; it overwrites rcx and r11.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XTILEDATA,
             out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// A thread's tiles, configured; given back when dropped, so that the system has less to save.
pub(super) struct Tiles(());

impl Tiles {
    /// All eight tiles as 16 rows of 64 bytes.
    ///
    /// # Safety
    /// The unit [is available](is_available).
    pub unsafe fn configure() -> Self {
        #[repr(C, align(64))]
        struct Configuration([u8; 64]);
        static WHOLE: Configuration = {
            let mut bytes = [0; 64];
            bytes[0] = 1; // the palette
            let mut tile = 0;
            while tile < 8 {
                bytes[16 + 2 * tile] = 64; // bytes of a row, 16 bits each
                bytes[48 + tile] = SIDE as u8;
                tile += 1;
            }
            Configuration(bytes)
        };
        // SAFETY: the unit is there; reads 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE, options(nostack, preserves_flags, readonly)) };
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the unit is there.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) }
    }
}

// Tiles are named in the assembly alone: the compiler knows of them and uses none, so they keep their values from one
// instruction here to the next. What is written is said to be overwritten.

/// `load!(tile, rows, stride in bytes)`
macro_rules! load {
    ($tile:tt, $rows:expr, $stride:expr) => {
        asm!(concat!("tileloadd ", $tile, ", [{} + {}]"), in(reg) $rows, in(reg) $stride, out($tile) _,
             options(nostack, preserves_flags))
    };
}

/// `store!(tile, rows, stride in bytes)`
macro_rules! store {
    ($tile:tt, $rows:expr, $stride:expr) => {
        asm!(concat!("tilestored [{} + {}], ", $tile), in(reg) $rows, in(reg) $stride, options(nostack, preserves_flags))
    };
}

macro_rules! zero {
    ($tile:tt) => {
        asm!(concat!("tilezero ", $tile), out($tile) _, options(nostack, preserves_flags, nomem))
    };
}

/// `multiply!(sums, left, right)`
macro_rules! multiply {
    ($sums:tt, $left:tt, $right:tt) => {
        asm!(concat!("tdpbf16ps ", $sums, ", ", $left, ", ", $right), out($sums) _, options(nostack, preserves_flags))
    };
}

/// Room between two instructions for tiles. The unit has times, seconds to minutes long, in which instructions close to
/// each other take twice as long as with others between them, be they without effect; at other times these cost
/// nothing.
macro_rules! apart {
    () => {
        asm!(".rept 8", "nop", ".endr", options(nostack, preserves_flags, nomem))
    };
}

/// `each!(i => between, number instruction, ...)`: `between` comes after each of the instructions, whose number is `i`.
/// (A closure might not be inlined, and would then lack the unit's features.)
macro_rules! each {
    ($i:ident => $between:expr, $($number:literal $instruction:expr),*) => {
        { $($instruction; { let $i: usize = $number; $between })* }
    };
}

/// `wide!(at, i => between)`: 16 steps of two by two tiles. Two tiles of each operand feed four products, so loading
/// takes half as long as multiplying. `between` comes after each of the eight instructions.
macro_rules! wide {
    ($at:ident, $i:ident => $between:expr) => {{
        each!($i => $between,
            0 load!("tmm4", $at.left, $at.row),
            1 load!("tmm6", $at.right, $at.step),
            2 multiply!("tmm0", "tmm4", "tmm6"),
            3 load!("tmm7", $at.right.add(SIDE), $at.step),
            4 multiply!("tmm1", "tmm4", "tmm7"),
            5 load!("tmm5", $at.below, $at.row),
            6 multiply!("tmm2", "tmm5", "tmm6"),
            7 multiply!("tmm3", "tmm5", "tmm7"));
        $at.advance();
    }};
}

/// [`super::tile::product`] on tiles: `rows` and `steps` are multiples of 32 and 16, all rows of `a` are `a.row` apart
/// and their steps neighbours. As much of `work` is done between the instructions as there are products for.
///
/// Products that follow each other closely are slower than others: weaving hides more than the work's own time.
///
/// # Safety
/// As there; the thread's [`Tiles`] are configured.
#[inline(always)]
pub(super) unsafe fn product<const ROW: usize>(steps: usize, a: Left<ROW>, b: Right, out: Out, work: &mut impl Beside) {
    debug_assert!(a.step == 1 && out.rows.is_multiple_of(2 * SIDE) && steps.is_multiple_of(SIDE));
    let stride = 4 * out.stride;
    for (i, column) in (0..out.width).step_by(b.step).enumerate() {
        let wide = b.step.min(out.width - column) > SIDE;
        for row in (0..out.rows).step_by(2 * SIDE) {
            // SAFETY: a column block and its one or two tiles of columns, and two tiles of rows, of the operands. Tiles
            // are no one else's between `Tiles::configure` and its drop.
            unsafe {
                let to = out.values.add(row * out.stride + column);
                let below = to.add(SIDE * out.stride);
                if out.add {
                    load!("tmm0", to, stride);
                    load!("tmm2", below, stride);
                    if wide {
                        load!("tmm1", to.add(SIDE), stride);
                        load!("tmm3", below.add(SIDE), stride);
                    }
                } else {
                    zero!("tmm0");
                    zero!("tmm1");
                    zero!("tmm2");
                    zero!("tmm3");
                }
                let left = a.words.add(row * a.row);
                let mut at = At {
                    left,
                    below: left.add(SIDE * a.row),
                    row: 4 * a.row,
                    right: b.words.add(i * b.column_block),
                    step: 4 * b.step,
                };
                let mut left = steps / SIDE;
                while left > 0 {
                    if !wide {
                        at.narrow();
                        left -= 1;
                    } else if work.more() && left >= work.pace() {
                        match work.pace() {
                            1 => at.wide_beside::<1>(work),
                            2 => at.wide_beside::<2>(work),
                            _ => at.wide_beside::<4>(work),
                        }
                        left -= work.pace();
                    } else {
                        at.wide();
                        left -= 1;
                    }
                }
                store!("tmm0", to, stride);
                store!("tmm2", below, stride);
                if wide {
                    store!("tmm1", to.add(SIDE), stride);
                    store!("tmm3", below.add(SIDE), stride);
                }
            }
        }
    }
}

/// Where the next 16 steps of two tiles of rows and up to two of columns begin; strides in bytes.
struct At {
    left: *const u32,
    below: *const u32,
    row: usize,
    right: *const u32,
    step: usize,
}

impl At {
    #[inline(always)]
    unsafe fn advance(&mut self) {
        // SAFETY: the caller has these steps.
        unsafe {
            self.left = self.left.add(SIDE);
            self.below = self.below.add(SIDE);
            self.right = self.right.byte_add(SIDE * self.step);
        }
    }

    #[inline(always)]
    unsafe fn wide(&mut self) {
        // SAFETY: the caller's promise to `product`.
        unsafe { wide!(self, _i => apart!()) }
    }

    /// `PACE` times [`Self::wide`], with a row of work.
    #[inline(always)]
    unsafe fn wide_beside<const PACE: usize>(&mut self, work: &mut impl Beside) {
        // SAFETY: the caller's promise to `product`; there is a row.
        unsafe {
            let mut row = work.begin();
            for time in 0..PACE {
                wide!(self, i => {
                    let done = 8 * time + i + 1; // of 8 PACE instructions
                    if done.is_multiple_of(PACE) {
                        work.two(&mut row, done / PACE - 1);
                    } else {
                        apart!();
                    }
                });
            }
            work.end(row);
        }
    }

    /// One tile of columns.
    #[inline(always)]
    unsafe fn narrow(&mut self) {
        // SAFETY: the caller's promise to `product`.
        unsafe {
            each!(_i => apart!(),
                0 load!("tmm4", self.left, self.row),
                1 load!("tmm6", self.right, self.step),
                2 multiply!("tmm0", "tmm4", "tmm6"),
                3 load!("tmm5", self.below, self.row),
                4 multiply!("tmm2", "tmm5", "tmm6"));
            self.advance();
        }
    }
}

/// Products of constant tiles: what the unit does a second at most. Returns how many operations that was.
///
/// # Safety
/// The unit [is available](is_available).
pub(super) unsafe fn peak(rounds: usize) -> usize {
    // SAFETY: the unit is there, and the tiles are configured.
    unsafe {
        let _tiles = Tiles::configure(); // all zeros
        asm!(
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {rounds}",
            "jnz 2b",
            rounds = inout(reg) rounds => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nostack, nomem),
        );
    }
    4 * rounds * 2 * SIDE * SIDE * 2 * SIDE
}
