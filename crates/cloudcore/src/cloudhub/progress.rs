//! How far a node has been compared with the cluster since it connected: one comparison at a time, and what is wanted beyond it.

/// Of one session.
#[derive(Debug, Default)]
pub(super) struct Progress {
    is_running: bool,
    /// One more is wanted, and whether it has to be thorough.
    wanted: Option<bool>,
    /// Since the comparison began something found no room.
    has_left_out: bool,
    /// The node was offered everything.
    is_complete: bool,
}

impl Progress {
    /// A comparison is wanted. Whether the caller has to run it, for nobody does yet.
    pub(super) fn want(&mut self, is_thorough: bool) -> bool {
        self.wanted = Some(is_thorough || self.wanted == Some(true));
        !std::mem::replace(&mut self.is_running, true)
    }

    /// A comparison begins, and whether it is a thorough one; `None` when no more is wanted.
    pub(super) fn next(&mut self) -> Option<bool> {
        let wanted = self.wanted.take();
        self.is_running = wanted.is_some();
        self.has_left_out = false;
        wanted
    }

    /// Something found no room: what, has to be found out.
    pub(super) fn left_out(&mut self) {
        self.has_left_out = true;
        self.is_complete = false;
    }

    /// A comparison has ended well. Whether the node was offered everything by it.
    pub(super) fn compared(&mut self) -> bool {
        self.is_complete = !self.has_left_out && self.wanted.is_none();
        self.is_complete
    }

    /// Whether the node was offered everything.
    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_comparison_runs_at_a_time_and_the_thorough_one_wins() {
        let mut progress = Progress::default();
        assert!(progress.want(false));
        assert_eq!(progress.next(), Some(false));
        assert!(!progress.want(true) && !progress.want(false), "one runs already");
        assert!(!progress.compared(), "another is wanted");
        assert_eq!(progress.next(), Some(true));
        assert!(progress.compared() && progress.is_complete());
        assert_eq!(progress.next(), None);
        assert!(progress.want(false), "nobody runs it any more");
    }

    #[test]
    fn what_found_no_room_while_comparing_is_found_by_the_next() {
        let mut progress = Progress::default();
        assert!(progress.want(false));
        assert_eq!(progress.next(), Some(false));
        progress.left_out();
        assert!(!progress.compared() && !progress.is_complete());
        assert!(progress.want(true) || progress.next() == Some(true));
        assert!(progress.compared());
    }
}
