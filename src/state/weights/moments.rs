//! Keeps the optimizer's moments and the moving average, of the part of each unit that this rank updates, in memory or
//! in a scratch file. They are words of four bytes; what these mean, the optimizer knows.
//!
//! Of the file, memory holds what belongs to three units at most: one being read, one being updated, one being written,
//! each by a thread of its own.

use candle_core::{DType, Device, Tensor};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::path::Path;

use crate::files::{Place, Scratch};
use crate::model::UnitId;
use crate::ops::bytes::zeros;
use crate::ops::{read, storage_bytes, write};
use crate::parallel::thread_refused;
use crate::{Error, Result};

/// Which of a unit's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The first moment.
    M,
    /// The second.
    V,
    /// The weights' moving average.
    Average,
}

/// All units' moments, and averages if there are any.
pub(super) struct Moments {
    /// Each unit's words, by kind.
    parts: Vec<(UnitId, [usize; 3])>,
    /// 2, or 3 with the average.
    kinds: usize,
    home: Home,
}

enum Home {
    /// By unit and kind.
    Memory(Vec<Vec<Tensor>>),
    Disk(Scratch),
}

/// Units in flight between file and optimizer.
pub const IN_FLIGHT: usize = 3;

/// A unit's values while they are out of the file, one kind after another.
type Numbers = Vec<f32>;

impl Moments {
    /// Of units with so many words of each kind; moments are zero, averages are what `average` gives for each unit.
    /// Memory is the `device`'s.
    ///
    /// # Errors
    /// The scratch folder cannot be written to, or has no room.
    pub fn new(
        parts: Vec<(UnitId, [usize; 3])>,
        average: Option<&dyn Fn(UnitId) -> Result<Tensor>>,
        place: Place,
        folder: Option<&Path>,
        device: &Device,
    ) -> Result<Self> {
        let kinds = if average.is_some() { 3 } else { 2 };
        let home = match place {
            Place::Ram => {
                let zeros = |len: usize| zeros(&[len], DType::F32, device);
                let unit = |&(unit, [m, v, _]): &(UnitId, [usize; 3])| -> Result<Vec<Tensor>> {
                    let mut buffers = vec![zeros(m)?, zeros(v)?];
                    if let Some(average) = average {
                        buffers.push(average(unit)?);
                    }
                    Ok(buffers)
                };
                Home::Memory(parts.iter().map(unit).collect::<Result<_>>()?)
            }
            Place::Disk => {
                Home::Disk(Scratch::open(folder, "name another stash.folder, or train.moments = \"ram\"".to_owned())?)
            }
        };
        let new = Self { parts, kinds, home };
        if let Home::Disk(file) = &new.home {
            file.reserve(new.start(new.parts.len()))?; // reads as zeros
            for &(unit, _) in new.parts.iter().filter(|_| kinds == 3) {
                if let Some(average) = average {
                    let first = read::<f32>(&average(unit)?)?.to_vec();
                    new.change(unit, Kind::Average, |average| average.copy_from_slice(&first))?;
                }
            }
        }
        Ok(new)
    }

    /// One kind of a unit's words; None: there is no average. From memory it is the tensor itself, which changes in
    /// later steps.
    pub fn get(&self, unit: UnitId, kind: Kind) -> Result<Option<Tensor>> {
        if kind as usize >= self.kinds {
            return Ok(None);
        }
        Ok(Some(match &self.home {
            Home::Memory(units) => units[unit.index()][kind as usize].clone(),
            Home::Disk(file) => {
                let mut numbers = vec![0f32; self.words(unit)[kind as usize]];
                file.read(self.at(unit, kind), bytemuck::cast_slice_mut(&mut numbers))?;
                let len = numbers.len();
                Tensor::from_vec(numbers, len, &Device::Cpu)?
            }
        }))
    }

    /// By unit and kind, if they are on a GPU.
    pub fn on_gpu(&self) -> Option<&[Vec<Tensor>]> {
        match &self.home {
            Home::Memory(units) if units.iter().flatten().any(|t| t.device().is_cuda()) => Some(units),
            _ => None,
        }
    }

    /// Lets `f` change one kind of a unit's words; nothing if there is no average.
    pub fn change(&self, unit: UnitId, kind: Kind, f: impl FnOnce(&mut [f32])) -> Result<()> {
        let Some(numbers) = self.get(unit, kind)? else { return Ok(()) };
        write(&numbers, f)?;
        if let Home::Disk(file) = &self.home {
            file.write(self.at(unit, kind), bytemuck::cast_slice(&read::<f32>(&numbers)?))?;
        }
        Ok(())
    }

    /// Lets `f` change both moments and the average of every unit, in order. From a file they are read a unit ahead and
    /// written a unit behind.
    pub fn each(
        &self,
        mut f: impl FnMut(UnitId, &mut [f32], &mut [f32], Option<&mut [f32]>) -> Result<()>,
    ) -> Result<()> {
        let file = match &self.home {
            Home::Memory(units) => {
                for (&(id, _), unit) in self.parts.iter().zip(units) {
                    let average = unit.get(Kind::Average as usize);
                    write(&unit[0], |m: &mut [f32]| {
                        write(&unit[1], |v: &mut [f32]| match average {
                            Some(average) => write(average, |average: &mut [f32]| f(id, m, v, Some(average)))?,
                            None => f(id, m, v, None),
                        })
                    })???;
                }
                return Ok(());
            }
            Home::Disk(file) => file,
        };
        let (spare_in, spare) = bounded::<Numbers>(IN_FLIGHT);
        (0..IN_FLIGHT).try_for_each(|_| spare_in.send(vec![])).map_err(|_| stopped())?;
        let (read_out, prefetch) = bounded(IN_FLIGHT);
        let (behind, write_in) = bounded(IN_FLIGHT);
        std::thread::scope(|scope| {
            let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
            let refused = |e: std::io::Error| thread_refused("a thread to copy moments", &e);
            let reader = thread("moments-in").spawn_scoped(scope, || self.read_ahead(file, spare, read_out));
            let reader = reader.map_err(refused)?;
            let writer = thread("moments-out").spawn_scoped(scope, || self.write_behind(file, write_in, spare_in));
            let writer = writer.map_err(refused)?;
            let work = self.parts.iter().try_for_each(|&(unit, [first, second, _])| {
                let mut numbers = prefetch.recv().map_err(|_| stopped())?;
                let (m, rest) = numbers.split_at_mut(first);
                let (v, average) = rest.split_at_mut(second);
                f(unit, m, v, (self.kinds == 3).then_some(average))?;
                behind.send(numbers).map_err(|_| stopped())
            });
            drop((prefetch, behind)); // ends both threads, if they are not done
            // Why a thread stopped says more than that it did.
            let ended =
                |thread: std::thread::ScopedJoinHandle<Result<()>>| thread.join().unwrap_or_else(|_| Err(stopped()));
            let (reader, writer) = (ended(reader), ended(writer));
            writer.and(if work.is_ok() { Ok(()) } else { reader }).and(work)
        })
    }

    fn read_ahead(&self, file: &Scratch, spare: Receiver<Numbers>, out: Sender<Numbers>) -> Result<()> {
        for (unit, (_, words)) in self.parts.iter().enumerate() {
            let Ok(mut numbers) = spare.recv() else { break };
            let words: usize = words[..self.kinds].iter().sum();
            numbers.reserve_exact(words.saturating_sub(numbers.len())); // no more than the plan counts
            numbers.resize(words, 0.0);
            file.read(self.start(unit), bytemuck::cast_slice_mut(&mut numbers))?;
            if out.send(numbers).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn write_behind(&self, file: &Scratch, from: Receiver<Numbers>, spare: Sender<Numbers>) -> Result<()> {
        for (unit, numbers) in from.iter().enumerate() {
            file.write(self.start(unit), bytemuck::cast_slice(&numbers))?;
            let _ = spare.send(numbers); // nobody may want it any more
        }
        Ok(())
    }

    /// Bytes in memory between steps: of the moments, and of the average.
    pub fn state_bytes(&self) -> [usize; 2] {
        match &self.home {
            Home::Memory(units) => {
                let sum = |kind: Kind| {
                    units.iter().filter_map(|unit| unit.get(kind as usize)).map(storage_bytes).sum::<usize>()
                };
                [sum(Kind::M) + sum(Kind::V), sum(Kind::Average)]
            }
            Home::Disk(_) => [0; 2],
        }
    }

    /// A unit's words, by kind.
    fn words(&self, unit: UnitId) -> [usize; 3] {
        self.parts[unit.index()].1
    }

    /// The byte of the file where the values of the `unit`-th unit begin.
    fn start(&self, unit: usize) -> u64 {
        self.parts[..unit].iter().map(|(_, words)| 4 * words[..self.kinds].iter().sum::<usize>() as u64).sum()
    }

    fn at(&self, unit: UnitId, kind: Kind) -> u64 {
        self.start(unit.index()) + 4 * self.words(unit)[..kind as usize].iter().sum::<usize>() as u64
    }
}

fn stopped() -> Error {
    Error::Environment("moments: the thread that copies them has stopped".to_owned())
}
