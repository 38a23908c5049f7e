//! `hf://` names against a local server that answers as the hub does.

mod cache;
mod hostile;
mod limits;
mod server;

use longreel::hub;
use server::{SHA, Site, files_below, model, serve};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

#[test]
fn plain_paths_pass_through() {
    for path in ["runs/a", "/abs", "hf:/x", "", "./hf://x", "C:\\x"] {
        assert_eq!(hub::resolve(path).unwrap(), PathBuf::from(path));
    }
}

#[test]
fn whole_repositories_folders_and_files_are_downloaded() {
    let server = serve(model());
    let all = files_below(&server.hub.resolve("hf://lab/net").unwrap());
    let expected = server.site.lock().unwrap().repos["models/lab/net@main"].clone();
    let visible: BTreeMap<_, _> = expected.into_iter().filter(|(name, _)| !name.starts_with('.')).collect();
    assert_eq!(all, visible);

    let server = serve(model());
    let folder = server.hub.resolve("hf://lab/net/transformer/").unwrap();
    assert_eq!(files_below(&folder).keys().collect::<Vec<_>>(), ["config.json", "weights.safetensors"]);
    // A folder's name must not match another's beginning.
    assert!(!folder.with_file_name("transformer2").exists());

    let file = server.hub.resolve("hf://models/lab/net@main/README.md").unwrap();
    assert_eq!(std::fs::read(file).unwrap(), b"read me");
    let hidden = server.hub.resolve("hf://lab/net/.gitattributes").unwrap();
    assert_eq!(std::fs::read(hidden).unwrap(), b"hidden");
}

#[test]
fn large_files_come_through_redirects() {
    let server = serve(Site { redirect: true, ..model() });
    let file = server.hub.resolve("hf://lab/net/transformer/weights.safetensors").unwrap();
    assert_eq!(std::fs::read(file).unwrap().len(), 300_000);
    assert!(server.site.lock().unwrap().log.iter().any(|request| request.path.starts_with("/storage/")));
}

#[test]
fn names_that_need_escaping_and_empty_files_arrive() {
    let odd: &[(&str, &[u8])] =
        &[("my clips/a b#1?.mp4", b"mp4"), ("my clips/ümläut%20.txt", b"txt"), ("empty.txt", b"")];
    let server = serve(Site::with("datasets/lab/clips@main", odd));
    let folder = server.hub.resolve("hf://datasets/lab/clips").unwrap();
    let expected: BTreeMap<String, Vec<u8>> = odd.iter().map(|(n, b)| (n.to_string(), b.to_vec())).collect();
    assert_eq!(files_below(&folder), expected);
    let before = server.requests();
    assert_eq!(server.hub.resolve("hf://datasets/lab/clips").unwrap(), folder);
    assert_eq!(server.requests(), before + 1, "the second time only the info is asked for");
}

#[test]
fn data_sets_are_found_after_models() {
    let server = serve(Site::with("datasets/lab/clips@main", &[("a.txt", b"a")]));
    let folder = server.hub.resolve("hf://lab/clips").unwrap();
    assert!(folder.to_str().unwrap().contains("datasets--lab--clips"));
    assert_eq!(files_below(&folder).len(), 1);
    assert!(server.error("hf://models/lab/clips").contains("no repository lab/clips with a revision main"));
}

#[test]
fn revisions_are_asked_for_by_name() {
    let server = serve(Site::with("models/lab/net@refs/pr/1", &[("a.txt", b"pr")]));
    let file = server.hub.resolve("hf://lab/net@refs%2Fpr%2F1/a.txt").unwrap();
    assert_eq!(std::fs::read(file).unwrap(), b"pr");
    assert!(server.error("hf://lab/net/a.txt").contains("no repository lab/net with a revision main"));
    assert!(server.error("hf://lab/net@nope").contains("revision nope"));
}

#[test]
fn a_token_is_sent_and_its_lack_explained() {
    let mut server = serve(Site { token: Some("secret".into()), ..model() });
    let message = server.error("hf://lab/net");
    assert!(message.contains("401") && message.contains("private or gated: set HF_TOKEN"), "{message}");
    server.hub.token = Some("wrong".into());
    let message = server.error("hf://lab/net");
    assert!(message.contains("the token in use (HF_TOKEN) may not read lab/net"), "{message}");
    assert!(!message.contains("wrong"), "a token must not be shown: {message}");
    assert!(!format!("{:?}", server.hub).contains("wrong"), "a token must not be shown: {:?}", server.hub);
    server.hub.token = Some("secret".into());
    server.hub.resolve("hf://lab/net/README.md").unwrap();
}

#[test]
fn what_is_not_there_is_named() {
    let server = serve(model());
    let message = server.error("hf://lab/nothing");
    assert!(message.starts_with("hf://lab/nothing: ") && message.contains("no repository lab/nothing"), "{message}");
    let message = server.error("hf://lab/net/vae");
    assert!(message.contains("no such file or folder; it has: .gitattributes, README.md, transformer"), "{message}");
}

#[test]
fn malformed_names_ask_nobody() {
    let server = serve(model());
    for spec in [
        "hf://",
        "hf:///",
        "hf://lab",
        "hf://lab/",
        "hf://lab/@main",
        "hf://lab/net@",
        "hf://la b/net",
        "hf://lab//x",
        "hf://../net",
        "hf://lab/..",
        "hf://lab/net/../x",
        "hf://lab/net@../x",
        "hf://datasets/lab",
        "hf://lab/net/a//b",
        "hf://lab/net@%2Fetc",
    ] {
        let message = server.error(spec);
        assert!(message.starts_with(&format!("{spec}: a hub name is written hf://owner/name")), "{message}");
    }
    assert_eq!(server.requests(), 0);
}

#[test]
fn a_server_in_trouble_or_no_hub_is_told_apart() {
    let server = serve(Site { status: Some(503), ..model() });
    assert!(server.error("hf://lab/net").contains("answered 503; try again later"));
    let mut server = serve(model());
    server.hub.endpoint += "/storage"; // answers, but not with a hub's JSON
    assert!(server.error("hf://lab/net").contains("no repository"));
    server.hub.endpoint = "not an address".into();
    let message = server.error("hf://lab/net");
    assert!(message.contains("HF_ENDPOINT must be like"), "{message}");
}

#[test]
fn without_a_network_there_is_one_clear_error_or_the_cache() {
    let mut server = serve(model());
    let before = server.hub.resolve("hf://lab/net/transformer").unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(); // closed again: refuses
    server.hub.endpoint = format!("http://{free}");
    assert_eq!(server.hub.resolve("hf://lab/net/transformer").unwrap(), before);
    let message = server.error("hf://lab/net/vae");
    assert!(message.contains("cannot be reached") && message.contains("check the network"), "{message}");
    assert_eq!(message.lines().count(), 1);
}

#[test]
fn a_download_cut_short_is_an_error_and_leaves_no_file() {
    let server = serve(Site { cut: Some(1000), ..model() });
    let message = server.error("hf://lab/net/transformer/weights.safetensors");
    assert!(message.contains("1000 bytes came where 300000 should have"), "{message}");
    {
        let mut site = server.site.lock().unwrap();
        (site.hang_up, site.cut) = (true, Some(100_000));
    }
    let message = server.error("hf://lab/net/transformer/weights.safetensors");
    assert!(message.contains("a second try takes up the download where it ended"), "{message}");
    server.site.lock().unwrap().cut = None;
    let file = server.hub.resolve("hf://lab/net/transformer/weights.safetensors").unwrap();
    assert_eq!(
        std::fs::read(file).unwrap(),
        server.site.lock().unwrap().repos["models/lab/net@main"]["transformer/weights.safetensors"]
    );
}

/// The environment is read by the binary: a process of its own, so that tests do not disturb each other.
#[test]
fn the_environment_names_hub_cache_and_token() {
    let site = Site { token: Some("from-env".into()), ..model() };
    let server = serve(site);
    let home = server.hub.cache.parent().unwrap().to_owned();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hub::child_resolves", "--ignored", "--nocapture"])
        .env("HF_ENDPOINT", format!("{}/", server.hub.endpoint))
        .env("HF_HOME", &home)
        .env("HF_TOKEN", "from-env")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && text.contains("resolved:"), "{text}");
    let file = home.join("hub/models--lab--net/snapshots").join(SHA).join("README.md");
    assert_eq!(std::fs::read(file).unwrap(), b"read me");
}

#[test]
#[ignore = "run by the_environment_names_hub_cache_and_token"]
fn child_resolves() {
    if std::env::var("HF_TOKEN").as_deref() == Ok("from-env") {
        println!("resolved:{}", hub::resolve("hf://lab/net/README.md").unwrap().display());
    }
}
