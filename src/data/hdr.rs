//! High dynamic range (PQ, HLG) to the range and colours of everything else.
//!
//! Light comes out as a display shows it: PQ says so itself, HLG as on a display of 1000 nits (BT.2100, system gamma
//! 1.2). Diffuse white is 203 nits (BT.2408). BT.2020 goes to BT.709; what lies outside is clipped. The largest
//! component is tone-mapped, the others keep their proportion to it: half of white and below stay, above, a curve leads
//! smoothly to 1 at 1000 nits. The result is coded for the display of BT.1886 (gamma 2.4), as FFmpeg's zscale filter
//! does.

use ffmpeg_next::format::Pixel;
use ffmpeg_next::frame;
use ffmpeg_next::util::color::TransferCharacteristic;
use std::sync::OnceLock;

/// Nits of diffuse white.
const WHITE: f64 = 203.0;

/// Nits that become the brightest value. A fixed one: what a file says of its mastering comes with some frames only.
const PEAK: f64 = 1000.0;

/// Light up to here, diffuse white being 1, is not changed by tone mapping.
const KNEE: f64 = 0.5;

/// Linear BT.2020 to BT.709 (BT.2087).
const TO_709: [[f32; 3]; 3] = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]];

/// How a frame codes light.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    Pq,
    Hlg,
}

impl Transfer {
    /// That of `frame`, if it has high dynamic range.
    pub fn of(frame: &frame::Video) -> Option<Self> {
        match frame.color_transfer_characteristic() {
            TransferCharacteristic::SMPTE2084 => Some(Self::Pq),
            TransferCharacteristic::ARIB_STD_B67 => Some(Self::Hlg),
            _ => None,
        }
    }

    /// Converts pixels of R, G, B in 16 bits, little-endian, to 8 bits.
    pub fn to_sdr(self, from: &[u8], to: &mut [u8]) {
        let (light, code) = (self.light(), codes());
        for (from, to) in from.chunks_exact(6).zip(to.chunks_exact_mut(3)) {
            let value = |c: usize| light[usize::from(u16::from_le_bytes([from[2 * c], from[2 * c + 1]]))];
            let mut wide = [value(0), value(1), value(2)];
            if self == Self::Hlg {
                let luminance = 0.2627 * wide[0] + 0.678 * wide[1] + 0.0593 * wide[2];
                let gain = (PEAK / WHITE) as f32 * luminance.powf(0.2);
                wide = wide.map(|v| v * gain);
            }
            let rgb = TO_709.map(|row| (row[0] * wide[0] + row[1] * wide[1] + row[2] * wide[2]).max(0.0));
            let most = rgb[0].max(rgb[1]).max(rgb[2]);
            let scale = if f64::from(most) > KNEE { rolled_off(f64::from(most)) as f32 / most } else { 1.0 };
            for (to, v) in to.iter_mut().zip(rgb) {
                *to = code[((v * scale).min(1.0).sqrt() * (CODES - 1) as f32 + 0.5) as usize];
            }
        }
    }

    /// An RGB frame of 16 bits and high dynamic range in 8 bits and the usual one.
    pub fn in_sdr(self, source: &frame::Video) -> frame::Video {
        let mut flat = frame::Video::new(Pixel::RGB24, source.width(), source.height());
        let (from, to, width) = (source.stride(0), flat.stride(0), source.width() as usize);
        for (input, output) in source.data(0).chunks_exact(from).zip(flat.data_mut(0).chunks_exact_mut(to)) {
            self.to_sdr(&input[..width * 6], &mut output[..width * 3]);
        }
        flat
    }

    /// Light of each 16-bit value: on the display for PQ, diffuse white being 1; at the camera for HLG, its most being
    /// 1.
    fn light(self) -> &'static [f32] {
        static PQ: OnceLock<Vec<f32>> = OnceLock::new();
        static HLG: OnceLock<Vec<f32>> = OnceLock::new();
        let table = |of: fn(f64) -> f64| (0..=u16::MAX).map(|v| of(f64::from(v) / 65535.0) as f32).collect();
        match self {
            Self::Pq => PQ.get_or_init(|| table(|v| pq(v) / WHITE)),
            Self::Hlg => HLG.get_or_init(|| table(hlg)),
        }
    }
}

/// Nits of a PQ value (SMPTE ST 2084).
fn pq(value: f64) -> f64 {
    let root = value.powf(32.0 / 2523.0);
    10000.0 * ((root - 0.8359375).max(0.0) / (18.8515625 - 18.6875 * root)).powf(8192.0 / 1305.0)
}

/// Light at the camera of an HLG value (BT.2100).
fn hlg(value: f64) -> f64 {
    let (a, b, c) = (0.17883277, 0.28466892, 0.55991073);
    if value <= 0.5 { value * value / 3.0 } else { (((value - c) / a).exp() + b) / 12.0 }
}

/// Light above the knee, tone-mapped: t (1 + t / m^2) / (1 + t) of what lies between knee and 1, which is m at the
/// peak.
fn rolled_off(light: f64) -> f64 {
    let t = (light - KNEE) / (1.0 - KNEE);
    let m = (PEAK / WHITE - KNEE) / (1.0 - KNEE);
    (KNEE + (1.0 - KNEE) * t * (1.0 + t / (m * m)) / (1.0 + t)).min(1.0)
}

/// Entries of a table over the root of light, which is nearly even in what comes out.
const CODES: usize = 4096;

/// 8-bit values for light, by its square root.
fn codes() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    let code = |i: usize| (255.0 * (i as f64 / (CODES - 1) as f64).powf(2.0 / 2.4)).round() as u8;
    TABLE.get_or_init(|| (0..CODES).map(code).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The inverse of [`pq`], from the standard.
    fn pq_of(nits: f64) -> f64 {
        let power = (nits / 10000.0).powf(1305.0 / 8192.0);
        ((0.8359375 + 18.8515625 * power) / (1.0 + 18.6875 * power)).powf(2523.0 / 32.0)
    }

    fn grey(transfer: Transfer, value: f64) -> u8 {
        let pixel = ((value * 65535.0).round() as u16).to_le_bytes().repeat(3);
        let mut out = [0; 3];
        transfer.to_sdr(&pixel, &mut out);
        assert!(out[0].abs_diff(out[1]) <= 1 && out[1].abs_diff(out[2]) <= 1, "{out:?}");
        out[1]
    }

    #[test]
    fn light_has_its_place() {
        // 255 (nits / 203)^(1 / 2.4) up to half of white; white itself at 0.5 + 0.25 (1 + 1 / 8.85^2).
        for (nits, expected) in
            [(0.0, 0), (1.0, 28), (26.0, 108), (100.0, 190), (203.0, 227), (1000.0, 255), (10000.0, 255)]
        {
            let found = grey(Transfer::Pq, pq_of(nits));
            assert!(found.abs_diff(expected) <= 1, "{nits} nits: {found}, not {expected}");
        }
        // BT.2408: 75 % of HLG is diffuse white, 203 nits; 38 % is 26 nits, middle grey.
        for (value, expected) in [(0.0, 0), (0.38, 108), (0.75, 227), (1.0, 255)] {
            let found = grey(Transfer::Hlg, value);
            assert!(found.abs_diff(expected) <= 1, "HLG {value}: {found}, not {expected}");
        }
    }

    #[test]
    fn brighter_never_comes_out_darker() {
        for transfer in [Transfer::Pq, Transfer::Hlg] {
            let values: Vec<u8> = (0..=1000).map(|i| grey(transfer, f64::from(i) / 1000.0)).collect();
            assert!(values.windows(2).all(|pair| pair[0] <= pair[1]), "{transfer:?}");
        }
    }
}
