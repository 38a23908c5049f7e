"""A hub that answers what it likes. Nothing is written outside the cache, the token goes nowhere else, and every call
ends."""

import hashlib
import http.server
import json
import threading

from campaign import ROOT, Fault, mutated

MODEL = ROOT / "tests/golden/shards/transformer"
INPUTS = ROOT / "tests/golden/shards/inputs.safetensors"
EVIL = [
    "../../../evil",
    "/tmp/longreel-evil",
    "..",
    ".",
    "",
    "a/../../../evil",
    "\x1b[2J",
    "x" * 5000,
    "a\nb",
    "%2e%2e/evil",
    "refs/../../evil",
]


def answers(lab, rng, folder):
    files = {f.name: f.read_bytes() for f in sorted(MODEL.iterdir())}
    with Server(files, rng) as hub, Server(files, None) as storage:
        hub.elsewhere = storage.address
        cache = folder / "home"
        (folder / "evil").write_text("mine")
        result = lab.run(
            folder, "forward", "hf://lab/net", INPUTS, "-o", "out.safetensors", seconds=100,
            env={"HF_ENDPOINT": hub.address, "HF_HOME": str(cache), "HF_TOKEN": "hf_secret"},
        )
        if result.code:
            result.error()
        else:
            check_whole(cache, files)
        if "hf_secret" in result.err + result.out:
            raise Fault("the token was printed")
        if storage.tokens:
            raise Fault(f"the token went to another server: {storage.tokens}")
    outside = {f.name for f in folder.iterdir()} - {"home", "evil", "out.safetensors"}
    if outside or (folder / "evil").read_text() != "mine":
        raise Fault(f"written outside the cache: {outside or 'evil'}")


def check_whole(cache, files):
    """A call that ended well has the files as they are."""
    for name, data in files.items():
        found = [f for f in (cache / "hub").glob(f"*/snapshots/*/{name}")]
        if not found or any(f.read_bytes() != data for f in found):
            raise Fault(f"{name} arrived as {len(found)} files that differ from what the hub has")


class Server:
    """A hub of one repository that does something wrong now and then; without a generator it only notes who asks."""

    def __init__(self, files, rng):
        self.files, self.rng, self.tokens, self.elsewhere = files, rng, [], None
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                try:
                    server.answer(self)
                except (OSError, ValueError):
                    pass
                self.close_connection = True

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        self.wrong = rng.choice(WRONGS) if rng else None
        self.value = rng.choice(EVIL) if rng else None
        self.at = rng.randrange(4) if rng else 0
        self.count = 0

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def answer(self, request):
        if self.rng is None and request.headers.get("Authorization"):
            self.tokens.append(request.path)
        self.count += 1
        wrong = self.wrong if self.count > self.at else None
        if "/api/" in request.path:
            self.info(request, wrong)
        else:
            self.file(request, wrong)

    def info(self, request, wrong):
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
            | (
                {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}}
                if name.endswith(".safetensors")
                else {}
            )
            for name, data in self.files.items()
        ]
        answer = {"id": "lab/net", "sha": "0123456789abcdef0123456789abcdef01234567", "siblings": siblings}
        if wrong == "sha":
            answer["sha"] = self.value
        if wrong == "name":
            siblings[0]["rfilename"] = self.value
        if wrong == "blob":
            siblings[0]["blobId"] = self.value
        if wrong == "size":
            siblings[0]["size"] = self.rng.choice([0, 1, 2**63, 2**64 - 1, -1])
        body = json.dumps(answer).encode()
        send(request, 200, mutated(body, self.rng) if wrong == "mutated" else body, {}, wrong)

    def file(self, request, wrong):
        name = request.path.split("?")[0].rsplit("/", 1)[-1]
        data = self.files.get(name)
        if data is None:
            return send(request, 404, b"", {}, None)
        if wrong == "content":
            data = mutated(data, self.rng)
        if wrong in ("redirect", "loop", "nowhere"):
            to = {"redirect": self.elsewhere + request.path, "loop": request.path, "nowhere": None}[wrong]
            return send(request, 302, b"", {"Location": to} if to else {}, None)
        etag = self.value if wrong == "etag" else hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self.value if wrong == "commit" else "0" * 40}
        if wrong == "linked":
            headers["X-Linked-Etag"] = f'"{self.value}"'
        send(request, 304 if wrong == "304" else 200, data, headers, wrong)


def send(request, status, body, headers, wrong):
    """One answer; bytes of headers go out as they are, since http.server would refuse the wrong ones."""
    length = {"longer": len(body) + 1000, "shorter": len(body) // 2, "huge": 1 << 50, "text": "many"}.get(
        wrong, len(body)
    )
    lines = [f"HTTP/1.1 {status} Answer", *(f"{k}: {v}" for k, v in headers.items()), "Connection: close"]
    if wrong != "endless":
        lines.append(f"Content-Length: {length}")
    request.wfile.write(("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "replace"))
    if wrong == "endless":
        for _ in range(2000):  # 128 MB, where less than 1 was announced
            request.wfile.write(b"\0" * 65536)
    elif wrong == "more":
        request.wfile.write(body + body)
    elif request.command != "HEAD":
        request.wfile.write(body)


WRONGS = [
    "sha",
    "name",
    "blob",
    "size",
    "mutated",
    "content",
    "redirect",
    "loop",
    "nowhere",
    "etag",
    "commit",
    "linked",
    "304",
    "longer",
    "shorter",
    "huge",
    "text",
    "endless",
    "more",
    None,
]
