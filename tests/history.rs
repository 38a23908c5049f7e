//! A metrics file made to agree with the checkpoint that a run resumes from: its faults are named, none of its lines is
//! lost.

use crate::metrics::record;
use longreel::observe::metrics::{self, MetricsLog, Record};
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

/// What `act` returns, and what it logs.
fn logged<T>(act: impl FnOnce() -> T) -> (T, String) {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let value = tracing::subscriber::with_default(subscriber, act);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    (value, text)
}

/// The lines of `records`, each with its newline.
fn lines_of(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| serde_json::to_string(record).unwrap() + "\n").collect()
}

#[test]
fn faults_of_the_file_are_named_and_mended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let again = |step| Record { loss: 7.0, ..record(step) };
    let good = lines_of(&[1, 2, 5, 6, 7].map(record));
    let later = lines_of(&[again(6), again(7), record(9)]);
    let [nul, torn] = ["\0".repeat(3 << 20), "{\"step\":10,\"lo".to_owned()];
    let damaged = format!("oops\n{nul}\n");
    let text = [&good[0], &good[1], &damaged, &good[2], &good[3], &good[4], &later[0], &later[1], &later[2], &torn];
    let text: String = text.map(String::as_str).concat();
    fs::write(&path, text).unwrap();

    let (log, said) = logged(|| MetricsLog::resume(&path, 8).unwrap());
    drop(log);
    assert_eq!(metrics::read(&path).unwrap(), [record(1), record(2), record(5), again(6), again(7)]);
    // Nothing is lost: what was left out is in a file beside, in order.
    let cut: String = [&damaged, &good[3], &good[4], &later[2], &torn].map(String::as_str).concat();
    assert!(fs::read_to_string(folder.path().join("metrics-cut.jsonl")).unwrap() == cut + "\n");
    for fault in [
        "line 3 is not a record of metrics: ",
        "line 4 holds NUL bytes",
        "lines 6 to 7 of steps 6 to 7 come again further on; the later ones count",
        "has no line for steps 3 to 4",
        "has no line for step 8\n",
        "line 11 was torn when the run ended",
        "6 lines were moved to metrics-cut.jsonl, 1 of them of steps after 8",
    ] {
        assert!(said.contains(&format!("{}: {fault}", path.display())), "{fault} is not in\n{said}");
    }
    assert_eq!(said.lines().count(), 7, "{said}");

    // A mended file stays the file it is; only the gaps can still be told.
    let about = fs::metadata(&path).unwrap();
    let (_, said) = logged(|| MetricsLog::resume(&path, 8).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().ino(), about.ino());
    assert_eq!(said.lines().count(), 2, "{said}");
    // It goes on where the checkpoint is, however far its lines reach.
    MetricsLog::resume(&path, 8).unwrap().write(&record(9)).unwrap();
    assert_eq!(metrics::read(&path).unwrap().last(), Some(&record(9)));
}

#[test]
fn lines_out_of_order_are_put_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let text = lines_of(&[1, 4, 2, 3, 5].map(record)).concat();
    fs::write(&path, text.trim_end()).unwrap(); // the last is whole, but for its newline
    let (_, said) = logged(|| MetricsLog::resume(&path, 5).unwrap());
    assert!(said.contains("lines 3 to 4 of steps 2 to 3 come after a later step"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(fs::read_to_string(&path).unwrap(), lines_of(&[1, 2, 3, 4, 5].map(record)).concat());
    assert!(!folder.path().join("metrics-cut.jsonl").exists());

    let many: String = (0..9).map(|i| format!("damage {i}\n")).collect();
    fs::write(&path, many).unwrap();
    let (_, said) = logged(|| MetricsLog::resume(&path, 0).unwrap());
    assert_eq!(said.matches("is not a record").count(), 5, "{said}");
    assert!(said.contains("and 4 more like that"), "{said}");
}

#[test]
fn a_cut_that_fails_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let text = lines_of(&[1, 2, 3].map(record)).concat();
    fs::write(&path, &text).unwrap();
    fs::create_dir(folder.path().join("metrics-cut.jsonl")).unwrap();
    let error = MetricsLog::resume(&path, 2).unwrap_err().to_string();
    assert!(error.contains("metrics-cut.jsonl"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}
