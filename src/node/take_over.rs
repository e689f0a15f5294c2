//! With exclusive access a disk is used where its primary is, so the node on which it is attached
//! becomes primary. Whether nobody uses it any more where the primary is, that node alone can say, and it
//! says so in the turn of its data plane in which it lets go: nobody who connects meanwhile is cut off.

use super::{COMMAND_LIMIT, LOOK_EVERY, Node, node_id};
use crate::operation::{Done, Failure, Operation};
use crate::plane::NotHandedOver;
use crate::users;
use crate::view::reason;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// A primary that does not answer, starts or stops is waited for this long: a fail-over takes less.
const PRIMARY_LIMIT: Duration = Duration::from_secs(20);

impl Node {
    /// Makes this node primary, unless somebody uses the resource where it is now.
    pub(super) async fn take_over(&self, resource: &str) -> Result<Done, Failure> {
        let me = self.config.node;
        let what = format!("can't make {} primary of {resource}", self.my_name());
        let deadline = Instant::now() + PRIMARY_LIMIT;
        loop {
            let subject = self.subject(&what, resource)?;
            let Some(primary) = subject.record(&what)?.primary else {
                return self.bring_up(&what, &subject, me).await;
            };
            let view = self.resource_view(primary, resource).await;
            let serves = view.as_ref().is_some_and(|view| view.role == "Primary");
            if serves && primary == me {
                let text = format!("{} is primary of {resource}", self.my_name());
                return Ok(Done::new(text));
            }
            if serves {
                self.check_fit(&what, &subject, me).await?;
                let hand_over = Operation::HandOver {
                    resource: resource.to_owned(),
                    to: self.my_name().to_owned(),
                };
                self.forward(&what, primary, &hand_over, false).await?;
            }
            if Instant::now() >= deadline {
                let name = subject.document.node_name(primary);
                let does = match view {
                    None => "does not answer",
                    Some(_) => "does not serve it",
                };
                let waiting = self.failover.waiting(subject.resource.id).await;
                let waits = waiting.map(|waiting| reason(&waiting, &subject.document));
                return Err(Failure::new(
                    what,
                    format!(
                        "{name} is its primary and {does}, and nobody has taken over within {} s{}",
                        PRIMARY_LIMIT.as_secs(),
                        waits.map(|why| format!(" ({why})")).unwrap_or_default()
                    ),
                    format!(
                        "start the daemon on {name}, or mend the network to it; `lockstep status` says what the resource waits for"
                    ),
                ));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Lets another node become primary, unless somebody uses the resource here.
    pub(super) async fn hand_over(&self, resource: &str, to: &str) -> Result<Done, Failure> {
        let what = format!("can't make {to} primary of {resource}");
        let subject = self.subject(&what, resource)?;
        let node = node_id(&what, &subject.document, to)?;
        if subject.record(&what)?.primary != Some(self.config.node) {
            // Whoever asked looks again.
            return Ok(Done::new(format!(
                "{} is not primary of {resource} any more",
                self.my_name()
            )));
        }
        let answer = self.plane.hand_over(subject.resource.id, node);
        match timeout(COMMAND_LIMIT, answer).await {
            Ok(Ok(Ok(()))) => {
                let text =
                    format!("this node lets go: nobody uses it here, and it is attached on {to}");
                self.events.push(Some(resource), "demoting", text);
                Ok(Done::new(format!("{} makes way for {to}", self.my_name())))
            }
            Ok(Ok(Err(NotHandedOver::InUse(clients)))) => Err(Failure::new(
                what,
                format!(
                    "{} is its primary, and it is used there: {}",
                    self.my_name(),
                    users::list(&clients)
                ),
                format!(
                    "end that (`lockstep detach` on {}, where it is attached there), or cut it off: `lockstep move {resource} {to}`",
                    self.my_name()
                ),
            )),
            Ok(Ok(Err(NotHandedOver::Command(error)))) => {
                Err(self.explain(&what, &subject, &error))
            }
            Ok(Err(_)) | Err(_) => Err(Failure::new(
                what,
                format!("{} has not let go of it", self.my_name()),
                "look at `lockstep status` and try again",
            )),
        }
    }
}
