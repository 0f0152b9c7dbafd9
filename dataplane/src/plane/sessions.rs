//! One worker's list of sessions.

use crate::session::{Session, SessionIndex, WorkerNumber};

/// The sessions of one worker, by their places.
pub(super) struct Sessions {
    own: WorkerNumber,
    places: Vec<Option<Box<Session>>>,
}

impl Sessions {
    pub(super) fn with_capacity(own: WorkerNumber, sessions: usize) -> Self {
        Self {
            own,
            places: Vec::with_capacity(sessions),
        }
    }

    pub(super) const fn own(&self) -> WorkerNumber {
        self.own
    }

    /// Places, whether or not they are taken.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    /// The session with this index, if there is one and it is this worker's.
    pub(super) fn get(&self, index: SessionIndex) -> Option<&Session> {
        self.at(self.place(index)?)
    }

    pub(super) fn get_mut(&mut self, index: SessionIndex) -> Option<&mut Session> {
        let place = self.place(index)?;
        self.at_mut(place)
    }

    pub(super) fn at(&self, place: usize) -> Option<&Session> {
        self.places.get(place)?.as_deref()
    }

    pub(super) fn at_mut(&mut self, place: usize) -> Option<&mut Session> {
        self.places.get_mut(place)?.as_deref_mut()
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.places.iter_mut().flatten().map(Box::as_mut)
    }

    /// Puts a session at its index, which is this worker's and free.
    pub(super) fn put(&mut self, session: Box<Session>) {
        let index = session.plan.index;
        let place = self.place(index).unwrap_or(usize::MAX);
        assert_ne!(place, usize::MAX, "a session goes to its own worker");
        if self.places.len() <= place {
            self.places.resize_with(place + 1, || None);
        }
        assert!(
            self.places[place].is_none(),
            "a session's index is free when it is installed"
        );
        self.places[place] = Some(session);
    }

    pub(super) fn take(&mut self, index: SessionIndex) -> Option<Box<Session>> {
        let place = self.place(index)?;
        self.places.get_mut(place)?.take()
    }

    fn place(&self, index: SessionIndex) -> Option<usize> {
        (index.worker() == self.own).then_some(index.place() as usize)
    }
}
