//! Chooses how many rows a tile has where the user does not say, from the CPU's cache or a GPU's memory and the
//! network's widest rows.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use crate::ops::Hardware;
use crate::{Result, bail};

/// Rows that pay for packing weights; more gain nothing.
const MOST: usize = 512;

/// Fewer would spend their time on packing weights, whatever the cache.
const LEAST: usize = 128;

/// What three of the widest rows of a GPU's tile may take together: small against its memory, and so many rows that a
/// kernel's launch is small against its work.
const ON_GPU: usize = 512 << 20;

/// Elements up to which a GPU's tile may be handed to Candle's kernels: they count in 32 bits and, beyond this, do
/// elements again or never end. What is longer than a tile is left to kernels that count in 64.
const CANDLES_MOST: usize = 1 << 31;

/// Rows of a GPU's tile up to which sums over 64 of them each are launched at once: a grid has no more blocks along y.
const RUNS_MOST: usize = 65_535 * 64;

/// Refuses a GPU's tile of `rows` rows, the widest of `width` elements, that is too long for what is launched on it.
pub(crate) fn check_on_gpu(rows: usize, width: usize) -> Result<()> {
    let most = (CANDLES_MOST / width).min(RUNS_MOST);
    if rows > most {
        bail!(
            Config,
            "a tile of {rows} rows of up to {width} elements is longer than kernels of a GPU count; set train.tile to 0 or to \
             {most} at most"
        )
    }
    Ok(())
}

/// Rows of a tile. `asked` is taken as it is, but 0 is automatic.
///
/// On a CPU: as many as let three rows of `width` f32 (`ffn_dim`) fit a quarter of the last-level cache, 128 to 512.
/// Three, for the input, the output and a gradient; a quarter, since ranks and neighbours share that cache. 512 if the
/// system does not say how large it is. On a GPU: as many as let these rows fit 512 MiB, 1024 to 65536.
pub fn tile_rows(asked: usize, width: usize, on: Hardware) -> usize {
    static CACHE: LazyLock<Option<usize>> =
        LazyLock::new(|| last_level(Path::new("/sys/devices/system/cpu/cpu0/cache")));
    match (asked, on) {
        (0, Hardware::Cpu) => rows(width, *CACHE),
        (0, Hardware::Cuda) => (ON_GPU / (3 * 4 * width) / 1024 * 1024).clamp(1024, 65_536),
        _ => asked,
    }
}

fn rows(width: usize, cache: Option<usize>) -> usize {
    let Some(cache) = cache else { return MOST };
    let fit = cache / 4 / (3 * 4 * width);
    (fit / 64 * 64).clamp(LEAST, MOST)
}

/// Bytes of the largest cache that Linux names in `folder`; None if it names none.
fn last_level(folder: &Path) -> Option<usize> {
    let size = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path().join("size")).ok()?; // such as 32768K
        text.trim().strip_suffix('K')?.parse::<usize>().ok()?.checked_mul(1024)
    };
    fs::read_dir(folder).ok()?.filter_map(|entry| size(entry.ok()?)).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tile_is_shorter_for_wider_rows_and_smaller_caches() {
        let mib = |n: usize| Some(n << 20);
        assert_eq!(rows(768, mib(32)), 512);
        assert_eq!(rows(768, None), 512);
        assert_eq!(rows(3072, mib(32)), 192); // 8 MiB / 36 KiB is 227
        assert_eq!(rows(13824, mib(32)), 128);
        assert_eq!(rows(768, mib(1)), 128);
    }

    #[test]
    fn automatic_tile_follows_this_machines_cache() {
        let cache = last_level(Path::new("/sys/devices/system/cpu/cpu0/cache"));
        for width in [64, 3072, 1 << 20] {
            assert_eq!(tile_rows(0, width, Hardware::Cpu), rows(width, cache), "width {width}, cache {cache:?}");
        }
    }

    #[test]
    fn automatic_gpu_tile_fits_512_mib() {
        for (width, rows) in [(256, 65_536), (1536, 28_672), (13_824, 3072), (1 << 20, 1024)] {
            assert_eq!(tile_rows(0, width, Hardware::Cuda), rows, "width {width}");
        }
        assert_eq!(tile_rows(7, 256, Hardware::Cuda), 7);
    }

    #[test]
    fn gpu_tile_too_long_for_kernels_is_an_error() {
        check_on_gpu(1_398_101, 1536).unwrap();
        let error = check_on_gpu(1_398_102, 1536).unwrap_err().to_string();
        assert!(error.contains("1398102 rows of up to 1536 elements") && error.contains("1398101 at most"), "{error}");
        check_on_gpu(4_194_240, 8).unwrap();
        let error = check_on_gpu(4_194_241, 8).unwrap_err().to_string();
        assert!(error.contains("set train.tile to 0 or to 4194240 at most"), "{error}");
        for width in [1, 1536, 13_824, 1 << 18, 1 << 21] {
            check_on_gpu(tile_rows(0, width, Hardware::Cuda), width).unwrap();
        }
    }

    #[test]
    fn last_level_cache_is_the_largest_one() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(last_level(folder.path()), None);
        for (index, size) in ["48K\n", "32K\n", "1024K\n", "?\n"].iter().enumerate() {
            let index = folder.path().join(format!("index{index}"));
            fs::create_dir(&index).unwrap();
            fs::write(index.join("size"), size).unwrap();
        }
        assert_eq!(last_level(folder.path()), Some(1 << 20));
        assert_eq!(last_level(&folder.path().join("none")), None);
    }
}
