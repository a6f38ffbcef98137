//! The benchmark: what the outbox does in a second, and beside each figure the limit that was measured in the same run.
//!
//! Absolute figures say more about the machine than about the product; the ratios hold from run to run. Run it with
//! `make bench`, which starts a durable Postgres of its own and the programs as they are released.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed benchmark")]
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures are for people, and counts are small"
)]

use clap::{Parser, ValueEnum};

mod bulk;
mod calls;
mod chat;
mod claim;
mod database;
mod desk;
mod drain;
mod figures;
mod home;
mod latency;
mod load;
mod snapshot;
mod statements;
mod writes;
mod ws;

use figures::{Figure, Table};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Messages that the API takes in a second
    Writes,
    /// Operations that one worker delivers in a second
    Drain,
    /// From a commit to the request at the homeserver
    Latency,
    /// From a commit to the frame at a client of another API process
    Ws,
    /// From the commit of an invite to the homeserver, beside messages by the hundred thousand
    Calls,
    /// Pages that a claim reads, by what the tables hold
    Claim,
    /// Pages that a claim reads while someone holds a snapshot
    Snapshot,
    /// Pages that operators' lists read, and a bulk requeue beside what people write
    Desk,
}

/// Measures the outbox beside its limits. Run it with `make bench`.
#[derive(Debug, Parser)]
struct Options {
    /// Only this section
    #[arg(long, value_enum)]
    only: Option<Section>,
    /// Small sizes: shows that it works; its figures mean nothing
    #[arg(long)]
    quick: bool,
    /// What cargo says when it benches
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    if !options.bench {
        println!("nothing is measured but by `cargo bench`: see `make bench`");
        return;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut figures: Vec<Figure> = Vec::new();
    for section in Section::value_variants() {
        if options.only.is_some_and(|only| only != *section) {
            continue;
        }
        figures.extend(match section {
            Section::Writes => writes::measure(options.quick).await,
            Section::Drain => drain::measure(options.quick).await,
            Section::Latency => latency::measure(options.quick).await,
            Section::Ws => ws::measure(options.quick).await,
            Section::Calls => calls::measure(options.quick).await,
            Section::Claim => claim::measure(options.quick).await,
            Section::Snapshot => snapshot::measure(options.quick).await,
            Section::Desk => desk::measure(options.quick).await,
        });
    }
    let mut summary = Table::new("Summary", &["what", "measured", "limit beside it", "ratio", "goal"]);
    for figure in figures {
        summary.row(figure.cells(options.quick));
    }
    summary.print();
}
