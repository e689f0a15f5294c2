//! An Apache server and visitors who know what they have to be given.

use super::{SOON, wait_for};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PAGES: u64 = 64;
const PAGE_BYTES: usize = 64 << 10;

/// A running server.
#[derive(Debug)]
pub(crate) struct Apache {
    process: Child,
    address: SocketAddr,
    site: PathBuf,
    directory: TempDir,
}

fn page(number: u64) -> Vec<u8> {
    let line = format!("this is page {number}\n");
    line.bytes().cycle().take(PAGE_BYTES).collect()
}

/// Makes a site: pages and a directory for logs.
pub(crate) fn make_site(site: &Path) {
    fs::create_dir_all(site.join("pages")).expect("a directory can be made");
    fs::create_dir_all(site.join("logs")).expect("a directory can be made");
    for number in 0..PAGES {
        fs::write(site.join(format!("pages/{number}")), page(number)).expect("a page");
    }
}

fn free_address() -> SocketAddr {
    let socket = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    socket.local_addr().expect("it has an address")
}

impl Apache {
    /// Starts a server for a site and waits until it answers.
    pub(crate) fn start(site: &Path) -> Self {
        let directory = TempDir::with_prefix("lockstep-test-web-").expect("a directory");
        let address = free_address();
        let modules = ["mpm_event", "authz_core"].map(|name| {
            format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n")
        });
        let configuration = format!(
            "{}Listen {address}\nServerName localhost\nServerRoot {run}\nPidFile {run}/pid\nErrorLog {run}/errors\nDocumentRoot {site}/pages\nCustomLog {site}/logs/access \"%U %>s\"\n<Directory {site}/pages>\nRequire all granted\n</Directory>\n",
            modules.concat(),
            run = directory.path().display(),
            site = site.display(),
        );
        let file = directory.path().join("apache.conf");
        fs::write(&file, configuration).expect("a file can be written");
        let process = Command::new("apache2")
            .arg("-f")
            .arg(&file)
            .arg("-DFOREGROUND")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.path().join("stderr")).expect("a file"))
            .spawn()
            .expect("apache2 is installed");
        let server = Self {
            process,
            address,
            site: site.to_owned(),
            directory,
        };
        wait_for("the web server to answer", SOON, || {
            visit(address, 0).map_err(|error| format!("{error}: {}", server.complaints()))
        });
        server
    }

    fn complaints(&self) -> String {
        let read = |file| fs::read_to_string(self.directory.path().join(file)).unwrap_or_default();
        read("errors") + &read("stderr")
    }

    /// Lets visitors in. What they ask for is read from the disk, not from memory.
    pub(crate) fn visitors(&self, count: u64) -> Visitors {
        let stop = Arc::new(AtomicBool::new(false));
        let visits = Arc::new(AtomicU64::new(0));
        let threads = (0..count).map(|visitor| {
            let (address, site) = (self.address, self.site.clone());
            let (stop, visits) = (Arc::clone(&stop), Arc::clone(&visits));
            std::thread::spawn(move || {
                let mut longest = Duration::ZERO;
                for number in (0..).map(|n| (n * 7 + visitor) % PAGES) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    forget(&site.join(format!("pages/{number}")));
                    let begin = Instant::now();
                    visit(address, number).unwrap_or_else(|error| panic!("page {number}: {error}"));
                    longest = longest.max(begin.elapsed());
                    visits.fetch_add(1, Ordering::Relaxed);
                }
                longest
            })
        });
        Visitors {
            threads: threads.collect(),
            stop,
            visits,
        }
    }

    /// Ends it in good order; gives how many good visits it has logged on the disk.
    pub(crate) fn stop(mut self) -> u64 {
        super::command::kill(self.process.id(), nix::sys::signal::Signal::SIGTERM);
        wait_for("the web server to end", SOON, || {
            let status = self.process.try_wait().expect("a child can be waited for");
            status.ok_or_else(|| "it runs".to_owned())
        });
        let log = fs::read_to_string(self.site.join("logs/access")).expect("the log is there");
        let good = log.lines().filter(|line| line.ends_with(" 200")).count();
        assert_eq!(
            good,
            log.lines().count(),
            "visits that went wrong are logged"
        );
        u64::try_from(good).expect("fits")
    }
}

impl Drop for Apache {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the web server's log\n{}", self.complaints());
        }
        // Its workers end with it; after a failure there is nothing more to do for them.
        super::command::kill(self.process.id(), nix::sys::signal::Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

/// The kernel forgets a file's contents: the next reader reads the disk.
fn forget(path: &Path) {
    let file = fs::File::open(path).expect("a page");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("advice is taken");
}

fn visit(address: SocketAddr, number: u64) -> Result<(), String> {
    let get = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(SOON))?;
        write!(stream, "GET /{number} HTTP/1.0\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = get().map_err(|error| error.to_string())?;
    let head = String::from_utf8_lossy(&answer[..answer.len().min(300)]).into_owned();
    if head.starts_with("HTTP/1.1 200") && answer.ends_with(&page(number)) {
        Ok(())
    } else {
        Err(head)
    }
}

/// Visitors, who go from page to page.
#[derive(Debug)]
pub(crate) struct Visitors {
    threads: Vec<JoinHandle<Duration>>,
    stop: Arc<AtomicBool>,
    visits: Arc<AtomicU64>,
}

impl Visitors {
    /// Good visits so far.
    pub(crate) fn visits(&self) -> u64 {
        self.visits.load(Ordering::Relaxed)
    }

    /// Waits for so many more.
    pub(crate) fn wait(&self, more: u64) {
        let goal = self.visits() + more;
        wait_for("visitors", SOON, || match self.visits() {
            now if now >= goal => Ok(()),
            now => Err(format!("{now} of {goal} visits")),
        });
    }

    /// Sends them away; the longest that one waited for a page.
    pub(crate) fn finish(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let longest = self
            .threads
            .into_iter()
            .map(|thread| thread.join().expect("no visitor was given a wrong page"));
        longest.max().unwrap_or_default()
    }
}
