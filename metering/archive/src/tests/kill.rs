//! The archive over a store that fails, and killed, at every point.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, memory::InMemory,
    path::Path as Place,
};

use super::{CHANNEL, lines, log};
use crate::{Archive, store::Opened, waiting};

fn over(log: &Path, store: Arc<dyn ObjectStore>) -> Archive {
    let name = "store".to_owned();
    let opened = Opened {
        store,
        name,
        folder: None,
    };
    Archive::over(log, opened)
}

/// A store that dies after so many requests.
#[derive(Debug)]
struct Mortal {
    inner: Arc<InMemory>,
    left: AtomicUsize,
    /// The request at which it dies is carried out all the same, and nobody hears so.
    deaf: bool,
}

impl Mortal {
    /// Whether this request is carried out, and whether it is answered.
    fn lives(&self) -> (bool, bool) {
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.saturating_sub(1), Ordering::Relaxed);
        (left > 0 || (self.deaf && left == 0), left > 0)
    }

    fn dead() -> Error {
        Error::Generic {
            store: "mortal",
            source: "no space left".into(),
        }
    }
}

impl fmt::Display for Mortal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("mortal")
    }
}

#[async_trait]
impl ObjectStore for Mortal {
    async fn put_opts(
        &self,
        place: &Place,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult, Error> {
        let (done, answered) = self.lives();
        let put = match done {
            true => self.inner.put_opts(place, payload, options).await,
            false => Err(Self::dead()),
        };
        if answered { put } else { Err(Self::dead()) }
    }

    async fn put_multipart_opts(
        &self,
        place: &Place,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>, Error> {
        self.inner.put_multipart_opts(place, options).await
    }

    async fn get_opts(&self, place: &Place, options: GetOptions) -> Result<GetResult, Error> {
        match self.lives() {
            (_, true) => self.inner.get_opts(place, options).await,
            (_, false) => Err(Self::dead()),
        }
    }

    fn delete_stream(
        &self,
        places: BoxStream<'static, Result<Place, Error>>,
    ) -> BoxStream<'static, Result<Place, Error>> {
        match self.lives() {
            (true, _) => self.inner.delete_stream(places),
            (false, _) => Box::pin(futures::stream::once(async { Err(Self::dead()) })),
        }
    }

    fn list(&self, prefix: Option<&Place>) -> BoxStream<'static, Result<ObjectMeta, Error>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Place>) -> Result<ListResult, Error> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Place, to: &Place, options: CopyOptions) -> Result<(), Error> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// At whatever request the store fails or metering is killed: every line is there once, before
/// and after, and the next attempt ends well.
#[tokio::test]
async fn no_failure_at_any_point_loses_a_line_or_counts_half_an_object() {
    for deaf in [false, true] {
        for after in 0.. {
            let dir = log();
            let inner = Arc::new(InMemory::new());
            let mortal = Arc::new(Mortal {
                inner: Arc::clone(&inner),
                left: AtomicUsize::new(after),
                deaf,
            });
            let taken = over(dir.path(), mortal).take(1).await;
            let whole = over(dir.path(), inner.clone());
            assert_eq!(
                whole.lines_of(&CHANNEL).await.unwrap(),
                lines(1..=10),
                "{after}"
            );
            assert_eq!(whole.verify().await.unwrap().findings, [], "{after}");
            // Whoever has the store alone sees the segment or does not.
            let elsewhere = over(&dir.path().join("none"), inner.clone());
            let alone = elsewhere.lines_of(&CHANNEL).await.unwrap();
            assert!(alone.is_empty() || alone == lines(1..=4), "{after}");
            let done = taken.is_ok();
            if done {
                assert_eq!(waiting(dir.path(), 3).unwrap(), [2]);
                break;
            }
            assert_eq!(waiting(dir.path(), 3).unwrap(), [1, 2]);
            assert!(taken.unwrap_err().to_string().contains("no space left"));
            whole.take(1).await.unwrap();
            assert_eq!(whole.lines_of(&CHANNEL).await.unwrap(), lines(1..=10));
            assert_eq!(elsewhere.lines_of(&CHANNEL).await.unwrap(), lines(1..=4));
            assert!(after < 20, "it never ends");
        }
    }
}
