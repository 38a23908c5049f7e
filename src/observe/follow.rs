//! [`Follower`] reads a run's metrics file as it grows, a bounded piece at a time.
//!
//! The file may be damaged, may end in half a line that is being written, may hold millions of steps, and may be
//! replaced when a run resumes. What is no record is counted and passed over.

use serde_json::{Value, json};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::folder::end_of;
use super::series::Series;

/// Bytes that are read at once. A longer line is no record.
const CHUNK: usize = 1 << 20;

/// Bytes that one call reads at most, so that no answer takes long; the rest comes with the next.
const AT_ONCE: u64 = 8 << 20;

/// Bytes that are read again for a closer look at most.
const CLOSE: u64 = 128 << 20;

/// Bytes at a file's end in which its last record is looked for.
const TAIL: u64 = 64 << 10;

/// What has been read of one metrics file.
#[derive(Debug, Default)]
pub(super) struct Follower {
    /// Device and number of the file that was read.
    file: Option<[u64; 2]>,
    size: u64,
    /// Bytes that have been read: whole lines.
    offset: u64,
    /// Whether what follows belongs to a line that is too long to be a record.
    within_long: bool,
    series: Series,
    /// Lines that are no records.
    damaged: u64,
    last_step: u64,
    /// Rises when points change that were there already.
    generation: u64,
    /// At places of the file, the steps that came before.
    places: Vec<Place>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    offset: u64,
    last_step: u64,
}

impl Follower {
    /// Reads what is new, or the next piece of it. A file that was replaced or cut is read from its beginning.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn advance(&mut self, file: &File) -> io::Result<()> {
        let about = file.metadata()?;
        let name = [about.dev(), about.ino()];
        if self.file.is_some_and(|known| known != name) || about.len() < self.offset {
            *self = Self { generation: self.generation + 1, ..Self::default() };
        }
        (self.file, self.size) = (Some(name), about.len());
        let until = self.size.min(self.offset + AT_ONCE);
        let mut chunk = vec![0; CHUNK];
        while self.offset < until {
            let count = file.read_at(&mut chunk, self.offset)?;
            if count == 0 {
                break;
            }
            if self.places.last().is_none_or(|place| self.offset >= place.offset + CHUNK as u64 / 2) {
                self.places.push(Place { offset: self.offset, last_step: self.last_step });
            }
            let taken = self.take(&chunk[..count]);
            if taken == 0 {
                break; // half a line, for now
            }
            self.offset += taken as u64;
        }
        if self.series.take_rewritten() {
            self.generation += 1;
        }
        Ok(())
    }

    /// Bytes that have been read.
    pub fn read(&self) -> u64 {
        self.offset
    }

    /// Takes the whole lines that a piece of the file begins with; returns their bytes.
    fn take(&mut self, chunk: &[u8]) -> usize {
        let Some(end) = chunk.iter().rposition(|&byte| byte == b'\n').map(|at| at + 1) else {
            let too_long = chunk.len() == CHUNK || self.within_long;
            self.within_long |= too_long;
            return if too_long { chunk.len() } else { 0 };
        };
        for line in chunk[..end].split_inclusive(|&byte| byte == b'\n') {
            let long = std::mem::take(&mut self.within_long);
            match self.series.push(line).filter(|_| !long) {
                Some(step) => self.last_step = step,
                None => self.damaged += 1,
            }
        }
        end
    }

    /// What is known, but points of steps before `from` where the asker has them: of this generation, of this width.
    pub fn json(&self, generation: u64, width: u64, from: u64) -> Value {
        let known = generation == self.generation && width == self.series.width();
        json!({
            "generation": self.generation, "width": self.series.width(), "from": if known { from } else { 0 },
            "read": self.offset, "size": self.size, "damaged": self.damaged, "last_step": self.last_step,
            "series": self.series.json(if known { from } else { 0 }),
        })
    }

    /// A closer look at the steps `first` to `last`, read again from `file`; none where that would be too much.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn close(&self, file: &File, first: u64, last: u64) -> io::Result<Option<Value>> {
        let start = self.places.iter().rfind(|place| place.last_step < first).map_or(0, |place| place.offset);
        let end = self.places.iter().find(|place| place.last_step >= last).map_or(self.offset, |place| place.offset);
        if end.saturating_sub(start) > CLOSE {
            return Ok(None);
        }
        let mut part = Self { offset: start, ..Self::default() };
        let mut chunk = vec![0; CHUNK];
        while part.offset < end {
            let most = CHUNK.min((end - part.offset) as usize);
            let count = file.read_at(&mut chunk[..most], part.offset)?;
            let within = |line: &&[u8]| step_of(line).is_some_and(|step| (first..=last).contains(&step));
            let whole = chunk[..count].iter().rposition(|&byte| byte == b'\n').map_or(count, |at| at + 1);
            chunk[..whole].split_inclusive(|&byte| byte == b'\n').filter(within).for_each(|line| {
                part.series.push(line);
            });
            if whole == 0 {
                break;
            }
            part.offset += whole as u64;
        }
        Ok(Some(json!({ "width": part.series.width(), "series": part.series.json(0) })))
    }
}

/// The step of a line, found without reading the rest where the step comes first, as in the lines that longreel writes.
fn step_of(line: &[u8]) -> Option<u64> {
    let digits = line.strip_prefix(b"{\"step\":")?.split(|byte| !byte.is_ascii_digit()).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The last record of a metrics file, found from its end.
///
/// # Errors
/// It cannot be read.
pub(super) fn last_record(file: &File) -> io::Result<Option<Value>> {
    let (tail, _) = end_of(file, TAIL)?;
    let whole = tail.iter().rposition(|&byte| byte == b'\n').unwrap_or(0);
    let mut lines = tail[..whole].rsplit(|&byte| byte == b'\n');
    Ok(lines.find_map(|line| serde_json::from_slice::<Value>(line).ok().filter(|record| record["step"].is_u64())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn line(step: u64) -> String {
        format!("{{\"step\":{step},\"loss\":0.5}}\n")
    }

    fn follow(follower: &mut Follower, file: &File) -> Value {
        follower.advance(file).unwrap();
        follower.json(0, 0, 0)
    }

    #[test]
    fn half_a_line_waits_for_its_other_half_and_damage_is_counted() {
        let (mut file, mut follower) = (tempfile::tempfile().unwrap(), Follower::default());
        assert_eq!(follow(&mut follower, &file)["series"], json!({}));
        write!(file, "{}nonsense\n\0\0\n{}", line(1), &line(2)[..9]).unwrap();
        let seen = follow(&mut follower, &file);
        assert_eq!((&seen["last_step"], &seen["damaged"]), (&json!(1), &json!(2)));
        write!(file, "{}", &line(2)[9..]).unwrap();
        let seen = follow(&mut follower, &file);
        assert_eq!((&seen["series"]["loss"]["step"], &seen["damaged"]), (&json!([1, 2]), &json!(2)));
        assert_eq!(seen["read"], seen["size"]);
    }

    #[test]
    fn a_line_longer_than_any_record_is_passed_over() {
        let (mut file, mut follower) = (tempfile::tempfile().unwrap(), Follower::default());
        write!(file, "{}{}\n{}", line(1), "x".repeat(3 * CHUNK + 5), line(2)).unwrap();
        let seen = follow(&mut follower, &file);
        assert_eq!((&seen["series"]["loss"]["step"], &seen["damaged"]), (&json!([1, 2]), &json!(1)));
    }

    #[test]
    fn a_file_that_was_cut_or_replaced_is_read_anew() {
        let (mut file, mut follower) = (tempfile::tempfile().unwrap(), Follower::default());
        write!(file, "{}{}", line(1), line(2)).unwrap();
        follow(&mut follower, &file);
        file.set_len(line(1).len() as u64).unwrap();
        let seen = follow(&mut follower, &file);
        assert_eq!((&seen["last_step"], &seen["generation"]), (&json!(1), &json!(1)));
        let mut other = tempfile::tempfile().unwrap();
        write!(other, "{}{}{}", line(1), line(2), line(3)).unwrap();
        let seen = follow(&mut follower, &other);
        assert_eq!((&seen["last_step"], &seen["generation"]), (&json!(3), &json!(2)));
    }

    #[test]
    fn a_large_file_comes_in_pieces_and_a_close_look_has_every_step() {
        let (mut file, mut follower) = (tempfile::tempfile().unwrap(), Follower::default());
        let count = 1_500_000;
        let text: String = (1..=count).map(line).collect();
        file.write_all(text.as_bytes()).unwrap();
        let seen = follow(&mut follower, &file);
        assert!(seen["read"].as_u64().unwrap() < seen["size"].as_u64().unwrap(), "one call reads all of it");
        let calls = text.len() as u64 / AT_ONCE;
        let seen = (0..calls).map(|_| follow(&mut follower, &file)).last().unwrap();
        assert_eq!((&seen["read"], &seen["last_step"]), (&seen["size"], &json!(count)));
        let close = follower.close(&file, 1_000_001, 1_000_300).unwrap().unwrap();
        let steps: Vec<u64> = serde_json::from_value(close["series"]["loss"]["step"].clone()).unwrap();
        assert_eq!(steps, (1_000_001..=1_000_300).collect::<Vec<_>>());
    }

    #[test]
    fn the_last_record_is_found_before_a_torn_line() {
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(last_record(&file).unwrap(), None);
        write!(file, "{}{}garbage\n{}", line(1), line(2), &line(3)[..9]).unwrap();
        assert_eq!(last_record(&file).unwrap().unwrap()["step"], 2);
    }
}
