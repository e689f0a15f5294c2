//! How other threads reach a ring thread: a queue and an eventfd that the ring reads. Any number of
//! messages between two looks cost one wake-up.

use super::ring::Fd;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

#[derive(Debug)]
struct Bell {
    event: Fd,
    rung: AtomicBool,
}

impl Bell {
    fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // Can't fail: the counter would have to reach 2^64 - 2 first, and it rings once.
            if let Err(error) = nix::unistd::write(self.event.as_fd(), &1_u64.to_ne_bytes()) {
                tracing::error!(%error, "an eventfd can't be written");
            }
        }
    }
}

/// The receiving end, owned by the ring thread.
#[derive(Debug)]
pub struct Mailbox<T> {
    queue: Receiver<T>,
    bell: Arc<Bell>,
}

/// The sending end.
#[derive(Debug)]
pub struct Post<T> {
    queue: Sender<T>,
    bell: Arc<Bell>,
}

impl<T> Clone for Post<T> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            bell: self.bell.clone(),
        }
    }
}

/// A mailbox and the way to post to it.
///
/// # Errors
/// Where the process has no descriptors left.
pub fn mailbox<T>() -> io::Result<(Post<T>, Mailbox<T>)> {
    let event = OwnedFd::from(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
    let bell = Arc::new(Bell {
        event: Arc::new(event),
        rung: AtomicBool::new(false),
    });
    let (sender, receiver) = mpsc::channel();
    Ok((
        Post {
            queue: sender,
            bell: bell.clone(),
        },
        Mailbox {
            queue: receiver,
            bell,
        },
    ))
}

impl<T> Post<T> {
    /// Posts a message and wakes the receiver.
    ///
    /// # Errors
    /// Gives the message back where the receiver is gone.
    pub fn send(&self, message: T) -> Result<(), T> {
        self.queue.send(message).map_err(|error| error.0)?;
        self.bell.ring();
        Ok(())
    }
}

impl<T> Mailbox<T> {
    /// The eventfd to read; each completed read is followed by [`hear`](Self::hear).
    #[must_use]
    pub fn event(&self) -> &Fd {
        &self.bell.event
    }

    /// Notes that the bell was heard: from now on a message rings again. Then take all messages.
    pub fn hear(&self) {
        // Before the messages are taken: one that is posted after the last was taken rings.
        self.bell.rung.swap(false, Ordering::AcqRel);
    }

    /// The next message, if there is one.
    pub fn take(&self) -> Option<T> {
        self.queue.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_messages_ring_once_and_the_next_rings_again() {
        let (post, mailbox) = mailbox().unwrap();
        let heard = || {
            let mut counter = [0; 8];
            nix::unistd::read(mailbox.event().as_fd(), &mut counter).unwrap();
            mailbox.hear();
            u64::from_ne_bytes(counter)
        };
        for i in 0..10 {
            post.clone().send(i).unwrap();
        }
        assert_eq!(heard(), 1);
        assert_eq!(
            std::iter::from_fn(|| mailbox.take()).collect::<Vec<_>>(),
            (0..10).collect::<Vec<_>>()
        );
        post.send(11).unwrap();
        assert_eq!(heard(), 1);
        assert_eq!(mailbox.take(), Some(11));
        assert_eq!(mailbox.take(), None);
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        let (post, mailbox) = mailbox().unwrap();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let post = post.clone();
                std::thread::spawn(move || (0..10_000).for_each(|i| post.send(i).unwrap()))
            })
            .collect();
        let mut got = 0;
        while got < 40_000 {
            nix::unistd::read(mailbox.event().as_fd(), &mut [0; 8]).unwrap();
            mailbox.hear();
            while mailbox.take().is_some() {
                got += 1;
            }
        }
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_message_to_nobody_comes_back() {
        let (post, mailbox) = mailbox().unwrap();
        drop(mailbox);
        assert_eq!(post.send(5), Err(5));
    }
}
