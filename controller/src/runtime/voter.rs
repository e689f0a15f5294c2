//! The single voter: takes commands in batches, writes the document that results, then answers. It
//! also puts an end to the creation of a resource whose replicas don't all report.

use super::handle::Job;
use super::wire::Decision;
use crate::core::{Command, Document, Refused, Resource};
use crate::store::DocumentStore;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use vocabulary::ResourceId;

/// A new resource waits this long for all replicas to be created, then it begins with those that
/// are there.
const CREATION_LIMIT: Duration = Duration::from_secs(10);
/// After a failed write the document is read and written anew this much later.
const MEND_AFTER: Duration = Duration::from_secs(1);

type Documents = watch::Sender<Option<Arc<Document>>>;

pub(super) async fn run(
    mut store: DocumentStore,
    mut document: Document,
    mut jobs: mpsc::Receiver<Job>,
    documents: Documents,
) {
    documents.send_replace(Some(Arc::new(document.clone())));
    let mut creations = BTreeMap::new();
    loop {
        let due = watch_creations(&document, &mut creations);
        let first = tokio::select! {
            job = jobs.recv() => match job {
                Some(job) => Some(job),
                None => return,
            },
            () = sleep_until(due.map_or_else(far_away, |(at, _)| at)), if due.is_some() => None,
        };
        let mut batch = Batch::new(document.clone());
        match (first, due) {
            (Some(job), _) => batch.take(job),
            (None, Some((_, resource))) => batch.begin(resource, &mut creations),
            (None, None) => {}
        }
        while let Ok(job) = jobs.try_recv() {
            batch.take(job);
        }
        if batch.document == document {
            batch.answer(false);
            continue;
        }
        let next = batch.document.clone();
        let written = tokio::task::spawn_blocking(move || {
            let result = store.save(&next);
            (store, result)
        })
        .await;
        let Ok((returned, result)) = written else {
            tracing::error!("the configuration store's writer panicked; this voter stops");
            return;
        };
        store = returned;
        match result {
            Ok(()) => {
                document = batch.document.clone();
                documents.send_replace(Some(Arc::new(document.clone())));
                batch.answer(false);
            }
            Err(error) => {
                // What is on disk is not known now. Nothing is acted on, old or new, until the
                // document before the batch stands in both copies again.
                tracing::error!(%error, "the configuration could not be written");
                batch.answer(true);
                store = mend(store, &document).await;
            }
        }
    }
}

async fn mend(mut store: DocumentStore, document: &Document) -> DocumentStore {
    loop {
        tokio::time::sleep(MEND_AFTER).await;
        match store.save(document) {
            Ok(()) => return store,
            Err(error) => tracing::error!(%error, "the configuration still can't be written"),
        }
    }
}

struct Batch {
    document: Document,
    answers: Vec<(oneshot::Sender<Decision>, Option<Refused>)>,
}

impl Batch {
    const fn new(document: Document) -> Self {
        Self {
            document,
            answers: Vec::new(),
        }
    }

    fn take(&mut self, job: Job) {
        let refused = match self.document.apply(&job.command) {
            Ok(next) => {
                self.document = next;
                None
            }
            Err(refused) => Some(refused),
        };
        self.answers.push((job.answer, refused));
    }

    fn begin(&mut self, resource: ResourceId, creations: &mut BTreeMap<ResourceId, Instant>) {
        match self.document.apply(&Command::BeginResource { resource }) {
            Ok(next) => self.document = next,
            Err(refused) => {
                tracing::warn!(%refused, "a resource can't begin yet");
                creations.insert(resource, Instant::now() + CREATION_LIMIT);
            }
        }
    }

    fn answer(self, failed: bool) {
        let version = self.document.version.0;
        for (answer, refused) in self.answers {
            let decision = match refused {
                Some(refused) => Decision::Refused(refused),
                None if failed => Decision::Undecided,
                None => Decision::Committed { version },
            };
            // Whoever asked may have given up waiting.
            let _ = answer.send(decision);
        }
    }
}

/// Notes since when resources have waited for their record; gives the one that is due first.
fn watch_creations(
    document: &Document,
    creations: &mut BTreeMap<ResourceId, Instant>,
) -> Option<(Instant, ResourceId)> {
    let waits = |resource: &&Resource| resource.record.is_none();
    creations.retain(|id, _| document.resource(*id).is_some_and(|r| waits(&r)));
    for resource in document.resources.iter().filter(waits) {
        creations
            .entry(resource.id)
            .or_insert_with(|| Instant::now() + CREATION_LIMIT);
    }
    creations.iter().map(|(&id, &at)| (at, id)).min()
}

fn far_away() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}
