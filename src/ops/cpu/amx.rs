//! AMX: the matrix unit beside AVX-512 BF16 on Intel's CPUs since Sapphire Rapids. One `tdpbf16ps` adds the product of 16 x 32
//! by 32 x 16 bf16 to 16 x 16 sums in f32, sixteen times the work of a `vdpbf16ps` in a cycle.
//!
//! Its operands are those of [`super::tile`]: rows of words on the left, strips of words on the right. What is not a product runs on
//! the vector unit ([`super::avx512_bf16`]). Rust's intrinsics for it are unstable yet, hence the assembly.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

use super::tile::{Left, Out, Right};

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

/// [`super::tile::product`] on tiles: `rows` and `steps` are multiples of 32 and 16, all rows of `a` are `a.row` apart and their
/// steps neighbours.
///
/// # Safety
/// As there; the thread's [`Tiles`] are configured.
#[inline(always)]
pub(super) unsafe fn product<const ROW: usize>(steps: usize, a: Left<ROW>, b: Right, out: Out) {
    debug_assert!(a.step == 1 && out.rows.is_multiple_of(2 * SIDE) && steps.is_multiple_of(SIDE) && steps > 0);
    for (i, column) in (0..out.width).step_by(b.step).enumerate() {
        for row in (0..out.rows).step_by(2 * SIDE) {
            // SAFETY: a strip and its columns, and two tiles of rows, of the same operands.
            unsafe {
                let block = Block {
                    steps,
                    left: a.words.add(row * a.row),
                    row: a.row,
                    right: b.words.add(i * b.strip),
                    step: b.step,
                    out: out.values.add(row * out.stride + column),
                    stride: out.stride,
                    add: out.add,
                };
                if b.step.min(out.width - column) == SIDE { block.narrow() } else { block.wide() }
            }
        }
    }
}

/// Sums that stay in tiles: two tiles of rows by two of columns, or by one. Strides in words.
struct Block {
    steps: usize,
    left: *const u32,
    row: usize,
    right: *const u32,
    step: usize,
    out: *mut f32,
    stride: usize,
    add: bool,
}

// Two tiles of each operand feed four products, so loading takes half as long as multiplying; the four sums are independent, and
// as many products pass before one is added to again as take to be done.
impl Block {
    /// Two tiles of columns.
    #[inline(always)]
    unsafe fn wide(self) {
        // SAFETY: the caller's promise to `product`; tiles belong to no one else between `Tiles::configure` and its drop.
        unsafe {
            asm!(
                "test {add:e}, {add:e}",
                "jnz 2f",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "jmp 3f",
                "2:",
                "tileloadd tmm0, [{out} + {stride}]",
                "tileloadd tmm1, [{out} + {stride} + 64]",
                "tileloadd tmm2, [{out_below} + {stride}]",
                "tileloadd tmm3, [{out_below} + {stride} + 64]",
                "3:",
                "tileloadd tmm4, [{left} + {row}]",
                "tileloadd tmm6, [{right} + {step}]",
                "tileloadd tmm7, [{right} + {step} + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{left_below} + {row}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {left}, 64",
                "add {left_below}, 64",
                "add {right}, {next}",
                "dec {tiles}",
                "jnz 3b",
                "tilestored [{out} + {stride}], tmm0",
                "tilestored [{out} + {stride} + 64], tmm1",
                "tilestored [{out_below} + {stride}], tmm2",
                "tilestored [{out_below} + {stride} + 64], tmm3",
                left = inout(reg) self.left => _,
                left_below = inout(reg) self.left.add(SIDE * self.row) => _,
                row = in(reg) 4 * self.row,
                right = inout(reg) self.right => _,
                step = in(reg) 4 * self.step,
                next = in(reg) 4 * SIDE * self.step,
                tiles = inout(reg) self.steps / SIDE => _,
                out = in(reg) self.out,
                out_below = in(reg) self.out.add(SIDE * self.stride),
                stride = in(reg) 4 * self.stride,
                add = in(reg) u32::from(self.add),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// One tile of columns.
    #[inline(always)]
    unsafe fn narrow(self) {
        // SAFETY: as above.
        unsafe {
            asm!(
                "test {add:e}, {add:e}",
                "jnz 2f",
                "tilezero tmm0",
                "tilezero tmm2",
                "jmp 3f",
                "2:",
                "tileloadd tmm0, [{out} + {stride}]",
                "tileloadd tmm2, [{out_below} + {stride}]",
                "3:",
                "tileloadd tmm4, [{left} + {row}]",
                "tileloadd tmm6, [{right} + {step}]",
                "tileloadd tmm5, [{left_below} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "add {left}, 64",
                "add {left_below}, 64",
                "add {right}, {next}",
                "dec {tiles}",
                "jnz 3b",
                "tilestored [{out} + {stride}], tmm0",
                "tilestored [{out_below} + {stride}], tmm2",
                left = inout(reg) self.left => _,
                left_below = inout(reg) self.left.add(SIDE * self.row) => _,
                row = in(reg) 4 * self.row,
                right = inout(reg) self.right => _,
                step = in(reg) 4 * self.step,
                next = in(reg) 4 * SIDE * self.step,
                tiles = inout(reg) self.steps / SIDE => _,
                out = in(reg) self.out,
                out_below = in(reg) self.out.add(SIDE * self.stride),
                stride = in(reg) 4 * self.stride,
                add = in(reg) u32::from(self.add),
                out("tmm0") _, out("tmm2") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
                options(nostack),
            );
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
