//! `apply` and `export`: the cluster as a text.

use super::Outcome;
use crate::client::Client;
use crate::operation::Operation;
use crate::spec::{Plan, Spec};
use anyhow::{Context, bail};
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

pub(super) async fn export(client: &Client, json: bool) -> Outcome {
    let done = client.operate(&Operation::Export).await?;
    let data = done.data.context("the daemon gave no text")?;
    if json {
        println!("{data}");
    } else {
        let spec: Spec = serde_json::from_value(data)?;
        print!("{}", toml::to_string_pretty(&spec)?);
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn apply(
    client: &Client,
    file: &Path,
    prune: bool,
    dry_run: bool,
    json: bool,
) -> Outcome {
    let spec = read(file)?;
    let done = client.operate(&Operation::Plan { spec, prune }).await?;
    let data = done.data.context("the daemon gave no plan")?;
    let plan: Plan = serde_json::from_value(data)?;
    if !json {
        for left in &plan.left {
            println!("left as it is, since the file does not name it: {left} (--prune removes it)");
        }
        if plan.steps.is_empty() {
            println!("nothing to do");
        }
    }
    let mut results = Vec::new();
    for (number, step) in plan.steps.iter().enumerate() {
        if dry_run {
            if !json {
                println!("would {}", step.text);
            }
            continue;
        }
        match client.operate(&step.operation).await {
            Ok(done) if json => results.push(done.message),
            Ok(done) => println!("{}: {}", step.text, done.message),
            Err(error) => bail!(
                "can't {} (step {} of {}; the ones before are done): {error}",
                step.text,
                number + 1,
                plan.steps.len()
            ),
        }
    }
    if json {
        let steps: Vec<&str> = plan.steps.iter().map(|step| step.text.as_str()).collect();
        println!(
            "{}",
            serde_json::json!({ "steps": steps, "left": plan.left, "results": results })
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn read(file: &Path) -> anyhow::Result<Spec> {
    let mut text = String::new();
    let name = if file == Path::new("-") {
        std::io::stdin()
            .read_to_string(&mut text)
            .context("can't read the standard input")?;
        "standard input".to_owned()
    } else {
        text = std::fs::read_to_string(file)
            .with_context(|| format!("can't read {}", file.display()))?;
        file.display().to_string()
    };
    toml::from_str(&text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let before = text.get(..at).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        anyhow::anyhow!("{name}, line {line}: {}", error.message())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_wrong_is_refused_with_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cluster.toml");
        for (text, words) in [
            (
                "[resources.db]\nsizes = [\"big\"]\n",
                "line 2: \"big\" is not a size",
            ),
            ("[resources.db]\nsize = 1\n", "line 2: unknown field `size`"),
            (
                "\n[nodes.a]\nstate = \"tired\"\n",
                "line 3: unknown variant `tired`",
            ),
            ("[timings]\nlease_ms = -1\n", "line 2: "),
            ("resources = 3\n", "line 1: "),
            ("[resources\n", "line 1: "),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = read(&file).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert!(read(&directory.path().join("none")).is_err());
    }
}
