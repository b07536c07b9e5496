//! A hub of one repository on a local port: enough of the protocol to fetch from, with faults on demand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
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
}

#[derive(Debug, Clone, Default)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
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
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut request = Request { method, path, ..Request::default() };
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        let value = value.trim().to_owned();
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value),
            "authorization" => request.token = value.strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
    Some(request)
}

fn reply(state: &mut State, request: &Request, address: SocketAddr) -> Reply {
    if state.busy > 0 {
        state.busy -= 1;
        return Reply::new("503 Service Unavailable");
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
