//! A MariaDB server, and clients that know what was committed: each transaction moves money between
//! two accounts and enters itself into a ledger, and counts from the moment that the server has
//! acknowledged its commit.

use super::command::{output_within, text};
use super::{SOON, wait_for};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const ACCOUNTS: u64 = 100;
const BALANCE: u64 = 1000;
/// Making the system tables takes a while on a busy machine.
const INSTALL_LIMIT: Duration = Duration::from_secs(120);

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    process: Child,
    directory: TempDir,
    /// From the start of the process until it answered.
    pub(crate) start_time: Duration,
}

/// Makes an empty database server's files.
pub(crate) fn install(data: &Path) {
    let mut command = Command::new("mariadb-install-db");
    command
        .args(["--no-defaults", "--user=root", "--skip-test-db"])
        .arg("--auth-root-authentication-method=normal")
        .arg(format!("--datadir={}", data.display()));
    let output = output_within(command, INSTALL_LIMIT);
    assert!(output.status.success(), "{}", text(&output));
}

fn client(socket: &Path) -> Command {
    let mut command = Command::new("mariadb");
    command
        .args(["--no-defaults", "--user=root", "--batch", "--unbuffered"])
        .arg("--skip-column-names")
        .arg(format!("--socket={}", socket.display()));
    command
}

impl Server {
    /// Starts a server on these files and waits until it answers; after a crash it recovers first.
    pub(crate) fn start(data: &Path) -> Self {
        let directory = TempDir::with_prefix("lockstep-test-db-").expect("a directory");
        let begin = Instant::now();
        let process = Command::new("mariadbd")
            .args(["--no-defaults", "--user=root", "--skip-networking"])
            // Each commit is on the disk before it is acknowledged, and nothing is cached below.
            .args([
                "--innodb-flush-log-at-trx-commit=1",
                "--innodb-flush-method=O_DIRECT",
            ])
            .args([
                "--innodb-buffer-pool-size=64M",
                "--innodb-log-file-size=16M",
            ])
            .arg(format!("--datadir={}", data.display()))
            .arg(format!(
                "--socket={}",
                directory.path().join("socket").display()
            ))
            .arg(format!(
                "--pid-file={}",
                directory.path().join("pid").display()
            ))
            .arg(format!(
                "--log-error={}",
                directory.path().join("log.err").display()
            ))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mariadbd is installed");
        let mut server = Self {
            process,
            directory,
            start_time: Duration::ZERO,
        };
        wait_for("the database to answer", SOON, || {
            if let Some(status) = server.process.try_wait().expect("a child") {
                panic!("mariadbd ended: {status}\n{}", server.log());
            }
            server.try_query("SELECT 1")
        });
        server.start_time = begin.elapsed();
        server
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// What the server has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log.err")).unwrap_or_default()
    }

    fn try_query(&self, sql: &str) -> Result<String, String> {
        let mut command = client(&self.socket());
        command.args(["--execute", sql]);
        let output = output_within(command, SOON);
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(text(&output))
        }
    }

    /// The answer to a query that must succeed; columns are separated by tabs.
    pub(crate) fn query(&self, sql: &str) -> String {
        let answer = self.try_query(sql);
        answer.unwrap_or_else(|error| panic!("{sql}: {error}\n{}", self.log()))
    }

    /// The tables that clients work on.
    pub(crate) fn create_bank(&self) {
        self.query(&format!(
            "CREATE DATABASE bank; USE bank;
             CREATE TABLE account (id INT PRIMARY KEY, balance BIGINT NOT NULL) ENGINE=InnoDB;
             CREATE TABLE ledger (client INT, number BIGINT, note VARCHAR(200), PRIMARY KEY (client, number)) ENGINE=InnoDB;
             INSERT INTO account SELECT seq, {BALANCE} FROM seq_1_to_{ACCOUNTS};"
        ));
    }

    /// No money was made or lost, every acknowledged transaction is there, and of each client at most
    /// the one that it was waiting for besides; the tables are sound. Returns the transactions.
    pub(crate) fn check_bank(&self, acknowledged: &[u64]) -> u64 {
        let sum = self.query("SELECT SUM(balance) FROM bank.account");
        assert_eq!(sum.trim(), (ACCOUNTS * BALANCE).to_string(), "money");
        let mut total = 0;
        for (client, &acknowledged) in acknowledged.iter().enumerate() {
            let row = self.query(&format!(
                "SELECT COUNT(*), COALESCE(MAX(number), 0) FROM bank.ledger WHERE client = {client}"
            ));
            let numbers: Vec<u64> = row
                .split_whitespace()
                .map(|n| n.parse().expect("a number"))
                .collect();
            let (count, last) = (numbers[0], numbers[1]);
            assert_eq!(count, last, "client {client}: there are gaps in its ledger");
            assert!(
                (acknowledged..=acknowledged + 1).contains(&last),
                "client {client}: {acknowledged} were acknowledged, {last} are there"
            );
            total += count;
        }
        let checked = self.query("CHECK TABLE bank.account, bank.ledger EXTENDED");
        let sound = checked
            .lines()
            .filter(|line| line.ends_with("status\tOK"))
            .count();
        assert_eq!((sound, checked.lines().count()), (2, 2), "{checked}");
        total
    }

    /// Starts clients whose transactions are numbered from these on.
    pub(crate) fn load(&self, acknowledged: &[u64]) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let threads = (0_u64..).zip(acknowledged).map(|(number, &last)| {
            let client = client(&self.socket());
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
            std::thread::spawn(move || transactions(client, number, last, &stop, &count))
        });
        Load {
            threads: threads.collect(),
            stop,
            count,
        }
    }

    /// The machine that it ran on is gone.
    pub(crate) fn kill(mut self) {
        self.process.kill().expect("a child can be killed");
        self.process.wait().expect("a child can be waited for");
    }

    /// Ends it in good order.
    pub(crate) fn stop(mut self) {
        super::command::kill(self.process.id(), nix::sys::signal::Signal::SIGTERM);
        let status = wait_for("the database to end", SOON, || {
            let status = self.process.try_wait().expect("a child can be waited for");
            status.ok_or_else(|| "it runs".to_owned())
        });
        assert!(status.success(), "{status}\n{}", self.log());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the database's log\n{}", self.log());
        }
        // It has ended, unless the test fails.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Clients at work.
#[derive(Debug)]
pub(crate) struct Load {
    threads: Vec<JoinHandle<Account>>,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
}

/// What one client knows.
#[derive(Debug)]
pub(crate) struct Account {
    /// Number of its last transaction whose commit was acknowledged.
    pub(crate) acknowledged: u64,
    /// The longest that one took.
    pub(crate) longest: Duration,
    /// Why it ended, when not because it was told to.
    pub(crate) error: Option<String>,
}

impl Load {
    /// Acknowledged commits so far.
    pub(crate) fn commits(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until so many more commits were acknowledged.
    pub(crate) fn wait_commits(&self, more: u64) {
        let goal = self.commits() + more;
        wait_for("the clients to get on", SOON, || {
            let ended = self
                .threads
                .iter()
                .filter(|thread| thread.is_finished())
                .count();
            match self.commits() {
                now if now >= goal => Ok(()),
                now => Err(format!(
                    "{now} of {goal} commits, {ended} clients have ended"
                )),
            }
        });
    }

    /// Waits until every client was given an error.
    pub(crate) fn wait_failed(&self) {
        wait_for("the clients to fail", SOON, || {
            let live = self
                .threads
                .iter()
                .filter(|thread| !thread.is_finished())
                .count();
            if live == 0 {
                Ok(())
            } else {
                Err(format!("{live} go on"))
            }
        });
    }

    /// Ends the clients and tells what they know.
    pub(crate) fn finish(self) -> Vec<Account> {
        self.stop.store(true, Ordering::Relaxed);
        let join = |thread: JoinHandle<Account>| thread.join().expect("a client does not panic");
        self.threads.into_iter().map(join).collect()
    }
}

fn transactions(
    mut client: Command,
    number: u64,
    last: u64,
    stop: &AtomicBool,
    count: &AtomicU64,
) -> Account {
    let mut account = Account {
        acknowledged: last,
        longest: Duration::ZERO,
        error: None,
    };
    let mut process = client
        .arg("bank")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mariadb is installed");
    let mut say = process.stdin.take().expect("a pipe");
    let mut answers = BufReader::new(process.stdout.take().expect("a pipe"));
    while !stop.load(Ordering::Relaxed) {
        let next = account.acknowledged + 1;
        // In the order of their numbers, so that no two clients wait for each other.
        let from = 1 + (number * 31 + next * 7) % (ACCOUNTS - 1);
        let to = from + 1 + next % (ACCOUNTS - from);
        let sql = format!(
            "BEGIN; UPDATE account SET balance = balance - 1 WHERE id = {from};
             UPDATE account SET balance = balance + 1 WHERE id = {to};
             INSERT INTO ledger VALUES ({number}, {next}, REPEAT('x', 150));
             COMMIT; SELECT 'committed', {next};\n"
        );
        let begin = Instant::now();
        let mut answer = String::new();
        let result = say
            .write_all(sql.as_bytes())
            .and_then(|()| answers.read_line(&mut answer));
        if result.is_err() || answer != format!("committed\t{next}\n") {
            // Its last words.
            drop(say);
            let output = process.wait_with_output().expect("a child");
            account.error = Some(format!("{answer}{}", text(&output)));
            return account;
        }
        account.longest = account.longest.max(begin.elapsed());
        account.acknowledged = next;
        count.fetch_add(1, Ordering::Relaxed);
    }
    drop(say);
    process.wait().expect("a child can be waited for");
    account
}
