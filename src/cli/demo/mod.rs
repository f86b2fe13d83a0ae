//! `headwater demo`: a small shop on a real database becomes topics, while the daemon is killed again and again.
//!
//! [`server`] finds and starts a database ([`postgres`], [`mysql`]), [`shop`] is the monolith ([`build`] its tables), [`daemon`] the
//! headwater that gets killed,
//! [`ledger`] counts both ends independently, [`show`] is what a person sees.

mod build;
mod daemon;
mod ledger;
mod mysql;
mod postgres;
mod server;
mod shop;
mod show;

use std::{path::PathBuf, time::Duration};

use headwater_connector::{Error, Result};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use self::{
    daemon::Daemon,
    ledger::{Ledger, Truth, Witness},
    server::{Monolith, Server},
    shop::Shop,
    show::Show,
};
use super::{Failure, Outcome, codes};

/// How often the daemon is killed.
const KILLS: u32 = 3;

/// How long the shop goes on without a daemon after a kill.
const DOWN: Duration = Duration::from_millis(1200);

/// The first of them comes no later than this.
const FIRST_KILL: Duration = Duration::from_secs(4);

/// How long the topics may take to hold everything once the shop is quiet.
const CATCH_UP: Duration = Duration::from_secs(60);

/// Options of `demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Use this server instead of starting one; the demo makes a schema of its own there and removes it afterwards.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// What the monolith runs on; `--url` says it too.
    #[arg(long, value_enum, default_value = "postgres")]
    source: Monolith,
    /// How long the shop is open.
    #[arg(long, default_value_t = 18, value_parser = clap::value_parser!(u64).range(3..=3600), value_name = "SECONDS")]
    seconds: u64,
}

/// Runs the show; 1 if the two ends differ or somebody stopped it.
pub fn run(args: &Args) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(super::start_failed).map_err(Failure::from)?;
    let exact = runtime.block_on(play(args));
    runtime.shutdown_timeout(Duration::from_secs(2));
    Ok(if exact? { super::exit::OK } else { 1 })
}

/// The whole show. What it made is removed however it ends; the count is the last line.
async fn play(args: &Args) -> Result<bool> {
    let mut stage = Stage { show: Show::new(), directory: Workspace::create()?, daemon: None };
    let started = tokio::select! {
        biased;
        () = interrupted() => return Ok(stage.show.interrupted()),
        server = stage.server(args) => server?,
    };
    let shop = Shop::new(&started);
    let outcome = tokio::select! {
        biased;
        () = interrupted() => Ok(None),
        counted = stage.perform(args, &started, &shop) => counted.map(Some),
    };
    if let Some(daemon) = &mut stage.daemon {
        daemon.stop().await;
    }
    let removed = shop.remove().await;
    started.stop().await;
    let Some((played, ledger)) = outcome? else { return Ok(stage.show.interrupted()) };
    removed?;
    stage.show.result(&played, &ledger);
    Ok(ledger.is_exact())
}

/// What happened.
struct Played {
    transactions: u64,
    kills: u32,
    /// Of these, kills while rows were read that were there before.
    reading: u32,
}

/// What the demo stands on. Dropping it ends the daemon and removes the directory.
struct Stage {
    show: Show,
    daemon: Option<Daemon>,
    directory: Workspace,
}

impl Stage {
    async fn server(&self, args: &Args) -> Result<Server> {
        let server = match &args.url {
            Some(url) => Server::existing(Monolith::of_url(url).unwrap_or(args.source), url),
            None => Server::start(args.source, self.directory.path(), &self.show).await?,
        };
        self.show.title(&server.describe().await?);
        Ok(server)
    }

    /// Trades, kills, restarts, and counts both ends.
    async fn perform(&mut self, args: &Args, server: &Server, shop: &Shop) -> Result<(Played, Ledger)> {
        let Self { show, daemon, directory } = self;
        shop.fill(show).await?;
        let daemon = daemon.insert(Daemon::start(directory.path(), server, shop.schema(), show).await?);
        let witness = Witness::start(&daemon.log_path(), shop.schema()).await?;
        // A task set ends its tasks when it is dropped.
        let mut background = JoinSet::new();
        background.spawn(show.clone().follow(daemon.log_path(), shop.schema().to_owned()));
        let open_for = Duration::from_secs(args.seconds);
        let mut trading = JoinSet::new();
        trading.spawn(shop.clone().trade(Instant::now() + open_for, show.clone()));
        let mut reading = 0;
        for at in 0..KILLS {
            let pause = open_for / (KILLS + 1);
            // The first one comes while rows are read that were there before.
            sleep(if at == 0 { pause.min(FIRST_KILL) } else { pause }).await;
            reading += u32::from(daemon.kill(show).await);
            sleep(DOWN.min(open_for / 6)).await;
            daemon.restart(show).await?;
        }
        let traded = trading.join_next().await.ok_or_else(|| failed("the shop never opened"))?;
        let transactions = traded.map_err(|error| failed("the shop's task ended early").caused_by(error))??;
        show.step("the shop closes; counting both ends");
        let deadline = Instant::now() + CATCH_UP;
        daemon.until_read(deadline).await;
        let truth = Truth { facts: shop.truth().await?, rows: shop.rows().await? };
        let ledger = Ledger::catch_up(&witness, &truth, deadline).await;
        Ok((Played { transactions, kills: KILLS, reading }, ledger))
    }
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup()))
    else {
        return std::future::pending().await;
    };
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
}

/// A failure of the demo itself.
fn failed(what: impl Into<String>) -> Error {
    Error::new(&codes::DEMO, what).hint("Run `headwater demo` again, or with `--url` on a server that you have.")
}

/// A directory that goes away with everything in it.
struct Workspace(PathBuf);

impl Workspace {
    fn create() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("headwater-demo-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&path).map_err(|error| {
            failed("a temporary directory cannot be created").at("directory", path.display()).caused_by(error)
        })?;
        Ok(Self(path))
    }

    fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // The daemon and the server are gone by now; whatever they left goes with the directory.
        drop(std::fs::remove_dir_all(&self.0));
    }
}
