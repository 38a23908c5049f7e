//! What the server answers, and what it refuses.

use super::*;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use tempfile::TempDir;

/// A run called `run`, and the server that shows it.
fn one_run() -> (TempDir, Watching, String) {
    let place = TempDir::new().unwrap();
    make_run(&place.path().join("runs/run"), 20, 0.001);
    let watching = Watching::start(&[place.path().join("runs")]);
    let id = watching.id("run");
    (place, watching, id)
}

#[test]
fn the_page_and_its_files_come_with_a_policy_that_lets_nothing_else_in() {
    let (_place, watching, _) = one_run();
    let page = watching.get("/");
    assert_eq!((page.status, page.field("Content-Type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.field("Content-Security-Policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"), "{policy}");
    let text = page.text();
    let mut files: Vec<&str> = text.split("src=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    files.push("/style.css");
    assert!(files.len() > 5, "{text}");
    for file in files {
        assert_eq!(watching.get(file).status, 200, "{file}");
    }
}

#[test]
fn new_steps_come_without_the_old_ones() {
    let (place, watching, id) = one_run();
    let all = watching.json(&format!("/api/runs/{id}/metrics?generation=0&width=0&from=0"));
    assert_eq!((&all["last_step"], all["series"]["loss"]["step"].as_array().unwrap().len()), (&20.into(), 20));
    append(&place.path().join("runs/run"), 21);
    let new = watching.json(&format!("/api/runs/{id}/metrics?generation={}&width=1&from=20", all["generation"]));
    assert_eq!(new["series"]["loss"]["step"], serde_json::json!([20, 21]));
}

#[test]
fn a_part_of_a_clip_is_that_part() {
    let (place, watching, id) = one_run();
    let whole = fs::read(place.path().join("runs/run/samples/step-00000010-0.mp4")).unwrap();
    let path = format!("/files/{id}/samples/step-00000010-0.mp4");
    let all = watching.get(&path);
    assert_eq!(
        (all.status, all.field("Content-Type"), all.field("Accept-Ranges")),
        (200, Some("video/mp4"), Some("bytes"))
    );
    assert!(all.body == whole, "the clip is another one");
    let part = watching.get_with(&path, "Range: bytes=3-9\r\n");
    assert_eq!((part.status, &part.body[..]), (206, &whole[3..10]));
    assert_eq!(part.field("Content-Range"), Some(&*format!("bytes 3-9/{}", whole.len())));
    assert_eq!(watching.get_with(&path, "Range: bytes=99999999-\r\n").status, 416);
    let head = watching.send(format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    assert_eq!((head.status, head.body.len(), head.field("Content-Length")), (200, 0, Some(&*whole.len().to_string())));
}

#[test]
fn nothing_outside_the_runs_and_nothing_else_within_is_served() {
    let place = TempDir::new().unwrap();
    let (runs, outside) = (place.path().join("runs"), place.path().join("outside"));
    make_run(&runs.join("run"), 20, 0.001);
    make_run(&outside, 20, 0.001);
    for name in ["secret.mp4", "samples/secret.mp4", "secret.png"] {
        fs::write(outside.join(name), SECRET).unwrap();
    }
    fs::write(outside.join("secret.jsonl"), format!("{{\"step\":1,\"{SECRET}\":1}}\n")).unwrap();
    symlink(outside.join("secret.mp4"), runs.join("run/samples/step-00000030-0.mp4")).unwrap();
    symlink(outside.join("secret.png"), runs.join("run/data.png")).unwrap();
    fs::remove_file(runs.join("run/warnings.jsonl")).unwrap();
    symlink(outside.join("secret.mp4"), runs.join("run/warnings.jsonl")).unwrap();
    // A run whose samples and metrics lie elsewhere, and one that lies elsewhere itself.
    make_run(&runs.join("links"), 20, 0.001);
    fs::remove_dir_all(runs.join("links/samples")).unwrap();
    symlink(outside.join("samples"), runs.join("links/samples")).unwrap();
    fs::remove_file(runs.join("links/metrics.jsonl")).unwrap();
    symlink(outside.join("secret.jsonl"), runs.join("links/metrics.jsonl")).unwrap();
    symlink(&outside, runs.join("away")).unwrap();

    let watching = Watching::start(&[runs]);
    let list = watching.json("/api/runs");
    let names: Vec<_> = list.as_array().unwrap().iter().map(|run| run["name"].clone()).collect();
    assert_eq!(names, ["links", "run"]);
    let (run, links) = (watching.id("run"), watching.id("links"));
    for path in [
        "/../outside/secret.mp4",
        "/..%2f..%2foutside/secret.mp4",
        "//etc/passwd",
        "/etc/passwd",
        "/files//etc/passwd",
        "/files/RUN/state.json",
        "/files/RUN/config.toml",
        "/files/RUN/metrics.jsonl",
        "/files/RUN/../../outside/secret.mp4",
        "/files/RUN/samples/../state.json",
        "/files/RUN/samples/../../../outside/secret.mp4",
        "/files/RUN/samples/..",
        "/files/RUN/samples/%2e%2e/state.json",
        "/files/RUN/samples/..%2fstate.json",
        "/files/RUN/samples/..%2f..%2f..%2foutside%2fsecret.mp4",
        "/files/RUN/samples/..\\state.json",
        "/files/RUN/samples/.hidden.mp4",
        "/files/RUN/samples/",
        "/files/RUN/samples",
        "/files/RUN/samples/step-00000030-0.mp4",
        "/files/RUN/data.png",
        "/files/LINKS/samples/secret.mp4",
        "/files/nobody/data.png",
        "/files/RUN/samples/step-00000010-0.mp4%00.png",
        "/api/runs/nobody",
        "/api/runs/../runs",
        "/page.js",
        "/api",
        "*",
        "",
    ] {
        let path = path.replace("RUN", &run).replace("LINKS", &links);
        let answer = watching.get(&path);
        assert!(matches!(answer.status, 400 | 404), "{path}: {}\n{}", answer.head, answer.text());
        assert!(!answer.text().contains(SECRET), "{path}");
    }
    for id in [run, links] {
        for path in [format!("/api/runs/{id}"), format!("/api/runs/{id}/metrics"), "/api/runs".to_owned()] {
            let answer = watching.get(&path);
            assert!(answer.status == 200 && !answer.text().contains(SECRET), "{path}: {}", answer.text());
        }
    }
}

#[test]
fn a_page_from_elsewhere_gets_nothing() {
    let (_place, watching, _) = one_run();
    let status = |head: &str| watching.send(format!("GET /api/runs HTTP/1.1\r\n{head}\r\n").as_bytes()).status;
    for host in ["127.0.0.1", "localhost:1234", "[::1]:80"] {
        assert_eq!(status(&format!("Host: {host}\r\n")), 200, "{host}");
    }
    for head in [
        "",
        "Host: evil.example\r\n",
        "Host: 127.0.0.1.evil.example\r\n",
        "Host: localhost\r\nHost: evil.example\r\n",
        "Host:\r\n",
    ] {
        assert_eq!(status(head), 403, "{head:?}");
    }
    let answer = watching.get("/api/runs");
    assert_eq!(answer.field("Cross-Origin-Resource-Policy"), Some("same-origin"));
    assert!(answer.field("Access-Control-Allow-Origin").is_none());
}

#[test]
fn what_would_change_something_or_is_no_request_is_refused() {
    let (_place, watching, _) = one_run();
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"] {
        let answer =
            watching.send(format!("{method} / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc").as_bytes());
        assert_eq!((answer.status, answer.field("Allow")), (405, Some("GET, HEAD")), "{method}");
    }
    let fields: String = (0..100).map(|i| format!("X-{i}: 1\r\n")).collect();
    let long = |length: usize| format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(length)).into_bytes();
    let cases: [(&[u8], u16); 5] = [
        (b"\0\xff\x16\x03\x01\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 400),
        (&long(15_000), 404),
        (&long(17_000), 431),
        (&format!("GET / HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n").into_bytes(), 431),
    ];
    for (request, status) in cases {
        let answer = watching.send(request);
        assert_eq!(answer.status, status, "{:?}", String::from_utf8_lossy(&request[..request.len().min(60)]));
    }
    assert_eq!(watching.get("/").status, 200);
}

#[test]
fn clients_that_send_nothing_keep_nobody_waiting() {
    let (_place, watching, _) = one_run();
    let mut slow: Vec<TcpStream> = (0..30).map(|_| watching.connect()).collect();
    slow.iter_mut().for_each(|stream| stream.write_all(b"GET / HTTP/1.1\r\nHo").unwrap());
    assert_eq!(watching.get("/api/runs").status, 200);
    // They were still waited for when that answer came: it did not come after theirs.
    for stream in &mut slow {
        stream.set_nonblocking(true).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

#[test]
fn a_port_that_is_taken_and_a_folder_that_is_not_there_are_said() {
    let (place, watching, _) = one_run();
    let mut command = longreel();
    let error = crate::train::fail(command.arg("watch").arg(place.path()).args(["--port", &watching.port.to_string()]));
    assert!(error.contains(&watching.port.to_string()) && error.contains("--port"), "{error}");
    let error = crate::train::fail(longreel().arg("watch").arg(place.path().join("nowhere")));
    assert!(error.contains("nowhere: there is no such folder"), "{error}");
}
