//! [`Series`] holds a run's measurements in bounded memory: for each name a few thousand points, however many steps
//! there were.
//!
//! A point stands for `width` steps in a row. When a name has too many, the width doubles for all names and neighbours
//! merge. A point keeps the lowest, the highest and the mean value of its steps, so that a spike of one step in a
//! million is still to be seen.

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Formatter};

/// Points of a name at most.
const MOST_POINTS: usize = 2048;

/// Names at most; more are a damaged file's.
const MOST_NAMES: usize = 200;

/// The last step that a browser's numbers, doubles, hold exactly.
const LAST_STEP: u64 = 1 << 53;

/// One or more steps' values of one name.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    /// The last step among them.
    step: u64,
    count: f64,
    sum: f64,
    min: f64,
    max: f64,
}

impl Point {
    fn merge(&mut self, other: &Self) {
        self.step = self.step.max(other.step);
        (self.count, self.sum) = (self.count + other.count, self.sum + other.sum);
        (self.min, self.max) = (self.min.min(other.min), self.max.max(other.max));
    }
}

/// Measurements by name.
#[derive(Clone, Debug)]
pub(super) struct Series {
    /// Steps that a point stands for: a power of two.
    width: u64,
    points: BTreeMap<String, Vec<Point>>,
    /// Whether a value came for a step before the last one, so that points changed which a reader may have taken
    /// already.
    rewritten: bool,
}

impl Default for Series {
    fn default() -> Self {
        Self { width: 1, points: BTreeMap::new(), rewritten: false }
    }
}

/// A name in a line of JSON, copied only where it has escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// The numbers of a line. A file may have millions, so none is made into a map first.
#[derive(Default)]
struct Line<'a> {
    step: Option<u64>,
    values: Vec<(Name<'a>, f64)>,
}

impl<'de> Deserialize<'de> for Line<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(LineVisitor)
    }
}

struct LineVisitor;

impl<'de> Visitor<'de> for LineVisitor {
    type Value = Line<'de>;

    fn expecting(&self, out: &mut Formatter) -> fmt::Result {
        out.write_str("a record of metrics")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Line<'de>, A::Error> {
        let mut line = Line::default();
        while let Some(name) = map.next_key::<Name>()? {
            let value: Value = map.next_value()?;
            match &*name.0 {
                "step" => line.step = value.as_u64(),
                _ => line.values.extend(value.as_f64().map(|value| (name, value))),
            }
        }
        Ok(line)
    }
}

impl Series {
    /// Adds a line of the metrics file, a record of one step. Returns that step; none where the line is no such record.
    pub fn push(&mut self, line: &[u8]) -> Option<u64> {
        let Line { step, values } = serde_json::from_slice(line).ok()?;
        let step = step.filter(|step| (1..=LAST_STEP).contains(step))?;
        for (Name(name), value) in &values {
            self.add(name, Point { step, count: 1.0, sum: *value, min: *value, max: *value });
        }
        Some(step)
    }

    fn add(&mut self, name: &str, point: Point) {
        if !self.points.contains_key(name) {
            if self.points.len() >= MOST_NAMES {
                return;
            }
            self.points.insert(name.to_owned(), vec![]);
        }
        let Some(points) = self.points.get_mut(name) else { return };
        let width = self.width;
        let place = |step: u64| (step - 1) / width;
        let at = match points.last() {
            Some(last) if place(last.step) < place(point.step) => points.len(), // nearly always
            _ => points.partition_point(|other| place(other.step) < place(point.step)),
        };
        self.rewritten |= points.last().is_some_and(|last| last.step >= point.step);
        match points.get_mut(at) {
            // Of lines of one step the last is that of the history that went on.
            Some(same) if place(same.step) == place(point.step) && width == 1 => *same = point,
            Some(same) if place(same.step) == place(point.step) => same.merge(&point),
            _ => points.insert(at, point),
        }
        if points.len() > MOST_POINTS {
            self.double_width();
        }
    }

    /// Merges neighbours until no name has too many points; names may be as far apart as a damaged file puts them.
    fn double_width(&mut self) {
        self.width *= 2;
        let width = self.width;
        for points in self.points.values_mut() {
            points.dedup_by(|next, point| {
                let same = (next.step - 1) / width == (point.step - 1) / width;
                if same {
                    point.merge(next);
                }
                same
            });
        }
        if self.width < LAST_STEP && self.points.values().any(|points| points.len() > MOST_POINTS) {
            self.double_width();
        }
    }

    /// Whether points changed that are not the last ones, since this was asked last.
    pub fn take_rewritten(&mut self) -> bool {
        std::mem::take(&mut self.rewritten)
    }

    /// Steps that a point stands for.
    pub fn width(&self) -> u64 {
        self.width
    }

    /// The points from that of step `from` on: `{"NAME": {"step": [..], "mean": [..], "min": [..], "max": [..]}}`.
    /// `step` is left out where it is that of `loss`, `min` and `max` where each point is one value.
    pub fn json(&self, from: u64) -> Value {
        let after = |points: &[Point]| {
            let start = points.partition_point(|p| (p.step - 1) / self.width < from.saturating_sub(1) / self.width);
            points[start..].to_vec()
        };
        let steps = |points: &[Point]| points.iter().map(|p| p.step).collect::<Vec<_>>();
        let base = self.points.get("loss").map_or(vec![], |points| steps(&after(points)));
        let shown = self.points.iter().filter(|(name, _)| !name.starts_with("bytes_")).map(|(name, points)| {
            let points = after(points);
            let mut one = Map::new();
            if name == "loss" || steps(&points) != base {
                one.insert("step".into(), json!(steps(&points)));
            }
            let column = |value: &dyn Fn(&Point) -> f64| Value::from_iter(points.iter().map(|p| rounded(value(p))));
            one.insert("mean".into(), column(&|p| p.sum / p.count));
            if points.iter().any(|p| p.count > 1.0) && !name.starts_with("seconds_") {
                one.insert("min".into(), column(&|p| p.min));
                one.insert("max".into(), column(&|p| p.max));
            }
            (name.clone(), Value::Object(one))
        });
        Value::Object(shown.collect())
    }
}

/// The value to six digits: a curve shows no more, and messages are half as long.
fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, loss: f64) -> Vec<u8> {
        format!(r#"{{"step":{step},"loss":{loss},"other":null}}"#).into_bytes()
    }

    #[test]
    fn a_spike_of_one_step_in_a_hundred_thousand_is_kept() {
        let mut series = Series::default();
        for step in 1..=100_000 {
            assert_eq!(series.push(&record(step, if step == 77_777 { 9.0 } else { 1.0 })), Some(step));
        }
        let json = series.json(0);
        let column = |name: &str| -> Vec<f64> { serde_json::from_value(json["loss"][name].clone()).unwrap() };
        let (steps, max, min) = (column("step"), column("max"), column("min"));
        assert!((MOST_POINTS / 2..=MOST_POINTS).contains(&steps.len()), "{}", steps.len());
        assert_eq!((steps[steps.len() - 1], series.width()), (100_000.0, 64));
        assert_eq!((max.iter().filter(|&&x| x == 9.0).count(), min.iter().filter(|&&x| x != 1.0).count()), (1, 0));
        let at = max.iter().position(|&x| x == 9.0).unwrap();
        assert!(steps[at - 1] < 77_777.0 && 77_777.0 <= steps[at]);
        assert_eq!(json.as_object().unwrap().len(), 1, "what is no number has no curve");
    }

    #[test]
    fn a_step_that_comes_again_replaces_the_old_one_and_is_noticed() {
        let mut series = Series::default();
        for (step, loss) in [(1, 5.0), (2, 4.0), (3, 3.0)] {
            series.push(&record(step, loss));
        }
        assert!(!series.take_rewritten());
        series.push(&record(2, 8.0));
        assert!(series.take_rewritten() && !series.take_rewritten());
        assert_eq!(series.json(0)["loss"], json!({"step": [1, 2, 3], "mean": [5.0, 8.0, 3.0]}));
        assert_eq!(series.json(3)["loss"], json!({"step": [3], "mean": [3.0]}));
    }

    #[test]
    fn what_is_no_record_is_not_taken() {
        let mut series = Series::default();
        let huge = format!(r#"{{"step":{},"loss":1}}"#, u64::MAX);
        for line in ["", "{", "[1]", r#"{"loss":1}"#, r#"{"step":0,"loss":1}"#, r#"{"step":-1}"#, "\0\0", &huge] {
            assert_eq!(series.push(line.as_bytes()), None, "{line:?}");
        }
        for name in 0..2 * MOST_NAMES {
            series.push(format!(r#"{{"step":1,"name{name}":1}}"#).as_bytes());
        }
        assert_eq!(series.json(0).as_object().unwrap().len(), MOST_NAMES);
    }
}
