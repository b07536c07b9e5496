//! Questions to the hub over HTTP, and what its answers mean.
//!
//! hf-hub 0.5 gives the addresses and the cache's layout. Its own downloader is not used: asked to resume a
//! part file that is whole, damaged, or followed by a fault, it returned `Ok` with a wrong file, since it
//! checks neither size nor hash. It also waits for ever on a silent line, sends the token to the content
//! network, and reduces the hub's reasons to a status code.

use std::io::Read;
use std::time::Duration;

use hf_hub::Repo;
use hf_hub::api::RepoInfo;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, Uri, header};
use ureq::typestate::{WithBody, WithoutBody};
use ureq::{Agent, Body, RequestBuilder, Timeout};

use super::cache::is_inside;
use super::error::HubError;
use super::settings::HubSettings;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest silence on an open connection before it counts as broken.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_PAUSE: Duration = Duration::from_secs(10);
const MAX_REDIRECTS: usize = 10;
/// A repository of 10⁵ files lists in about 10 MB.
const MAX_LISTING_BYTES: u64 = 256 << 20;
/// A header of 10⁴ tensors has about 1 MB.
const MAX_PEEK_BYTES: u64 = 2 << 20;

/// One repository as the hub shows it.
pub(super) struct Remote<'a> {
    agent: Agent,
    settings: &'a HubSettings,
    repo: Repo,
    id: &'a str,
}

/// What identifies a file's content.
pub(super) struct FileMeta {
    /// The content's hash: SHA-256 for large files, git's SHA-1 for small ones.
    pub etag: String,
    /// The content's size, where the hub says it.
    pub bytes: Option<u64>,
}

/// A failed exchange: what to say, and whether to try again first.
pub(super) struct Fault {
    pub error: HubError,
    pub retry: Retry,
}

impl Fault {
    /// One that stays.
    pub(super) fn never(error: HubError) -> Self {
        Self { error, retry: Retry::Never }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// The answer will not change.
    Never,
    /// No connection came about: worth a retry only in the middle of a download.
    Unconnected,
    /// The line broke, or the hub is busy.
    Worthwhile,
}

impl<'a> Remote<'a> {
    pub(super) fn new(settings: &'a HubSettings, repo: Repo, id: &'a str) -> Self {
        let agent = Agent::config_builder()
            .user_agent(concat!("shrink/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .build()
            .into();
        Self { agent, settings, repo, id }
    }

    /// The commit that the revision stands for, and the names of its files; asked for again so often.
    pub(super) fn info(&self, retries: u32) -> Result<RepoInfo, HubError> {
        let url = format!("{}/api/{}", self.settings.endpoint, self.repo.api_url());
        self.persist(retries, || {
            let mut response = self.call(self.agent.get(&url), &url, None)?;
            let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_vec();
            let body = body.map_err(|error| self.network_fault(error))?;
            let info: RepoInfo = serde_json::from_slice(&body)
                .map_err(|error| malformed(&url, "a repository's listing", error))?;
            if info.sha.is_empty() || !info.sha.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return Err(malformed(&url, "a commit hash", info.sha));
            }
            Ok(info)
        })
    }

    /// What identifies the content of `file` at `commit`.
    ///
    /// Follows redirects inside the hub (renamed repositories) and stops at the one to the content network,
    /// because the hub's own answer carries the hash.
    pub(super) fn meta(&self, commit: &str, file: &str) -> Result<FileMeta, HubError> {
        self.persist(self.settings.retries, || {
            let mut url = self.file_url(commit, file);
            for _ in 0..MAX_REDIRECTS {
                let request = self.agent.head(&url).config().max_redirects(0).build();
                let response = self.call(request, &url, Some(file))?;
                let moved = response.status().is_redirection();
                if let Some(etag) = text(&response, "x-linked-etag") {
                    return meta(&url, etag, number(&response, "x-linked-size"));
                }
                if let Some(next) =
                    text(&response, "location").filter(|_| moved).and_then(|to| beside(&url, to))
                {
                    url = next;
                    continue;
                }
                let etag = text(&response, "etag");
                let etag = etag.ok_or_else(|| malformed(&url, "an etag", "no such header"))?;
                return meta(&url, etag, number(&response, "content-length").filter(|_| !moved));
            }
            Err(malformed(&url, "a file", "redirects without end"))
        })
    }

    /// Opens `file` at `commit` from byte `start` on; a 416 comes back as an answer.
    pub(super) fn open(&self, commit: &str, file: &str, start: u64) -> Result<Response<Body>, Fault> {
        let url = self.file_url(commit, file);
        let mut request = self.agent.get(&url);
        if start > 0 {
            request = request.header(header::RANGE, format!("bytes={start}-"));
        }
        self.call(request, &url, Some(file))
    }

    /// The tensors in a safetensors file, by its header alone; none where that is longer than what is asked for.
    pub(super) fn tensor_names(&self, commit: &str, file: &str) -> Result<Vec<String>, HubError> {
        self.persist(self.settings.retries, || {
            let url = self.file_url(commit, file);
            let range = format!("bytes=0-{}", MAX_PEEK_BYTES - 1);
            let request = self.agent.get(&url).header(header::RANGE, range);
            let response = self.call(request, &url, Some(file))?;
            // A server without ranges sends the whole file, of which no more is read.
            let mut start = Vec::new();
            let read = response.into_body().into_reader().take(MAX_PEEK_BYTES).read_to_end(&mut start);
            read.map_err(|error| self.network_fault(ureq::Error::Io(error)))?;
            Ok(header_names(&start).unwrap_or_default())
        })
    }

    /// Waits before retry number `attempt`, counted from 0.
    pub(super) fn pause(&self, attempt: u32) {
        let pause = self.settings.retry_pause.saturating_mul(1 << attempt.min(16)).min(MAX_PAUSE);
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }

    /// How often to try again.
    pub(super) fn retries(&self) -> u32 {
        self.settings.retries
    }

    fn file_url(&self, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.settings.endpoint, self.repo.url(), escaped(file))
    }

    /// The hub's address.
    pub(super) fn endpoint(&self) -> &str {
        &self.settings.endpoint
    }

    /// A request with a body; `own` says whether it goes to the hub itself, which alone is told the token.
    pub(super) fn post_request(&self, url: &str, own: bool) -> RequestBuilder<WithBody> {
        let request = self.agent.post(url);
        match &self.settings.token {
            Some(token) if own => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            _ => request,
        }
    }

    /// A request that puts content somewhere, without the token.
    pub(super) fn put_request(&self, url: &str) -> RequestBuilder<WithBody> {
        self.agent.put(url)
    }

    /// Asks until there is an answer that will not change, `retries` times more at most.
    pub(super) fn persist<T>(
        &self,
        retries: u32,
        mut exchange: impl FnMut() -> Result<T, Fault>,
    ) -> Result<T, HubError> {
        for attempt in 0..retries {
            match exchange() {
                Ok(value) => return Ok(value),
                Err(Fault { retry: Retry::Worthwhile, .. }) => self.pause(attempt),
                Err(fault) => return Err(fault.error),
            }
        }
        exchange().map_err(|fault| fault.error)
    }

    fn call(
        &self,
        mut request: RequestBuilder<WithoutBody>,
        url: &str,
        file: Option<&str>,
    ) -> Result<Response<Body>, Fault> {
        if let Some(token) = &self.settings.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        self.answered(request.call(), url, file)
    }

    /// An answer that is no refusal.
    pub(super) fn answered(
        &self,
        answer: Result<Response<Body>, ureq::Error>,
        url: &str,
        file: Option<&str>,
    ) -> Result<Response<Body>, Fault> {
        let response = answer.map_err(|error| self.network_fault(error))?;
        match response.status().as_u16() {
            ..400 | 416 => Ok(response),
            status => {
                let error = self.refusal(&response, url, file);
                let busy = matches!(status, 408 | 429 | 500 | 502..=504);
                Err(Fault { error, retry: if busy { Retry::Worthwhile } else { Retry::Never } })
            }
        }
    }

    /// What a refusal means, as the Python package reads it.
    fn refusal(&self, response: &Response<Body>, url: &str, file: Option<&str>) -> HubError {
        let status = response.status().as_u16();
        let message = text(response, "x-error-message").unwrap_or_default();
        let with_token = self.settings.token.is_some();
        let id = self.id.to_owned();
        let revision = self.repo.revision().to_owned();
        let no_repo = |id| HubError::RepoNotFound { id, endpoint: self.settings.endpoint.clone() };
        match (status, text(response, "x-error-code").unwrap_or_default(), file) {
            (_, "RepoNotFound", _) => no_repo(id),
            (_, "RevisionNotFound", _) => HubError::RevisionNotFound { id, revision },
            (_, "EntryNotFound", Some(file)) => {
                HubError::FileNotFound { id, revision, file: file.to_owned() }
            }
            (_, "GatedRepo", _) => {
                let page = format!("{}/{}", self.settings.endpoint, self.repo.url());
                HubError::Gated { id, page, with_token }
            }
            // To a stranger the hub does not tell a private repository from a missing one.
            (401, _, None) if !with_token => no_repo(id),
            (401 | 403, _, _) => HubError::Unauthorised { id, status, with_token },
            (404, _, Some(file)) => HubError::FileNotFound { id, revision, file: file.to_owned() },
            (404, _, None) => no_repo(id),
            _ => HubError::Refused { url: url.to_owned(), status, message: message.to_owned() },
        }
    }

    /// What a failure below HTTP means.
    pub(super) fn network_fault(&self, error: ureq::Error) -> Fault {
        use std::io::ErrorKind;
        let retry = match &error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                return malformed("the request", "a valid HF_ENDPOINT and HF_TOKEN", error);
            }
            ureq::Error::TooManyRedirects | ureq::Error::RedirectFailed => Retry::Never,
            ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => Retry::Unconnected,
            ureq::Error::Timeout(_) | ureq::Error::Protocol(_) => Retry::Worthwhile,
            ureq::Error::Io(io) if io.kind() != ErrorKind::ConnectionRefused => Retry::Worthwhile,
            _ => Retry::Unconnected,
        };
        Fault { error: self.unreachable(error), retry }
    }

    /// The line to the hub is down, for this reason.
    pub(super) fn unreachable(&self, reason: impl ToString) -> HubError {
        HubError::Unreachable { endpoint: self.settings.endpoint.clone(), reason: reason.to_string() }
    }
}

/// A header's value, where it is plain text.
pub(super) fn text<'r>(response: &'r Response<Body>, header: &str) -> Option<&'r str> {
    response.headers().get(header)?.to_str().ok()
}

/// A header's value, where it is a number.
pub(super) fn number(response: &Response<Body>, header: &str) -> Option<u64> {
    text(response, header)?.trim().parse().ok()
}

pub(super) fn malformed(from: &str, expected: &'static str, found: impl ToString) -> Fault {
    let error = HubError::Malformed { from: from.to_owned(), expected, found: found.to_string() };
    Fault { error, retry: Retry::Never }
}

/// The etag names a file of the cache, so it must be a name.
fn meta(url: &str, etag: &str, bytes: Option<u64>) -> Result<FileMeta, Fault> {
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    if is_inside(etag) && !etag.contains('/') {
        Ok(FileMeta { etag: etag.to_owned(), bytes })
    } else {
        Err(malformed(url, "an etag that can name a file", etag))
    }
}

/// The tensors that the header of a safetensors file names; `None` where these are not all of its bytes.
fn header_names(start: &[u8]) -> Option<Vec<String>> {
    let (length, rest) = start.split_first_chunk::<8>()?;
    let header = rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    Some(header.into_iter().map(|(name, _)| name).collect())
}

/// The address that a redirect leads to, if it stays on the server of `url` and does not give up encryption: the token goes
/// along.
fn beside(url: &str, location: &str) -> Option<String> {
    let here: Uri = url.parse().ok()?;
    let there: Uri = location.parse().ok()?;
    let (scheme, authority) = (here.scheme_str()?, here.authority()?);
    match there.authority() {
        None => Some(format!("{scheme}://{authority}{}", there.path_and_query()?)),
        Some(other)
            if other == authority
                && (there.scheme() == here.scheme() || there.scheme_str() == Some("https")) =>
        {
            Some(location.to_owned())
        }
        Some(_) => None,
    }
}

/// A file's name as it stands in an address; slashes stay.
fn escaped(file: &str) -> String {
    let mut out = String::with_capacity(file.len());
    for byte in file.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_is_followed_only_on_the_same_server() {
        let url = "http://hub:80/a/resolve/main/f";
        assert_eq!(beside(url, "/b/f?x=1").as_deref(), Some("http://hub:80/b/f?x=1"));
        assert_eq!(beside(url, "http://hub:80/c").as_deref(), Some("http://hub:80/c"));
        assert_eq!(beside(url, "http://cdn/c"), None);
    }

    #[test]
    fn no_redirect_takes_the_token_from_https_to_http() {
        assert_eq!(beside("https://hub/a", "http://hub/a"), None);
        assert_eq!(beside("https://hub/a", "https://hub/b").as_deref(), Some("https://hub/b"));
        assert_eq!(beside("http://hub/a", "https://hub/b").as_deref(), Some("https://hub/b"));
        assert_eq!(beside("https://hub/a", "/b").as_deref(), Some("https://hub/b"));
    }

    #[test]
    fn a_header_is_read_when_it_is_whole() {
        let header = br#"{"a.qweight": {}, "b": {}}"#;
        let file = [&(header.len() as u64).to_le_bytes()[..], header, b"data"].concat();
        assert_eq!(header_names(&file), Some(vec!["a.qweight".to_owned(), "b".to_owned()]));
        for cut in [0, 7, 8, 20] {
            assert_eq!(header_names(&file[..cut]), None, "{cut}");
        }
        assert_eq!(header_names(&u64::MAX.to_le_bytes()), None);
    }

    #[test]
    fn an_etag_is_bared_and_may_not_be_a_path() {
        let etag = |raw| meta("u", raw, None).map(|meta| meta.etag).map_err(|fault| fault.error.to_string());
        assert_eq!(etag("\"abc\""), Ok("abc".to_owned()));
        assert_eq!(etag("W/\"abc\""), Ok("abc".to_owned()));
        for hostile in ["\"../../x\"", "\"a/b\"", "\"\""] {
            assert!(etag(hostile).is_err(), "{hostile}");
        }
    }

    #[test]
    fn names_are_escaped_but_not_their_slashes() {
        assert_eq!(escaped("a b/c#é.txt"), "a%20b/c%23%C3%A9.txt");
    }
}
