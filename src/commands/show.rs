//! Commands that show something.

use super::Outcome;
use crate::client::Client;
use crate::operation::{Operation, ResourceListing};
use crate::size::show_size;
use crate::status;
use anyhow::{Context, bail};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

/// `--watch` looks this often.
const WATCH_EVERY: Duration = Duration::from_secs(1);

pub(super) async fn status(
    client: &Client,
    resource: Option<&str>,
    json: bool,
    watch: bool,
) -> Outcome {
    loop {
        let mut view = client.status().await?;
        if !status::narrow(&mut view, resource) {
            bail!(
                "there is no resource {}\n  to do: see `lockstep resource list`",
                resource.unwrap_or_default()
            );
        }
        let text = if json {
            status::json(&view)? + "\n"
        } else {
            status::text(&view)
        };
        let mut out = std::io::stdout().lock();
        if watch && !json && out.is_terminal() {
            write!(out, "\x1b[H\x1b[2J")?;
        }
        out.write_all(text.as_bytes())?;
        out.flush()?;
        drop(out);
        if !watch {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

pub(super) async fn events(client: &Client, once: bool, json: bool) -> Outcome {
    client
        .events(once, |event| {
            let mut out = std::io::stdout().lock();
            if json {
                writeln!(out, "{}", serde_json::to_string(&event)?)?;
            } else {
                let seconds = event.time_ms / 1000;
                writeln!(
                    out,
                    "{} {} {} {}: {}",
                    utc(seconds),
                    event.node,
                    event.resource.as_deref().unwrap_or("-"),
                    event.event,
                    event.text
                )?;
            }
            out.flush()
        })
        .await?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn resources(client: &Client, json: bool) -> Outcome {
    let done = client.operate(&Operation::ListResources).await?;
    let data = done.data.context("the daemon gave no list")?;
    if json {
        println!("{data}");
        return Ok(ExitCode::SUCCESS);
    }
    let listing: Vec<ResourceListing> = serde_json::from_value(data)?;
    print!("{}", listing_text(&listing));
    Ok(ExitCode::SUCCESS)
}

fn listing_text(listing: &[ResourceListing]) -> String {
    let header = [
        "RESOURCE", "SIZE", "PRIMARY", "REPLICA", "STORES", "IN SYNC",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for resource in listing {
        let sizes: Vec<String> = resource.sizes_bytes.iter().map(|&s| show_size(s)).collect();
        for (number, replica) in resource.replicas.iter().enumerate() {
            let first = |text: String| if number == 0 { text } else { String::new() };
            rows.push(vec![
                first(resource.name.clone()),
                first(sizes.join(" + ")),
                first(
                    resource
                        .primary
                        .clone()
                        .unwrap_or_else(|| "none".to_owned()),
                ),
                replica.node.clone(),
                replica.paths.join(", "),
                if replica.in_sync { "yes" } else { "no" }.to_owned(),
            ]);
        }
    }
    let mut out = String::new();
    status::table(&mut out, &rows, "");
    out
}

/// Seconds since 1970 as `2026-11-23T01:02:03Z` (the civil calendar by Howard Hinnant's
/// `civil_from_days`, years from March).
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::ReplicaListing;

    #[test]
    fn times_are_shown_in_utc() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_395_723, "2026-11-23T01:02:03Z"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }

    #[test]
    fn the_list_names_each_replicas_place() {
        let listing = [ResourceListing {
            name: "r0".to_owned(),
            id: "7".to_owned(),
            sizes_bytes: vec![1 << 30],
            min_redundancy: 1,
            primary: None,
            replicas: vec![
                ReplicaListing {
                    node: "node1".to_owned(),
                    paths: vec!["r0.img".to_owned()],
                    in_sync: true,
                },
                ReplicaListing {
                    node: "node2".to_owned(),
                    paths: vec!["/dev/sdb".to_owned()],
                    in_sync: false,
                },
            ],
        }];
        let expected = "\
RESOURCE  SIZE   PRIMARY  REPLICA  STORES    IN SYNC
r0        1 GiB  none     node1    r0.img    yes
                          node2    /dev/sdb  no
";
        assert_eq!(listing_text(&listing), expected);
    }
}
