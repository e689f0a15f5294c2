//! `token`: lets a machine in. Only the node with the authority's key can, and it asks nobody.

use super::Node;
use crate::operation::{Done, Failure};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

impl Node {
    /// A new token, as text.
    pub(super) async fn token(&self, valid_s: u64, forwarded: bool) -> Result<Done, Failure> {
        let what = "can't make a token";
        let Some(issuer) = self.issuer.as_ref().filter(|_| !forwarded) else {
            return Err(Failure::new(
                what,
                format!(
                    "{} does not have the key of the cluster's authority",
                    self.my_name()
                ),
                "ask the node on which `lockstep init` ran, or put its tls/ca.key into this node's data directory and start the daemon anew",
            ));
        };
        let (issuer, addresses) = (Arc::clone(issuer), self.config.file.control.own.clone());
        let valid = Duration::from_secs(valid_s);
        let token =
            tokio::task::spawn_blocking(move || issuer.token(SystemTime::now(), valid, addresses));
        let token = match token.await {
            Ok(token) => token.map_err(|error| Failure::new(what, error, ""))?,
            Err(error) => return Err(Failure::new(what, error, "see the daemon's log")),
        };
        self.events.push(
            None,
            "token",
            format!("a join token was made; it is valid for {valid_s} s and for one node"),
        );
        let text = token.to_string();
        Ok(Done {
            data: Some(serde_json::json!({ "token": text, "expires": token.expires })),
            message: text,
        })
    }
}
