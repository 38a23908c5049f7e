//! The page in a browser.

use super::devtools::Browser;
use super::*;
use crate::train::succeed;
use serde_json::json;
use tempfile::TempDir;

const DESKTOP: [u32; 2] = [1300, 900];

/// The text of the legend of the first chart that shows anything.
const LEGEND: &str = "document.querySelector('.panel:not([hidden]) .legend').textContent";

/// Two runs whose learning rate differs, one of them with a name that would be HTML; the server, and a browser with the
/// page of both.
fn two_runs(size: [u32; 2]) -> Option<(TempDir, Watching, Browser)> {
    let mut browser = Browser::start()?;
    let place = TempDir::new().unwrap();
    make_run(&place.path().join("fast"), 20, 0.001);
    make_run(&place.path().join("<img src=x onerror=alert(1)>"), 20, 0.002);
    let watching = Watching::start(&[place.path().to_owned()]);
    let ids = [watching.id("fast"), watching.id("<img src=x onerror=alert(1)>")];
    browser.open(&format!("http://127.0.0.1:{}/#runs={}", watching.port, ids.join(",")), size);
    browser.wait("document.querySelectorAll('#runs input:checked').length === 2");
    browser.wait("document.querySelectorAll('.line').length > 8");
    Some((place, watching, browser))
}

#[test]
fn the_page_loads_without_errors_and_asks_nobody_else() {
    let Some((_place, watching, mut browser)) = two_runs(DESKTOP) else { return };
    browser.wait("document.querySelectorAll('video').length >= 4 && document.querySelector('video').readyState >= 2");
    assert_eq!(browser.complaints(), [""; 0]);
    let own = format!("http://127.0.0.1:{}/", watching.port);
    let requests = browser.requests();
    let foreign: Vec<_> = requests.iter().filter(|url| !url.starts_with(&own) && !url.starts_with("data:")).collect();
    assert!(requests.len() > 10 && foreign.is_empty(), "{foreign:?} of {requests:?}");
    assert_eq!(browser.value("document.querySelectorAll('img[src=x]').length"), 0);
    assert_eq!(
        browser.value("document.querySelector('.warnings li').textContent.includes('a <b>bold</b> warning')"),
        true
    );
}

#[test]
fn a_new_step_is_seen_within_five_seconds() {
    let Some((place, _watching, mut browser)) = two_runs(DESKTOP) else { return };
    let mut seen = |step: u64| {
        append(&place.path().join("fast"), step);
        browser.becomes(
            &format!("document.querySelector('#runs').textContent.includes('step {step} of 40')"),
            Duration::from_secs(5),
        ) && browser.becomes("chosen.values().next().value.curves.lastStep > 20", Duration::from_secs(5))
    };
    // On a busy machine one may come late; all of them do not.
    assert!((21..=26).any(&mut seen), "none of six new steps was shown within five seconds");
}

#[test]
fn two_runs_are_compared() {
    let Some((_place, _watching, mut browser)) = two_runs(DESKTOP) else { return };
    let legend = browser.value(LEGEND).to_string();
    assert!(legend.contains("fast") && legend.contains("<img src=x onerror=alert(1)>"), "{legend}");
    let rows = "[...document.querySelectorAll('#config-table tbody tr')]
        .map(row => [...row.cells].map(cell => cell.textContent))";
    assert_eq!(browser.value(rows), json!([["train.lr", "0.001", "0.002"]]));
    assert_eq!(browser.value("document.querySelectorAll('.side-by-side .column').length"), 2);
    browser.value("document.querySelector('#only-different').click()");
    assert!(browser.value(rows).as_array().unwrap().len() > 3);
    browser.value("document.querySelector('#runs input').click()"); // one alone
    browser.wait("document.querySelectorAll('.side-by-side .column').length === 1");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn clips_play_and_can_be_chosen_by_step() {
    let Some((_place, _watching, mut browser)) = two_runs(DESKTOP) else { return };
    browser.value("document.querySelector('#play').click()");
    browser.wait("[...document.querySelectorAll('video')].every(video => video.currentTime > 0.3 && !video.paused)");
    browser.value("document.querySelector('#play').click()");
    browser.wait("[...document.querySelectorAll('video')].every(video => video.paused)");
    browser.value("document.querySelector('video').currentTime = 1.5"); // a browser seeks by asking for a part
    browser.wait("document.querySelector('video').currentTime === 1.5 && !document.querySelector('video').seeking");
    browser.value("document.querySelector('.strip .step').click()");
    browser.wait("[...document.querySelectorAll('.column .note')].every(note => note.textContent === 'step 10')");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn curves_are_read_and_zoomed_by_keyboard_and_pointer() {
    let Some((_place, _watching, mut browser)) = two_runs(DESKTOP) else { return };
    browser.value("document.querySelector('#smoothing').focus()");
    let mut pressed = 0;
    while browser.value("document.activeElement.classList.contains('chart')") != true {
        browser.press("Tab");
        pressed += 1;
        assert!(pressed < 10, "no curve has come into focus");
    }
    browser.press("ArrowLeft");
    browser.press("ArrowLeft");
    let read = browser.value(LEGEND).to_string();
    assert!(read.contains("step 19"), "{read}");
    browser.press("+");
    assert_eq!(browser.value("[view.from > 1, document.querySelector('#reset').disabled]"), json!([true, false]));
    browser.press("Escape");
    assert_eq!(browser.value("[view.from, document.querySelector('#reset').disabled]"), json!([null, true]));
    let at = browser
        .value("(box => [box.x, box.y + 60, box.width])(document.querySelector('.chart').getBoundingClientRect())");
    let [x, y, width] = [0, 1, 2].map(|i| at[i].as_f64().unwrap());
    for (kind, share) in [("mousePressed", 0.4), ("mouseMoved", 0.6), ("mouseMoved", 0.8), ("mouseReleased", 0.8)] {
        let pointer =
            json!({ "type": kind, "x": x + share * width, "y": y, "button": "left", "buttons": 1, "clickCount": 1 });
        browser.call("Input.dispatchMouseEvent", pointer);
    }
    let range = browser.value("[view.from, view.to]");
    assert!(
        (5.0..10.0).contains(&range[0].as_f64().unwrap()) && (14.0..18.0).contains(&range[1].as_f64().unwrap()),
        "{range}"
    );
    browser.value("document.querySelector('#log-y').click()");
    browser.wait("location.hash.includes('logy')");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn a_phone_shows_all_of_it_without_scrolling_sideways() {
    let Some((_place, _watching, mut browser)) = two_runs([360, 740]) else { return };
    browser.wait("document.querySelectorAll('video').length >= 4");
    let widths = browser
        .value("[document.documentElement.scrollWidth, innerWidth, document.querySelector('.chart').clientWidth]");
    assert!(widths[0] == 360 && widths[1] == 360 && widths[2].as_u64().unwrap() > 250, "{widths}");
    assert_eq!(browser.value("document.querySelector('#runs-box').open"), false);
}

#[test]
fn dark_is_dark_and_light_is_light() {
    let Some((_place, _watching, mut browser)) = two_runs(DESKTOP) else { return };
    let mut paper = |scheme: &str| {
        let wish = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        browser.call("Emulation.setEmulatedMedia", wish);
        browser.value("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")[0].as_u64().unwrap()
    };
    assert!(paper("light") > 200 && paper("dark") < 60);
}

#[test]
fn a_report_is_the_same_page_from_a_file() {
    let Some(mut browser) = Browser::start() else { return };
    let place = TempDir::new().unwrap();
    let (run, out) = (place.path().join("run"), place.path().join("report.html"));
    make_run(&run, 20, 0.001);
    succeed(longreel().arg("report").arg(&run).arg("-o").arg(&out));
    browser.open(&format!("file://{}", out.display()), DESKTOP);
    browser.wait("document.querySelectorAll('.line').length > 4");
    browser.value("document.querySelector('#play').click()");
    browser.wait("[...document.querySelectorAll('video')].every(video => video.currentTime > 0.3)");
    assert_eq!(browser.complaints(), [""; 0]);
    let elsewhere = |url: &String| !url.starts_with("data:") && !url.starts_with("file://");
    assert_eq!(browser.requests().into_iter().filter(elsewhere).collect::<Vec<_>>(), [""; 0]);
}
