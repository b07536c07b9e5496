//! A hub of one repository on a local port: enough of the protocol to fetch from, with faults on demand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// From this size on a file lies on the content network, as large files do.
pub const LARGE_BYTES: usize = 1000;

/// What the hub holds and how it misbehaves.
#[derive(Default)]
pub struct State {
    /// `models/org/name` or `datasets/org/name`.
    pub repo: String,
    /// An earlier name, which redirects.
    pub renamed_from: Option<String>,
    pub files: BTreeMap<String, Vec<u8>>,
    /// The only token that may enter, if there is one.
    pub token: Option<String>,
    /// Whether files are for those alone who accepted a licence.
    pub gated: bool,
    /// The next bodies break off after so many bytes.
    pub cuts: Vec<usize>,
    /// So many requests are answered with 503 first.
    pub busy: usize,
    /// What every question is answered with, content apart: a status and an error code.
    pub refusal: Option<(&'static str, &'static str)>,
    /// The commit that `main` stands for.
    pub commit: String,
    /// A further branch, which stands for the same commit.
    pub branch: Option<String>,
    pub ignores_ranges: bool,
    /// Announces hashes that the content does not have.
    pub lies: bool,
    pub log: Vec<Request>,
    pub uploads: Uploads,
}

/// What was brought to the hub.
#[derive(Default)]
pub struct Uploads {
    /// Whether the repository that was made is private.
    pub made_private: Option<bool>,
    /// Content that LFS has, by its SHA-256.
    pub objects: BTreeMap<String, Vec<u8>>,
    /// Parts of content that is not whole yet.
    pub parts: BTreeMap<(String, usize), Vec<u8>>,
    /// Bytes of a part, where content is to come in parts.
    pub chunk: Option<usize>,
    /// The first line of the newest commit.
    pub message: String,
    /// So many uploads break off first.
    pub breaks: usize,
}

#[derive(Debug, Clone, Default)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
    pub body: Vec<u8>,
}

pub struct TestHub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    listener: Option<thread::JoinHandle<()>>,
}

impl TestHub {
    pub fn new(repo: &str, files: &[(&str, Vec<u8>)]) -> Self {
        let files = files.iter().map(|(name, content)| ((*name).to_owned(), content.clone())).collect();
        let (repo, commit) = (repo.to_owned(), COMMIT.to_owned());
        let state = Arc::new(Mutex::new(State { repo, commit, files, ..State::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("the port");
        let shared = Arc::clone(&state);
        let listener = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                // An empty repository is the sign to close.
                if state.lock().expect("no panic in the hub").repo.is_empty() {
                    return;
                }
                thread::spawn(move || answer(&stream, &state));
            }
        });
        Self { endpoint: format!("http://{address}"), state, address, listener: Some(listener) }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic in the hub")
    }

    /// The requests so far, which are then forgotten.
    pub fn take_log(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().log)
    }

    /// The files whose bytes were asked for so far, each with its range; they are then forgotten.
    pub fn take_gets(&self) -> Vec<(String, Option<String>)> {
        let gets = |request: &Request| request.method == "GET" && request.path.contains("/resolve/");
        let commit = self.state().commit.clone();
        let name = |path: &str| path.split(&format!("/{commit}/")).nth(1).unwrap_or(path).to_owned();
        self.take_log().into_iter().filter(gets).map(|r| (name(&r.path), r.range)).collect()
    }
}

impl Drop for TestHub {
    fn drop(&mut self) {
        self.state().repo.clear();
        drop(TcpStream::connect(self.address));
        if let Some(listener) = self.listener.take() {
            listener.join().expect("no panic in the hub");
        }
    }
}

pub fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Reply {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
}

impl Reply {
    fn new(status: &'static str) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), cut: None }
    }

    fn with(mut self, header: &'static str, value: impl ToString) -> Self {
        self.headers.push((header, value.to_string()));
        self
    }

    fn refusal(status: &'static str, code: &str) -> Self {
        Self::new(status).with("x-error-code", code)
    }
}

fn answer(stream: &TcpStream, state: &Mutex<State>) {
    let Some(request) = read_request(stream) else { return };
    let reply = {
        let mut state = state.lock().expect("no panic in the hub");
        state.log.push(request.clone());
        reply(&mut state, &request, stream.local_addr().expect("an address"))
    };
    let mut head = format!("HTTP/1.1 {}\r\nconnection: close\r\n", reply.status);
    for (header, value) in &reply.headers {
        head.push_str(&format!("{header}: {value}\r\n"));
    }
    if !reply.headers.iter().any(|(header, _)| *header == "content-length") {
        head.push_str(&format!("content-length: {}\r\n", reply.body.len()));
    }
    head.push_str("\r\n");
    let body = if request.method == "HEAD" { &[][..] } else { &reply.body[..] };
    let body = &body[..reply.cut.unwrap_or(body.len()).min(body.len())];
    // A client that has seen enough may close first.
    drop((&*stream).write_all(head.as_bytes()).and_then(|()| (&*stream).write_all(body)));
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut lines = reader.by_ref().lines();
    let (first, mut length) = (lines.next()?.ok()?, 0);
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut request = Request { method, path, ..Request::default() };
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        let value = value.trim().to_owned();
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value),
            "content-length" => length = value.parse().ok()?,
            "authorization" => request.token = value.strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
    request.body = vec![0; length];
    reader.read_exact(&mut request.body).ok()?;
    Some(request)
}

/// Questions of somebody who publishes, as the hub answers them.
fn publishing(state: &mut State, request: &Request, address: SocketAddr) -> Option<Reply> {
    let json =
        |body: serde_json::Value| Reply { body: body.to_string().into_bytes(), ..Reply::new("200 OK") };
    let base = format!("http://{address}");
    let asked = || serde_json::from_slice::<serde_json::Value>(&request.body).expect("JSON");
    let id = state.repo.strip_prefix("models/").unwrap_or(&state.repo).to_owned();
    let path = request.path.as_str();
    let uploads = &mut state.uploads;
    if request.method == "PUT" {
        assert_eq!(request.token, None, "the token stays with the hub");
        if uploads.breaks > 0 {
            uploads.breaks -= 1;
            return Some(Reply::new("503 Service Unavailable"));
        }
        let (oid, part) = path.strip_prefix("/put/")?.split_once('/')?;
        let part = part.parse().expect("a number");
        uploads.parts.insert((oid.to_owned(), part), request.body.clone());
        if part == 0 {
            uploads.objects.insert(oid.to_owned(), request.body.clone());
        }
        return Some(Reply::new("200 OK").with("etag", format!("\"{part}\"")));
    }
    if request.method != "POST" {
        return None;
    }
    if let Some(oid) = path.strip_prefix("/complete/") {
        let body = asked();
        let parts = body["parts"].as_array().expect("parts").len();
        let whole: Vec<u8> =
            (1..=parts).flat_map(|part| uploads.parts[&(oid.to_owned(), part)].clone()).collect();
        uploads.objects.insert(oid.to_owned(), whole);
        return Some(json(serde_json::json!({ "success": true })));
    }
    if state.token.is_some() && request.token != state.token {
        return Some(Reply::new("403 Forbidden").with("x-error-message", "you may not write here"));
    }
    if path == "/api/repos/create" {
        let private = asked()["private"].as_bool();
        if uploads.made_private.is_some() {
            return Some(Reply::new("409 Conflict"));
        }
        uploads.made_private = private;
        return Some(json(serde_json::json!({ "url": format!("{base}/{id}") })));
    }
    if path == format!("/api/models/{id}/preupload/main") {
        let files = asked()["files"].as_array().expect("files").clone();
        let mode = |file: &serde_json::Value| {
            let name = file["path"].as_str().expect("a name");
            let by_lfs = name.ends_with(".safetensors");
            serde_json::json!({ "path": name, "uploadMode": if by_lfs { "lfs" } else { "regular" }, "shouldIgnore": false, "oid": null })
        };
        return Some(json(serde_json::json!({ "files": files.iter().map(mode).collect::<Vec<_>>() })));
    }
    if path == format!("/{id}.git/info/lfs/objects/batch") {
        let object = asked()["objects"][0].clone();
        let (oid, size) = (object["oid"].as_str().expect("an oid"), object["size"].as_u64().expect("a size"));
        let mut answer = serde_json::json!({ "oid": oid, "size": size });
        if !uploads.objects.contains_key(oid) {
            let verify = serde_json::json!({ "href": format!("{base}/verify/{oid}") });
            let upload = match uploads.chunk {
                None => serde_json::json!({ "href": format!("{base}/put/{oid}/0") }),
                Some(chunk) => {
                    let mut header = serde_json::json!({ "chunk_size": chunk.to_string() });
                    for part in 1..=(size as usize).div_ceil(chunk) {
                        header[format!("{part:05}")] = format!("{base}/put/{oid}/{part}").into();
                    }
                    serde_json::json!({ "href": format!("{base}/complete/{oid}"), "header": header })
                }
            };
            answer["actions"] = serde_json::json!({ "upload": upload, "verify": verify });
        }
        return Some(json(serde_json::json!({ "transfer": "basic", "objects": [answer] })));
    }
    if let Some(oid) = path.strip_prefix("/verify/") {
        let whole = uploads.objects.get(oid).is_some_and(|content| sha256(content) == oid);
        return Some(Reply::new(if whole { "200 OK" } else { "422 Unprocessable Entity" }));
    }
    if path == format!("/api/models/{id}/commit/main") {
        let text = String::from_utf8(request.body.clone()).expect("lines");
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let value = &line["value"];
            let name = value["path"].as_str().map(str::to_owned);
            match line["key"].as_str().expect("a key") {
                "header" => state.uploads.message = value["summary"].as_str().expect("a summary").to_owned(),
                "file" => {
                    use base64::Engine;
                    let content = value["content"].as_str().expect("content");
                    let content = base64::engine::general_purpose::STANDARD.decode(content).expect("base64");
                    state.files.insert(name.expect("a name"), content);
                }
                "lfsFile" => {
                    let content = state.uploads.objects.get(value["oid"].as_str().expect("an oid"));
                    let Some(content) = content.cloned() else { return Some(Reply::new("400 Bad Request")) };
                    state.files.insert(name.expect("a name"), content);
                }
                key => panic!("a line of kind {key}"),
            }
        }
        return Some(json(
            serde_json::json!({ "commitUrl": format!("{base}/{id}/commit/{}", state.commit), "commitOid": state.commit }),
        ));
    }
    None
}

fn reply(state: &mut State, request: &Request, address: SocketAddr) -> Reply {
    if state.busy > 0 {
        state.busy -= 1;
        return Reply::new("503 Service Unavailable");
    }
    if let Some(reply) = publishing(state, request, address) {
        return reply;
    }
    if let Some(hash) = request.path.strip_prefix("/cdn/") {
        let content = state.files.values().find(|content| sha256(content) == hash).cloned();
        return content
            .map_or_else(|| Reply::new("404 Not Found"), |content| bytes(state, request, &content));
    }
    if let Some((status, code)) = state.refusal {
        return if code.is_empty() { Reply::new(status) } else { Reply::refusal(status, code) };
    }
    // Models live at /org/name, data sets at /datasets/org/name; under /api both carry their kind.
    let address_of = |repo: &str| repo.strip_prefix("models/").unwrap_or(repo).to_owned();
    if let Some(old) = &state.renamed_from {
        for (from, to) in [(old.clone(), state.repo.clone()), (address_of(old), address_of(&state.repo))] {
            if let Some(rest) =
                request.path.strip_prefix("/api/").and_then(|p| p.strip_prefix(&format!("{from}/")))
            {
                return Reply::new("307 Temporary Redirect").with("location", format!("/api/{to}/{rest}"));
            }
            if let Some(rest) = request.path.strip_prefix(&format!("/{from}/")) {
                return Reply::new("307 Temporary Redirect").with("location", format!("/{to}/{rest}"));
            }
        }
    }
    if let Some(token) = &state.token
        && request.token.as_ref() != Some(token)
    {
        return match &request.token {
            None => Reply::refusal("401 Unauthorized", "RepoNotFound"),
            Some(_) => Reply::new("401 Unauthorized")
                .with("x-error-message", "Invalid credentials in Authorization header"),
        };
    }
    if let Some(rest) = request.path.strip_prefix(&format!("/api/{}/revision/", state.repo)) {
        let branch = state.branch.as_ref().map(|branch| branch.replace('/', "%2F"));
        if rest != "main" && rest != state.commit && Some(rest) != branch.as_deref() {
            return Reply::refusal("404 Not Found", "RevisionNotFound");
        }
        let siblings: Vec<_> =
            state.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "id": state.repo, "sha": state.commit, "siblings": siblings });
        return Reply { body: body.to_string().into_bytes(), ..Reply::new("200 OK") };
    }
    match request.path.strip_prefix(&format!("/{}/resolve/{}/", address_of(&state.repo), state.commit)) {
        None => Reply::refusal("404 Not Found", "RepoNotFound"),
        Some(_) if state.gated => Reply::refusal("403 Forbidden", "GatedRepo"),
        Some(name) => match state.files.get(name).cloned() {
            None => Reply::refusal("404 Not Found", "EntryNotFound"),
            Some(content) => file(state, request, &content, address),
        },
    }
}

fn file(state: &mut State, request: &Request, content: &[u8], address: SocketAddr) -> Reply {
    let hash = sha256(content);
    if content.len() < LARGE_BYTES {
        return bytes(state, request, content)
            .with("x-repo-commit", COMMIT)
            .with("etag", format!("\"{}\"", &hash[..40]));
    }
    let announced = if state.lies { sha256(b"something else") } else { hash.clone() };
    Reply::new("302 Found")
        .with("x-repo-commit", COMMIT)
        .with("x-linked-etag", format!("\"{announced}\""))
        .with("x-linked-size", content.len())
        // Another host name for the same machine, as the content network is another host.
        .with("location", format!("http://localhost:{}/cdn/{hash}", address.port()))
}

fn bytes(state: &mut State, request: &Request, content: &[u8]) -> Reply {
    let range = request.range.as_deref().filter(|_| !state.ignores_ranges);
    let range = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let start = range.and_then(|(start, _)| start.parse::<usize>().ok());
    let end = range.and_then(|(_, last)| Some(last.parse::<usize>().ok()? + 1));
    let cut = (request.method == "GET" && !state.cuts.is_empty()).then(|| state.cuts.remove(0));
    let total = content.len();
    match start {
        Some(start) if start >= total => {
            Reply::new("416 Range Not Satisfiable").with("content-range", format!("bytes */{total}"))
        }
        Some(start) => {
            let end = end.unwrap_or(total).min(total);
            Reply { body: content[start..end].to_vec(), cut, ..Reply::new("206 Partial Content") }
                .with("content-range", format!("bytes {start}-{}/{total}", end - 1))
        }
        None => Reply { body: content.to_vec(), cut, ..Reply::new("200 OK") }.with("content-length", total),
    }
}
